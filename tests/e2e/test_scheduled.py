"""Run every DAG of dags/ with Airflow's scheduler, workers and triggerer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_provider.testing import Server, StandIn, serve
from tests.e2e.examples import DAGS, DEFERRABLE, DEFERRED, NAMES, provide
from tests.e2e.stack import Stack
from tests.services import postgresql

#: Started by an asset of another DAG, and by nobody else: by the night that is complete, and by a batch itself.
FOLLOWERS = ("ollama_after_the_night", "ollama_answered_tickets")


@pytest.fixture(scope="module")
def ollama() -> Iterator[Server]:
    """The Ollama server of all DAGs here."""
    with serve(StandIn(parallel=4)) as server:
        yield server


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """The value of ``[operators] default_deferrable``."""
    return request.param


@pytest.fixture
def stack(deferrable: bool, ollama: Server, tmp_path: Path) -> Iterator[Stack]:
    """Airflow with the DAGs of this project and their input."""
    # Not SQLite, which allows one writer: with all DAGs at once the scheduler ends with a locked database.
    with (
        postgresql(tmp_path / "servers") as database,
        postgresql(tmp_path / "pgvector", with_pgvector=True) as pgvector,
    ):
        environment = {
            **provide(tmp_path, ollama, pgvector),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database.address}",
            "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": str(deferrable),
        }
        with Stack(tmp_path, dags=DAGS, environment=environment) as stack:
            yield stack


@pytest.mark.timeout(900)
def test_every_dag_runs_to_its_end(stack: Stack, deferrable: bool) -> None:
    """All DAGs succeed unchanged, at the same time, and wait in the triggerer where Airflow's configuration says."""
    for follower in FOLLOWERS:
        stack.wait_for_dag(follower)
        stack.call("PATCH", f"/dags/{follower}", json={"is_paused": False})
    runs = {dag: stack.trigger(dag) for dag in NAMES if dag not in FOLLOWERS}

    tasks = {dag: stack.wait_for_run(dag, run, timeout=600) for dag, run in runs.items()}
    for follower in FOLLOWERS:
        stack.processes.wait(
            f"{follower} started by its asset", lambda dag=follower: _runs(stack, dag) != [], timeout=60
        )
        # It has one run for each run of the other DAG, and a schedule may have started one besides the triggered one.
        first, *_ = _runs(stack, follower)
        tasks[follower] = stack.wait_for_run(follower, first)

    failed = {dag: states for dag, states in tasks.items() if not set(states.values()) <= {"success", "skipped"}}
    assert failed == {}
    # The triggerer writes a log file beside that of each task that was deferred.
    waited = {dag for dag in NAMES if any(stack.home.glob(f"logs/dag_id={dag}/**/*.trigger.*.log"))}
    assert waited == (DEFERRABLE if deferrable else DEFERRED)


def _runs(stack: Stack, dag: str) -> list[str]:
    found = stack.call("GET", f"/dags/{dag}/dagRuns")["dag_runs"]
    return [run["dag_run_id"] for run in found if run["run_type"] == "asset_triggered"]
