"""Every fault once, met by a row of a batch: no fault ends the night otherwise than the page of errors says."""

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ollama_provider.api import timeouts
from ollama_provider.api.errors import Blame, OutOfMemoryError, RunnerError
from ollama_provider.api.schemas import GenerateRequest
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, FailurePolicy, Pace, Summary, Timeouts, run_batch
from ollama_provider.batch.scheduling import servers
from tests.api.faults.connections import CONNECTIONS
from tests.api.faults.fault import Batch, Fault, whole
from tests.api.faults.operations import OPERATIONS, PASSWORD, Group
from tests.api.faults.page import FAULTS
from tests.api.faults.server import Call, Script, Step, server

#: A good row says so, any other names its fault.
GOOD = [f"good {number}" for number in range(5)]
GENERATE = next(operation for operation in OPERATIONS if operation.name == "generate")
_MODEL = {"name": "m:latest", "model": "m:latest", "digest": "0" * 64}
#: Where the short answers of the list are too short for a batch.
ANSWERS = {
    Group.FACTS: json.dumps({"version": "0.33.0", "models": [_MODEL], "model_info": {}}).encode(),
    Group.TEXT: b'{"response":"hi"}\n{"done":true,"done_reason":"stop"}\n',
}


@pytest.fixture(scope="module")
def faults_server():
    with server() as running:
        yield running


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Wait shorter for what is no setting, and take less of what has no end."""
    monkeypatch.setattr(timeouts, "END_TIMEOUT", 0.2)
    monkeypatch.setattr(timeouts, "REFUSAL_TIMEOUT", 0.3)
    monkeypatch.setattr(servers, "_PAUSE", 0.01)
    monkeypatch.setattr(servers, "_LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(GenerateRequest, "max_bytes", 2**20)


def scripts(*kinds: Batch) -> dict[str, tuple[Fault, Script]]:
    """Return a script of each fault that does one of these to a batch, by the prompt of its row.

    Two take too long: a pause of an hour, which a proxy may ask for, and ten idle timeouts of blanks.
    """
    return {
        f"{number}: {fault.what}": (fault, next(iter(fault.scripts.values())))
        for number, fault in enumerate(FAULTS)
        if fault.scripts and fault.has(next(iter(fault.scripts)), GENERATE) and fault.outcome[Group.TEXT].batch in kinds
        if not fault.what.startswith(("429 or 503 with `Retry-After` beyond", "blanks without end"))
    }


def ollama(faults: dict[str, tuple[Fault, Script]], *, times: float = math.inf) -> Script:
    """Return a server that answers as Ollama does, except so many times to each row that names a fault."""
    met: Counter[str] = Counter()

    def script(call: Call) -> list[Step]:
        prompt = call.fields.get("prompt", "")
        if prompt in faults and met[prompt] < times:
            met[prompt] += 1
            return list(faults[prompt][1](call))
        return whole(call, ANSWERS.get(call.operation.group, call.operation.answer))

    return script


Run = Callable[..., Summary]


@pytest.fixture
def run(tmp_path) -> Run:
    """Run a batch of these prompts at a place."""

    def run_rows(prompts: list[str], place: dict[str, Any], **failures: Any) -> Summary:
        policy = FailurePolicy(**{"max_failed_ratio": 1.0, "retry_delay": 0.0, "max_attempts": 2} | failures)
        waits = Timeouts(first_token=2, idle=2, total=5)
        spec = BatchSpec(rows=prompts, model="m", failures=policy, pace=Pace(concurrency=4), timeouts=waits)
        return run_batch(spec, Settings(**place, password=PASSWORD), tmp_path / "out")

    return run_rows


@pytest.fixture
def results(tmp_path) -> Callable[[], list[dict[str, Any]]]:
    """Read the results, which are in the order of the rows."""
    return lambda: list(map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines()))


def test_a_fault_of_a_row_fails_that_row_alone(faults_server, run, results) -> None:
    """With an error of the list, after the attempts that it is worth."""
    faults = scripts(Batch.ROW)

    summary = run([*GOOD, *faults], {"base_url": faults_server.play(ollama(faults)).url})

    assert (summary.ok, summary.failed) == (len(GOOD), len(faults))
    for row, (prompt, (fault, _)) in zip(results()[len(GOOD) :], faults.items(), strict=True):
        outcome = fault.outcome[Group.TEXT]
        assert row["error"]["class"] in {kind.__name__ for kind in outcome.error}, prompt
        assert row["attempts"] == (2 if outcome.again else 1), prompt
        assert PASSWORD not in row["error"]["text"]


def test_a_fault_of_a_row_that_passes_costs_an_attempt(faults_server, run, results) -> None:
    """If it is worth another one. What is no fault at all costs nothing."""
    faults = scripts(Batch.ROW, Batch.FINE)
    passing = {prompt for prompt, (fault, _) in faults.items() if fault.outcome[Group.TEXT].again}
    fine = set(scripts(Batch.FINE))

    summary = run([*GOOD, *faults], {"base_url": faults_server.play(ollama(faults, times=1)).url})

    assert summary.ok + summary.failed == len(GOOD) + len(faults)
    for row, prompt in zip(results()[len(GOOD) :], faults, strict=True):
        assert (row["status"] == "ok") is (prompt in passing | fine), prompt
        # A crash of the model counts only for the row that was alone with it.
        crashed = {RunnerError, OutOfMemoryError} & set(faults[prompt][0].outcome[Group.TEXT].error)
        assert row["attempts"] == (2 if prompt in passing and not crashed else 1), prompt


def test_a_fault_of_the_server_or_the_setup_is_a_pause(faults_server, run, results) -> None:
    """Once rows were answered: no row fails, and none loses an attempt."""
    faults = scripts(Batch.PAUSE)

    summary = run([*GOOD, *faults], {"base_url": faults_server.play(ollama(faults, times=1)).url}, max_attempts=1)

    assert (summary.ok, summary.failed) == (len(GOOD) + len(faults), 0)
    assert {row["attempts"] for row in results()} == {1}


@pytest.mark.parametrize("prompt", scripts(Batch.STOP))
def test_refused_credentials_and_quotas_stop_the_batch(faults_server, run, prompt) -> None:
    """With their own error, and what was answered stays."""
    fault, script = scripts(Batch.STOP)[prompt]
    url = faults_server.play(ollama({prompt: (fault, script)})).url

    with pytest.raises(fault.outcome[Group.TEXT].error) as raised:
        run([*GOOD, prompt], {"base_url": url})

    assert PASSWORD not in str(raised.value)
    assert run(GOOD, {"base_url": url}).ok == len(GOOD)


@pytest.mark.parametrize(
    "prompt",
    [
        prompt
        for prompt, (fault, _) in scripts(Batch.PAUSE, Batch.STOP).items()
        if all(kind.blame is Blame.SETUP for kind in fault.outcome[Group.TEXT].error)
    ],
)
def test_a_fault_of_the_setup_stops_a_batch_at_its_first_row(faults_server, run, prompt) -> None:
    """Every row would fail alike."""
    fault, script = scripts(Batch.PAUSE, Batch.STOP)[prompt]
    stage = faults_server.play(ollama({prompt: (fault, script)}))

    with pytest.raises(fault.outcome[Group.TEXT].error):
        run([prompt], {"base_url": stage.url})


@pytest.mark.parametrize("fault", [fault for fault in CONNECTIONS if fault.places], ids=lambda fault: fault.what)
def test_a_server_that_cannot_be_reached_ends_the_batch_with_its_own_error(faults_server, run, fault) -> None:
    """At once if it is the setup's fault, else after max_outage."""
    (place,) = fault.places.values()

    with pytest.raises(fault.outcome[Group.TEXT].error) as raised:
        run(GOOD, place(faults_server) | fault.settings, max_outage=0.1)

    assert PASSWORD not in str(raised.value)
