"""Tasks that wait in a real triggerer: the triggerer is killed, or the tasks are cleared."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ollama_provider.testing import Answer, Model, Server, Stall, StandIn, StuckDownload, serve
from tests.e2e.stack import Stack

DAG = "e2e_deferred"
KEY = "not-for-the-log"
ASKING, PULLING = "/api/generate", "/api/pull"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The Ollama server of all tests here."""
    with serve(StandIn(parallel=8)) as server:
        yield server


@pytest.fixture(scope="module")
def handover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the stored payloads."""
    return tmp_path_factory.mktemp("handover")


@pytest.fixture(scope="module")
def stack(server: Server, handover: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Airflow with a connection to the stand-in."""
    parts = urlsplit(server.url)
    environment = {
        "AIRFLOW_CONN_OLLAMA_DEFAULT": f"ollama://:{KEY}@{parts.hostname}:{parts.port}",
        "AIRFLOW__OLLAMA__HANDOVER_PATH": f"file://{handover}",
    }
    dags = tmp_path_factory.mktemp("dags")
    shutil.copy(Path(__file__).with_name("dags") / f"{DAG}.py", dags)
    with Stack(tmp_path_factory.mktemp("airflow"), dags=dags, environment=environment) as stack:
        yield stack


def states(stack: Stack, run: str) -> dict[str, str]:
    tasks = stack.call("GET", f"/dags/{DAG}/dagRuns/{run}/taskInstances")["task_instances"]
    return {task["task_id"]: task["state"] for task in tasks}


def until(stack: Stack, what: str, ready: Callable[[], bool]) -> None:
    stack.processes.wait(what, ready, timeout=120)


def under_way(server: Server) -> list[str]:
    """The open generations and pulls of the server."""
    return sorted(seen.path for seen in server.stand_in.open_requests if seen.path in {ASKING, PULLING})


@pytest.fixture
def run(stack: Stack, server: Server) -> Iterator[str]:
    """A run whose tasks are all deferred: the model is missing, the pull is stuck, the answer does not arrive."""
    server.stand_in.script((Answer("never told"), Stall(after=1)), path="generate")
    server.stand_in.script(StuckDownload(), path="pull")
    run = stack.trigger(DAG)
    until(stack, "deferred", lambda: set(states(stack, run).values()) == {"deferred"})
    until(stack, "asking", lambda: under_way(server) == [ASKING, PULLING])
    yield run
    for model in ("fresh", "mistral"):
        with contextlib.suppress(KeyError):
            server.stand_in.remove(model)


def test_a_triggerer_that_is_killed_is_taken_over(stack: Stack, server: Server, handover: Path, run: str) -> None:
    """The server cancels the requests of the killed triggerer. The next one continues, in the same try of each task."""
    assert len(list(handover.iterdir())) == 1
    stack.processes.kill("triggerer")
    until(stack, "rid of the dead triggerer's requests", lambda: under_way(server) == [])
    assert set(states(stack, run).values()) == {"deferred"}

    server.stand_in.script("Because of Rayleigh.", path="generate")
    server.stand_in.install(Model("fresh"))
    stack.start("triggerer", ["triggerer", "--skip-serve-logs"])

    assert stack.wait_for_run(DAG, run) == {"wait": "success", "pull": "success", "ask": "success"}
    answer = stack.call("GET", f"/dags/{DAG}/dagRuns/{run}/taskInstances/ask/xcomEntries/return_value")
    assert answer["value"] == "Because of Rayleigh."
    asked = [seen.json["prompt"] for seen in server.stand_in.requests if seen.path == ASKING]
    assert [len(prompt) for prompt in asked] == [len("Why is the sky blue? ") + 5000 * len("Say it well. ")] * 2
    assert list(handover.iterdir()) == []
    log = stack.task_log(DAG, run, "pull")
    assert "mistral: " in log
    assert "100 %" in log
    log = stack.task_log(DAG, run, "ask")
    assert "Trigger fired event" in log
    assert "Rayleigh" not in log
    assert "Why is the sky blue" not in log
    assert {seen.headers["authorization"] for seen in server.stand_in.requests} == {f"Bearer {KEY}"}
    assert KEY not in stack.processes.report(lines=100_000)


def test_a_task_that_is_marked_or_cleared_ends_its_request(stack: Stack, server: Server, run: str) -> None:
    """The server cancels the requests of cleared tasks, which then send new ones."""
    stack.call("PATCH", f"/dags/{DAG}/dagRuns/{run}/taskInstances/pull", json={"new_state": "failed"})
    until(stack, "rid of the pull", lambda: under_way(server) == [ASKING])

    server.stand_in.script("Because of Mie.", path="generate")
    clear = {"dry_run": False, "task_ids": ["ask"], "dag_run_id": run, "only_failed": False, "only_running": False}
    stack.call("POST", f"/dags/{DAG}/clearTaskInstances", json=clear)
    until(stack, "rid of the generation", lambda: under_way(server) == [])
    server.stand_in.install(Model("fresh"))

    assert stack.wait_for_run(DAG, run) == {"wait": "success", "pull": "failed", "ask": "success"}
    answer = stack.call("GET", f"/dags/{DAG}/dagRuns/{run}/taskInstances/ask/xcomEntries/return_value")
    assert answer["value"] == "Because of Mie."
