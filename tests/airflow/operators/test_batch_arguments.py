"""The arguments of OllamaBatchOperator: beside those of the engine, and as DAG files, forms and templates give them."""

import copy
import dataclasses
import inspect
import pickle
import re
from datetime import date, time, timedelta
from functools import partial

import pytest
from airflow.providers.common.compat.sdk import DAG

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch import (
    GROUPS,
    BatchSpec,
    Embedding,
    FailurePolicy,
    InputError,
    InputOptions,
    Pace,
    Rehearsal,
    Timeouts,
    Window,
    read_argument,
)
from ollama_provider.batch.arguments import RESERVED_NAMES
from ollama_provider.batch.rows.sandbox import Sandbox
from ollama_provider.decorators import ollama_batch_task
from ollama_provider.operators import OllamaBatchOperator
from ollama_provider.operators.batch import sharded

#: The connection has defaults of its own for these; None is the defaults of a group.
OTHER_DEFAULTS = {"model", "options", *GROUPS}
#: Said by Airflow.
NOT_OF_THE_OPERATOR = {"due"}

BATCH = partial(OllamaBatchOperator, task_id="t", rows="x.jsonl", output_path="out")


def test_arguments_and_defaults_are_those_of_the_engine() -> None:
    """The defaults are written out in the operator, which a DAG file loads without the engine."""
    arguments = inspect.signature(OllamaBatchOperator.__init__).parameters
    engine = {field.name: field.default for field in dataclasses.fields(BatchSpec)}
    same = engine.keys() - OTHER_DEFAULTS - NOT_OF_THE_OPERATOR
    required = {name for name in same if engine[name] is dataclasses.MISSING}

    assert required == {"rows"}
    assert {name: arguments[name].default for name in same - required} == {
        name: engine[name] for name in same - required
    }
    assert GROUPS.keys() <= arguments.keys()


def test_there_are_few_enough_to_read() -> None:
    """What belongs together is one value. Whether people see prompts belongs to none of them."""
    own = [
        name
        for name, argument in inspect.signature(OllamaBatchOperator.__init__).parameters.items()
        if argument.kind is inspect.Parameter.KEYWORD_ONLY and name != "shard"
    ]

    assert len(own) <= 26, own


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "failed"},
        {"results": "csv"},
        {"think": "deep"},
        {"id_column": 0.1},
        {"failures": 3},
        {"failures": Pace()},
        {"failures": "none"},
        {"pace": [1]},
        {"window": {"stop": "06:00"}},
        {"variables": [("day", "2026-01-01")]},
        {"variables": {"row": "{{ ds }}"}},
        {"variables": {"run-date": "{{ ds }}"}},
    ],
    ids=str,
)
def test_what_is_wrong_however_it_is_rendered_is_refused_when_the_file_is_parsed(wrong):
    """By the name of the argument: nobody waits for the night to hear of it."""
    (name,) = wrong

    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=rf"^{name}: "):
        BATCH(**wrong)


WRONG = [
    (FailurePolicy, {"max_attempts": 0}),
    (FailurePolicy, {"max_failed_rows": -1}),
    (FailurePolicy, {"max_failed_ratio": 5}),
    (FailurePolicy, {"max_outage": float("nan")}),
    (FailurePolicy, {"on_digest_change": "ask"}),
    (FailurePolicy, {"allow_cut": "yes"}),
    (Pace, {"concurrency": 0}),
    (Pace, {"concurrency": "many"}),
    (Window, {"stop_at": 1350}),
    (Window, {"stop_at": date(2026, 11, 26)}),
    (Window, {"stop_at": "6am"}),
    (Window, {"timezone": "Europe/Berln"}),
    (Embedding, {"pack": 1.5}),
    (Timeouts, {"load": 0}),
    (Timeouts, {"idle": "soon"}),
    (InputOptions, {"delimiter": ";;"}),
    (InputOptions, {"encoding": "latin1000"}),
    (Rehearsal, {"sample": 0}),
    (Rehearsal, {"show_texts": "perhaps"}),
    (Rehearsal, {"models": "llama3.2"}),
]


@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=str)
def test_what_is_wrong_in_a_group_is_refused_where_it_stands(kind, wrong):
    """By its full name, also in a module that DAGs share, and in a mapped task."""
    (name,) = wrong

    with pytest.raises(InvalidRequestError, match=rf"^{kind.argument}\.{name}: "):
        kind(**wrong)


