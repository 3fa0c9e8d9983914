"""OllamaPruneModelsOperator: which models are deleted, and that no others are."""

from datetime import UTC, datetime, timedelta

import pytest

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.operators._prune_rules import (
    Installed,
    Rules,
    decide,
    disk_size,
    matches,
    read_names,
    read_size,
    table,
)
from ollama_provider.testing import Model, StandIn, serve

NOW = datetime(2026, 3, 1, tzinfo=UTC)
GB = 10**9


def model(name: str, days: float | None = 10, size: int = GB, weights: str = "", *, loaded: bool = False) -> Installed:
    modified = None if days is None else NOW - timedelta(days=days)
    return Installed(name, size, modified, weights or name, loaded)


def deleted(*models: Installed, **rules) -> list[str]:
    return [decision.model.name for decision in decide(models, Rules(**rules), NOW) if decision.delete]


def reasons(*models: Installed, **rules) -> dict[str, str]:
    return {d.model.name: d.reason for d in decide(models, Rules(**rules), NOW) if not d.delete}


MODELS = (
    model("old:latest", 90),
    model("young:latest", 1),
    model("other:7b", 90),
    model("used:latest", 90, loaded=True),
)


def test_by_age():
    """Older than, and never what is in memory."""
    assert deleted(*MODELS, older_than=timedelta(days=30)) == ["old:latest", "other:7b"]
    assert reasons(*MODELS, older_than=timedelta(days=30)) == {"young:latest": "too young", "used:latest": "in memory"}


def test_an_unknown_age_is_not_old():
    """A model without a date is not deleted."""
    assert reasons(model("m", None), older_than=timedelta(0)) == {"m": "of unknown age"}


def test_by_name():
    """Names mean themselves, patterns what they fit."""
    assert deleted(*MODELS, match=("old", "OTHER:*")) == ["old:latest", "other:7b"]
    assert reasons(*MODELS, match=("old",))["young:latest"] == "matches no pattern"


def test_the_keep_list_wins():
    """Whatever else is said."""
    rules = {"older_than": timedelta(0), "match": ("*",), "max_total_size": 0}

    assert deleted(*MODELS, **rules, keep=("*",)) == []
    assert set(reasons(*MODELS, **rules, keep=("*",)).values()) == {"on the keep list", "in memory"}
    assert deleted(*MODELS, **rules, keep=("old", "other:7b")) == ["young:latest"]


def test_by_total_size():
    """The oldest first, and no more than needed."""
    models = [model(f"m{day}", day, GB) for day in (1, 2, 3, 4)]

    assert deleted(*models, max_total_size=2 * GB) == ["m4", "m3"]
    assert deleted(*models, max_total_size=2 * GB, keep=("m4",)) == ["m3", "m2"]
    assert deleted(*models, max_total_size=5 * GB) == []
    assert reasons(*models, max_total_size=5 * GB)["m4"] == "there is room"


def test_shared_weights_count_once_and_are_deleted_together():
    """A variant takes no room: to delete it alone would free nothing, and so would the base alone."""
    base, variant = model("base", 90, 5 * GB, "w"), model("variant", 50, 5 * GB, "w")
    other = model("other", 80, 2 * GB)

    assert disk_size([base, variant, other]) == 7 * GB
    assert deleted(base, variant, other, max_total_size=6 * GB) == ["other"]
    assert deleted(base, variant, other, max_total_size=GB) == ["base", "other", "variant"]
    assert reasons(base, variant, other, max_total_size=0, keep=("variant",)) == {
        "base": "shares its files with variant",
        "variant": "on the keep list",
    }


def test_without_a_rule_nothing_is_judged():
    """To delete everything has to be said."""
    with pytest.raises(InvalidRequestError, match='match="\\*" does that'):
        decide(MODELS, Rules(keep=("old",)), NOW)

    assert len(deleted(*MODELS, match=("*",))) == 3


