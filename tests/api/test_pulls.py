"""A pull is followed by its bytes, and begins only where it may."""

import pytest

from ollama_provider.api import pulls
from ollama_provider.api.errors import ModelNotFoundError, PullNotAllowedError
from ollama_provider.api.pulls import PullProgress, check_pull_allowed
from ollama_provider.api.settings import Settings

GB = 10**9


def layer(name: str, total: int, completed: int | None = None) -> dict[str, object]:
    line = {"status": f"pulling {name}", "digest": f"sha256:{name}", "total": total}
    return line if completed is None else {**line, "completed": completed}


def progress(stall: float = 300) -> PullProgress:
    return PullProgress("m", stall=stall, now=0)


def test_progress_is_reported_now_and_then():
    """Lines come every 60 ms; a report comes at each stage and every few seconds."""
    pull = progress()
    reports = [pull.add({"status": "pulling manifest"}, 0)]
    reports += [pull.add(layer("a", 100 * GB, count * 10**7), 0.06 * count) for count in range(1, 500)]

    told = [report for report in reports if report]
    assert 6 <= len(told) <= 8
    assert told[-1].model == "m"


def test_absurd_sizes_and_names_are_no_error():
    """A server may state any number, and call a stage anything."""
    pull = progress()
    pull.add(layer("a", 2**62, 1), 1)
    report = pull.add({"status": "x\r\n\x1b[2J" + "y" * 1000}, 10)

    assert (report.eta, report.rate > 0) == (None, True)
    assert report.status.isprintable()
    assert len(report.status) == 200


def test_percent_rate_and_eta():
    """They follow from the bytes of all layers known so far, and from the last half minute."""
    pull = progress()
    pull.add(layer("a", 4 * GB), 0)
    for second in range(1, 20):
        pull.add(layer("a", 4 * GB, second * 10**8), second)
    report = pull.add(layer("a", 4 * GB, 2 * GB), 20)

    assert report.percent == 50
    assert report.rate == pytest.approx(10**8)
    assert report.eta == pytest.approx(20)


def test_layers_appear_one_by_one():
    """The total grows with each layer; what was there before counts on."""
    pull = progress()
    pull.add(layer("a", GB, GB), 0)
    pull.add(layer("b", 3 * GB), 1)
    report = pull.add(layer("b", 3 * GB, GB), 10)

    assert (report.done, report.total, report.percent) == (2 * GB, 4 * GB, 50)


def test_bytes_that_are_taken_back_are_no_progress_until_they_are_made_good():
    """A corrupt part is fetched again: `completed` goes back, and only more than before counts."""
    pull = progress()
    pull.add(layer("a", GB, 500), 100)
    pull.add(layer("a", GB, 100), 150)
    pull.add(layer("a", GB, 500), 200)
    assert pull.deadline == 400
    report = pull.add(layer("a", GB, 501), 250)

    assert pull.deadline == 550
    assert report.done == 501


def test_lines_without_bytes_are_no_progress():
    """A stalled pull repeats its line for ever."""
    pull = progress(stall=60)
    for second in range(100):
        pull.add(layer("a", GB, 500), second)

    assert pull.deadline == 60


def test_a_new_stage_is_progress():
    """The next layer begins: that is a move, even before its first byte."""
    pull = progress(stall=60)
    pull.add(layer("a", GB, GB), 10)
    pull.add(layer("b", GB), 50)

    assert pull.deadline == 110


@pytest.mark.parametrize("status", ["verifying sha256 digest", "writing manifest", "removing unused layers"])
def test_hashing_is_silent_and_that_is_right(status):
    """A huge layer on a slow disk takes many minutes without a line."""
    pull = progress(stall=60)
    pull.add(layer("a", GB, GB), 10)
    pull.add({"status": status}, 20)

    assert pull.deadline >= 20 + 1800


def test_a_manifest_that_does_not_come_is_a_stall():
    """Before the first layer the same timeout holds as for bytes."""
    pull = progress(stall=60)
    pull.add({"status": "pulling manifest"}, 1)

    assert pull.deadline == 61


def test_success_is_all():
    """The last line of a layer need not say 100 %; success does."""
    pull = progress()
    pull.add(layer("a", GB, 900), 0)
    report = pull.add({"status": "success"}, 1)

    assert (report.status, report.done, report.percent) == ("success", GB, 100)


def test_a_model_that_is_there_is_reported_as_well():
    """Without a byte to fetch there is no rate, and nothing breaks."""
    report = progress().add({"status": "success"}, 0)

    assert (report.total, report.percent, report.rate, report.eta) == (0, None, None, None)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("llama3.2", {}),
        ("user/model:7b", {}),
        ("registry.ollama.ai/library/llama3.2", {}),
        ("hf.co/ours/model:Q4", {"pull_allow": ["hf.co/ours/*"]}),
        ("HF.co/Ours/Model", {"pull_allow": ["hf.co/ours/model"]}),
        ("registry.example.com/a/b", {"pull_allow": ["hf.co/*", "registry.example.com/*"]}),
    ],
)
def test_what_may_be_pulled(model, settings):
    """Ollama's own registry, and what a pattern allows."""
    check_pull_allowed(model, Settings(**settings), ModelNotFoundError("gone"))


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        ("llama3.2", {"auto_pull": False}, "auto_pull=True"),
        ("hf.co/ours/model", {}, "'hf.co/ours/\\*' to pull_allow"),
        ("hf.co/theirs/model", {"pull_allow": ["hf.co/ours/*"]}, "pull_allow"),
        ("evil.example/library/llama3.2", {"pull_allow": ["hf.co/*"]}, "evil.example"),
        ("hf.co/ours/model", {"auto_pull": False, "pull_allow": ["*"]}, "auto_pull is off"),
        ("not a name", {}, "not a model's name"),
    ],
)
def test_what_may_not_be_pulled(model, settings, says):
    """The error says why, and what to set so that it may."""
    with pytest.raises(PullNotAllowedError, match=says) as raised:
        check_pull_allowed(model, Settings(**settings), ModelNotFoundError("gone", host="http://h", status=404))

    assert (raised.value.host, raised.value.model, raised.value.status) == ("http://h", model, 404)


@pytest.mark.parametrize("number", [10**400, 2**63, -1, -(10**400), True, 1.5, "1", None, [1]])
def test_numbers_that_are_no_sizes_do_no_harm(number):
    """A total of 400 digits is no total."""
    pull = progress()
    pull.add(layer("a", GB, 10), 0)
    pull.add(layer("b", number, number), 10)
    report = pull.add({"status": "success"}, 20)

    assert GB <= report.total <= GB + 1
    assert report.done == report.total


def test_stages_that_come_again_are_no_progress():
    """A server that goes to and fro between two of them has stalled all the same."""
    pull = progress(stall=300)
    for now in range(1000):
        pull.add(layer("ab"[now % 2], GB, 10), now)

    assert pull.deadline < 310


def test_what_is_remembered_of_a_pull_is_bounded(monkeypatch):
    """However many layers and lines a server makes up."""
    monkeypatch.setattr(pulls, "MOST_LAYERS", 100)
    pull = progress()
    for number in range(10_000):
        pull.add(layer(str(number), GB, number), number / 1000)

    assert pull.add({"status": "success"}, 11).total == 100 * GB
    assert len(pull._history) < 200