@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=str)
def test_a_group_may_be_a_dict(kind, wrong):
    """As another task, or a file, gives it; what is wrong is told in the same way."""
    (name,) = wrong

    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=rf"^{kind.argument}\.{name}: "):
        BATCH(**{kind.argument: wrong})


def test_an_unknown_argument_of_a_group_is_refused_with_those_that_there_are():
    """A misspelt name, for instance."""
    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match="no max_attempt; it has max_attempts, "):
        BATCH(failures={"max_attempt": 3})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"embedding": Embedding(), "messages": [{"role": "user", "content": "a"}]}, "messages, embedding: "),
        ({"embedding": Embedding(), "system": "Be brief."}, "system: "),
        ({"embedding": Embedding(), "think": True}, "think: "),
        ({"embedding": Embedding(), "output_type": "json"}, "output_type: "),
        ({"embedding": {"dimensions": 8}, "failures": FailurePolicy(fallback_model="m")}, "failures.fallback_model: "),
        ({"failures": FailurePolicy(fallback_model="m")}, "failures.fallback_model: "),
    ],
    ids=str,
)
def test_what_makes_no_sense_together_is_refused_when_the_file_is_parsed(given, told):
    """A vector has no system message, and a second model has nothing to do without a schema."""
    with DAG("any", schedule=None), pytest.raises(InputError, match=f"^{told}"):
        BATCH(**given)


def test_what_a_template_decides_is_not_refused_when_the_file_is_parsed():
    """It may come out as None."""
    with DAG("any", schedule=None):
        BATCH(
            embedding=Embedding(),
            system="{{ params.system }}",
            failures=FailurePolicy(fallback_model="{{ params.second }}"),
        )


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("mode", " failed_only", "failed_only"),
        ("think", "False", False),
        ("think", "high", "high"),
        ("id_column", 2026, "2026"),
        ("id_column", "None", None),
        ("failures", None, None),
        ("embedding", "None", None),
        ("embedding", {}, Embedding()),
        (
            "messages",
            '[{"role": "user", "content": "{{ row.text }}"}]',
            [{"role": "user", "content": "{{ row.text }}"}],
        ),
        ("messages", [{"role": "user", "content": 42}], [{"role": "user", "content": "42"}]),
    ],
)
def test_what_has_one_meaning_is_read(name, given, read):
    """As a template renders it, with native objects or without, and as a form sends it."""
    assert read_argument(name, given) == read