@pytest.mark.parametrize(
    ("name", "pattern", "meant"),
    [
        ("llama3.2:latest", "llama3.2", True),
        ("llama3.2:3b", "llama3.2", False),
        ("llama3.2:3b", "llama3.2*", True),
        ("llama3.2:3b", "LLAMA*", True),
        ("llama3.2:3b", "*:3b", True),
        ("hf.co/ours/m:q4", "hf.co/ours/*", True),
        ("hf.co/theirs/m:q4", "hf.co/ours/*", False),
        ("llama3.2:3b", "llama3.?", True),
        ("llama3.2:latest", "library/llama3.2:LATEST", True),
        ("not a name", "old", False),
        ("not a name", "*", True),
    ],
)
def test_names_and_patterns(name, pattern, meant):
    """A name is compared as the server does; a pattern may leave the tag out."""
    assert matches(name, pattern) is meant


@pytest.mark.parametrize(
    ("value", "names"),
    [(None, ()), ("", ()), ("a", ("a",)), ("a, b*\nc", ("a", "b*", "c")), (["a", "b:1"], ("a", "b:1"))],
)
def test_a_list_of_names_may_be_a_text(value, names):
    """Templates and forms give text."""
    assert read_names("keep", value) == names


@pytest.mark.parametrize("value", ["['a', 'b']", "a;b", ["a b/"], "x::y", "[a]*"])
def test_a_list_that_became_text_protects_nothing_and_is_refused(value):
    """A keep list that is misread would cost models."""
    with pytest.raises(InvalidRequestError):
        read_names("keep", value)


@pytest.mark.parametrize(
    ("value", "size"),
    [(5, 5), (5.0, 5), ("5", 5), ("50 GB", 50 * GB), ("1.5tb", 1500 * GB), ("10kB", 10_000), ("7 B", 7)],
)
def test_sizes(value, size):
    """A number of bytes, or a text with a unit."""
    assert read_size(value) == size


@pytest.mark.parametrize("value", ["", "much", "5 GiB", "-5 GB", True, None])
def test_what_is_no_size_is_refused(value):
    """Rather than guessed."""
    with pytest.raises(InvalidRequestError, match="max_total_size"):
        read_size(value)


def test_the_table_can_be_read():
    """A line a model, the oldest first, with size, age and what happens."""
    decisions = decide(MODELS, Rules(older_than=timedelta(days=30), keep=("other:*",)), NOW)

    assert table(decisions, NOW) == [
        "MODEL           SIZE  CHANGED",
        "old:latest    1.0 GB  90 days ago  delete",
        "other:7b      1.0 GB  90 days ago  keep: on the keep list",
        "used:latest   1.0 GB  90 days ago  keep: in memory",
        "young:latest  1.0 GB  1 day ago    keep: too young",
    ]


