"""CeleryExecutor on PostgreSQL and Redis with two workers: both get tasks, and killing one loses no rows."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_provider.testing import Pace, Server, StandIn, serve
from tests.e2e.stack import Stack
from tests.services import postgresql, redis

ROWS = 80
TEXT = "Row {n}. It has a second sentence."
PROMPT = "Summarise in one sentence:\n"
WORKERS = ("worker-1", "worker-2")


@pytest.fixture(scope="module")
def ollama() -> Iterator[Server]:
    """A stand-in with a slot for every request of two shards."""
    with serve(StandIn(parallel=4)) as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, ollama: Server) -> Iterator[Stack]:
    """Airflow with two Celery workers, this project's DAGs, a connection to the stand-in, and rows to summarise."""
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    shutil.copytree(Path(__file__).parents[2] / "dags", dags)
    shutil.copytree(Path(__file__).parent / "dags", dags, dirs_exist_ok=True)
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": f"row-{n}", "text": TEXT.format(n=n)}) + "\n" for n in range(ROWS)))
    with postgresql(home / "servers") as database, redis(home / "servers") as broker:
        environment = {
            "AIRFLOW__CELERY__BROKER_URL": broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql://{database.address}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "1",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database.address}",
            # Airflow detects a dead worker by its missing heartbeats; by default after five minutes.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW_CONN_OLLAMA_DEFAULT": json.dumps(
                {"conn_type": "ollama", "host": f"http://{ollama.host}", "port": ollama.port}
            ),
            "E2E_RESULTS": f"file://{home / 'results'}",
            "E2E_ROWS": f"file://{rows}",
        }
        workers = {
            name: ["celery", "worker", "--celery-hostname", f"{name}@%h", "--skip-serve-logs"] for name in WORKERS
        }
        with Stack(home, dags=dags, environment=environment, processes=workers) as stack:
            yield stack


def test_the_nightly_dag_runs_on_the_workers(stack: Stack) -> None:
    """Sensor, pull, documents and batch succeed on either worker, and every document has its summary."""
    run = stack.trigger("ollama_nightly_summaries", {"documents": 5, "output_path": f"file://{stack.home}/night"})

    states = stack.wait_for_run("ollama_nightly_summaries", run)

    assert states == dict.fromkeys(("server", "model", "documents", "summaries"), "success")
    assert [row["status"] for row in read(stack.home / "night" / "results.jsonl")] == ["ok"] * 5
    assert all("succeeded" in stack.processes.report([worker]) for worker in WORKERS)


def test_a_killed_worker_costs_only_what_was_in_flight(stack: Stack, ollama: Server) -> None:
    """A worker is killed in the middle of its shard. The other takes the shard over; every row is there once, in order.

    Rows in checkpoints are not sent again.
    """
    ollama.stand_in.script(Pace(first_token=0.5), path="generate", always=True)
    run = stack.trigger("e2e_sharded_batch")
    parts = stack.home / "results"
    stack.processes.wait("half-way", lambda: all(len(checkpointed(parts, n)) > ROWS / 8 for n in (0, 1)), timeout=90)
    before = checkpointed(parts, 0) | checkpointed(parts, 1)

    stack.processes.kill("worker-1")
    states = stack.wait_for_run("e2e_sharded_batch", run)

    assert states == dict.fromkeys(("summaries.shards[0]", "summaries.shards[1]", "summaries.merge"), "success")
    tries = stack.call("GET", f"/dags/e2e_sharded_batch/dagRuns/{run}/taskInstances")["task_instances"]
    assert sorted(task["try_number"] for task in tries) == [1, 1, 2]
    (results,) = parts.glob("*/results.jsonl")
    done = read(results)
    assert [row["id"] for row in done] == [f"row-{n}" for n in range(ROWS)]
    assert {row["status"] for row in done} == {"ok"}
    assert not results.with_name("failed.jsonl").read_text()
    prompts = [seen.json.get("prompt", "") for seen in ollama.stand_in.requests if seen.path == "/api/generate"]
    asked = Counter(prompt.removeprefix(PROMPT) for prompt in prompts if prompt.startswith(PROMPT))
    places = {row["key"]: row["index"] for row in done}
    assert {asked[TEXT.format(n=places[key])] for key in before} == {1}
    # Besides one request for each row: at most those of the killed worker that were open.
    assert sum(asked.values()) - ROWS <= 2


def checkpointed(results: Path, shard: int) -> set[str]:
    """Return the keys of the rows in a shard's checkpoints."""
    return {row["key"] for part in results.glob(f"*/parts/*.{shard}of2.jsonl") for row in read(part)}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