@pytest.mark.parametrize(
    ("kind", "name", "given", "read"),
    [
        (Pace, "concurrency", "4", 4),
        (Pace, "concurrency", 4.0, 4),
        (Pace, "concurrency", "auto", "auto"),
        (Pace, "requests_per_minute", "30", 30.0),
        (FailurePolicy, "max_attempts", "5", 5),
        (FailurePolicy, "max_failed_ratio", "0.05", 0.05),
        (FailurePolicy, "max_failed_rows", "None", None),
        (FailurePolicy, "allow_cut", "True", True),
        (FailurePolicy, "fallback_model", None, None),
        (Window, "unload_after", "false", False),
        (Window, "timezone", "+02:00", "+02:00"),
        (Window, "stop_at", time(6), time(6)),
        (Window, "stop_at", "PT6H", timedelta(hours=6)),
        (Window, "stop_at", "None", None),
        (Timeouts, "total", "None", None),
        (Timeouts, "total", "60", 60.0),
    ],
)
def test_what_has_one_meaning_is_read_in_a_group(kind, name, given, read):
    """When it is made, and when its templates are rendered."""
    template = kind(**{name: "{{ params.value }}"})
    rendered = template.render({"{{ params.value }}": given}.get)

    assert getattr(kind(**{name: given}), name) == read
    assert getattr(read_argument(kind.argument, rendered), name) == read
    assert getattr(template, name) == "{{ params.value }}"


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("id_column", 0.1, "a text is needed, not float.*render_template_as_native_obj"),
        ("images", True, "a text is needed, not bool"),
        ("prompt", ["a"], "a text is needed, not list"),
        ("messages", "Say it.", "a list of messages"),
        ("messages", "[1, 2]", "a list of messages"),
        ("messages", {"role": "user"}, "a list of messages"),
        ("messages", [{"role": "user", "content": 0.5}], "a text is needed, not float"),
        ("concurrency", True, "neither 'auto' nor a number"),
        ("concurrency", None, "neither 'auto' nor a number"),
        ("max_outage", "1e999", "is not a number"),
        ("max_outage", "-1", "is not a number"),
        ("mode", 1, "is not one of"),
        ("pace", FailurePolicy(), "a Pace is needed, or a dict of its arguments, not FailurePolicy"),
    ],
)
def test_what_has_none_or_two_is_refused(name, given, told):
    """A float may have been the text 0.10, and what was shown as a list is no list."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}.*{told}"):
        read_argument(name, given)


def test_a_template_that_nobody_rendered_is_refused():
    """Also without Airflow: its text is no number."""
    with pytest.raises(InvalidRequestError, match=r"^pace\.concurrency: '\{\{ 4 \}\}' is neither"):
        BatchSpec(model="m", rows=["a"], pace=Pace(concurrency="{{ 4 }}"))


def test_a_group_shows_what_differs_from_its_defaults():
    """In the UI, and the same in every process: else Airflow would see another version of the DAG at each parse."""
    assert repr(FailurePolicy()) == "FailurePolicy()"
    assert repr(FailurePolicy(max_failed_ratio="0.05", allow_cut=True)) == (
        "FailurePolicy(max_failed_ratio=0.05, allow_cut=True)"
    )
    assert str(Pace(concurrency="{{ params.n }}")) == "Pace(concurrency='{{ params.n }}')"


@pytest.mark.parametrize("kind", GROUPS.values())
def test_a_group_can_be_copied_and_compared(kind):
    """Airflow copies DAGs; two tasks that say the same have equal values."""
    assert kind() == kind() == copy.deepcopy(kind()) == pickle.loads(pickle.dumps(kind()))  # noqa: S301  # our own
    assert hash(kind()) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().anything = 1


def test_templates_and_outputs_are_read_when_they_are_known():
    """And not when the file is parsed; the task waits for the one whose output it needs."""
    with DAG("any", schedule=None) as dag:
        above = OllamaBatchOperator(task_id="above", rows="x.jsonl", output_path="out")
        OllamaBatchOperator(
            task_id="t",
            rows=above.output,
            output_path="out",
            mode="{{ params.mode }}",
            pace=Pace(concurrency="{% if True %}4{% endif %}"),
        )
        BATCH(task_id="in_a_group", window=Window(stop_at=above.output["stop_at"]))
        sharded(2, task_id="all", rows="x.jsonl", output_path="out", pace=Pace(concurrency=above.output["slots"]))

    for task_id in ("t", "in_a_group", "all.shards", "all.merge"):
        assert "above" in dag.get_task(task_id).upstream_task_ids, task_id


@pytest.mark.parametrize("value", [True, False, "{{ params.wait }}"], ids=str)
def test_a_batch_is_not_deferrable(value):
    """The text says what keeps its slot out of the way of other tasks instead."""
    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=r"^deferrable: .*pool.*queue.*stop_at"):
        BATCH(deferrable=value)


def test_a_name_that_templates_cannot_use_is_refused_with_one_that_they_can():
    """Every name that means something in a template already, and every text that is no name."""
    better = {"run-date": "run_date", "2nd": "_2nd", "two words": "two_words", "class": "class_", "": "_", 7: "_7"}
    better |= {name: f"the_{name}" for name in ("row", "loop", "range", "true")}

    for name, other in better.items():
        with pytest.raises(InvalidRequestError, match=f"^variables: .*{re.escape(repr(name))}.* call it {other!r}$"):
            read_argument("variables", {name: "x"})
        assert read_argument("variables", {other: "x"}) == {other: "x"}
    assert {*Sandbox().globals, "row"} <= RESERVED_NAMES


def test_a_variable_that_needs_a_row_is_refused():
    """Airflow would render it without one, as an empty text."""
    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=r"^variables\.title: it uses row"):
        BATCH(variables={"day": "{{ ds }}", "title": "{{ row.title | upper }}"})


def test_a_decorated_batch_is_not_deferrable():
    """The decorator refuses it where the task is made, in the same words."""
    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=r"^deferrable: a batch cannot wait"):
        ollama_batch_task(output_path="out", deferrable=True)(lambda: ["a"])()


def test_the_default_of_a_dag_for_its_other_tasks_is_no_mistake_of_a_batch():
    """A DAG may let all that can wait in the triggerer do so."""
    with DAG("any", schedule=None, default_args={"deferrable": True}):
        BATCH()