class TestThroughAirflow:
    """The operator, run by Airflow against a stand-in with models of several ages."""

    pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)

    @pytest.fixture
    def aged(self, add_connection):
        """A stand-in with two models of 90 days, one of them made of the other, and one of today."""
        now = datetime.now(UTC).timestamp()
        times = iter([now - 90 * 86_400] * 2)
        stand_in = StandIn([], clock=lambda: next(times, now))
        stand_in.install(Model("old", size=4 * GB))
        stand_in.install(Model("variant", size=4 * GB, weights=stand_in.model("old").layers[0][0], system="Hi"))
        stand_in.install(Model("young", size=2 * GB))
        with serve(stand_in) as server:
            add_connection(host=server.url)
            yield server

    TASK = "OllamaPruneModelsOperator(task_id='t', retries=3, older_than=timedelta(days=30)"

    @pytest.fixture
    def prune(self, aged, run_task, monkeypatch):
        """Run the operator against `aged`."""

        def run(arguments: str = "", **dag):
            monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", f'{{"conn_type": "ollama", "host": "{aged.url}"}}')
            return run_task(f"{self.TASK}{arguments})", **dag)

        return run

    def installed(self, server) -> set[str]:
        return {model.name for model in server.stand_in.models}

    def test_by_default_it_only_logs_what_would_be_deleted(self, prune, aged):
        """A dry run deletes nothing, and logs how to delete."""
        ran = prune()

        assert ran.state == "success"
        assert ran.value["models"] == ["old:latest", "variant:latest"]
        assert ran.value["kept"] == {"young:latest": "too young"}
        assert ran.value["dry_run"] is True
        assert round(ran.value["freed"] / GB) == 4
        assert round(ran.value["left"] / GB) == 2
        assert "Dry run: 2 models would be deleted, freeing 4.0 GB; set dry_run=False to delete them" in ran.log
        assert "old:latest      4.0 GB  90 days ago  delete" in ran.log
        assert self.installed(aged) == {"old", "variant", "young"}

    def test_it_deletes_once(self, prune, aged):
        """The second run deletes nothing, and logs that."""
        first, second = prune(", dry_run=False"), prune(", dry_run=False")

        assert first.value["models"] == ["old:latest", "variant:latest"]
        assert "2 models deleted, 4.0 GB freed" in first.log
        assert second.value["models"] == []
        assert "Nothing to delete; the models take 2.0 GB" in second.log
        assert self.installed(aged) == {"young"}

    def test_with_everything_on_the_keep_list_nothing_is_deleted(self, prune, aged):
        """And the log has a warning."""
        ran = prune(", dry_run=False, keep='*', max_total_size='1 GB'")

        assert ran.value["models"] == []
        assert "Nothing to delete" in ran.log
        assert "6.0 GB are left, more than max_total_size (1.0 GB): no other model may be deleted" in ran.log
        assert self.installed(aged) == {"old", "variant", "young"}

    def test_a_loaded_model_and_its_copies_stay(self, prune, aged):
        """A copy has another name and the same digest."""
        aged.stand_in.answer("POST", "/api/copy", {"source": "old", "destination": "copy"})
        aged.stand_in.answer("POST", "/api/generate", {"model": "old", "stream": False})

        ran = prune(", dry_run=False, match='*'".replace(", match='*'", ""))

        assert ran.value["models"] == ["variant:latest"]
        assert ran.value["kept"]["old:latest"] == "in memory"
        assert ran.value["kept"]["copy:latest"] == "in memory"
        assert ran.value["freed"] == 0

    def test_switches_and_lists_may_be_templates(self, prune, aged):
        """As a form with parameters gives them."""
        ran = prune(
            ", dry_run='{{ params.dry_run }}', keep='{{ params.keep }}'", params={"dry_run": False, "keep": "old, x*"}
        )

        assert (ran.value["dry_run"], ran.value["models"]) == (False, ["variant:latest"])

    @pytest.mark.parametrize("argument", ["keep", "match"])
    def test_a_list_that_a_template_turned_into_text_is_read(self, prune, aged, argument):
        """As it comes out of another task, or a parameter of the form."""
        ran = prune(f", {argument}='{{{{ params.names }}}}'", params={"names": ["old", "x*"]})

        assert ran.state == "success"
        assert ran.value["models"] == (["variant:latest"] if argument == "keep" else ["old:latest"])

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (", dry_run='{{ \"perhaps\" }}'", "dry_run: 'perhaps' is neither True nor False"),
            (", dry_run=False, keep='{{ [1, 2] }}'", "keep: '1' is neither a name nor a pattern"),
            (", max_total_size='much'", "max_total_size: 'much' is not a size"),
        ],
    )
    def test_what_cannot_be_right_deletes_nothing(self, prune, aged, arguments, told):
        """And takes no retry."""
        ran = prune(arguments)

        assert (ran.state, ran.tries) == ("failed", 1)
        assert told in ran.log
        assert self.installed(aged) == {"old", "variant", "young"}
