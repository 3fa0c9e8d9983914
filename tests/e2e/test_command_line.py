"""Run every DAG of dags/ with ``airflow dags test``, with waits in workers and in triggers."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ollama_provider.testing import Server, StandIn, serve
from tests.e2e.examples import DAGS, DEFERRABLE, DEFERRED, NAMES, provide
from tests.services import Postgresql, postgresql

Airflow = Callable[..., str]


@pytest.fixture(scope="module")
def ollama() -> Iterator[Server]:
    """The Ollama server of all DAGs here."""
    with serve(StandIn(parallel=4)) as server:
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["blocking", "deferred"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """The value of ``[operators] default_deferrable``."""
    return request.param


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, deferrable: bool) -> Path:
    """AIRFLOW_HOME and working directory; one for each value of ``default_deferrable``."""
    return tmp_path_factory.mktemp("airflow")


@pytest.fixture(scope="module")
def pgvector(home: Path) -> Iterator[Postgresql]:
    """The database of vectors."""
    with postgresql(home / "servers", with_pgvector=True) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(home: Path, ollama: Server, pgvector: Postgresql, deferrable: bool) -> Airflow:
    """Return a function that runs an Airflow command and returns its output."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        **provide(home, ollama, pgvector),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": str(deferrable),
    }

    def run(*arguments: str) -> str:
        command = [Path(sys.executable).with_name("airflow"), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run("db", "migrate")
    return run


@pytest.mark.parametrize("dag", NAMES)
def test_a_dag_runs_to_its_end(airflow: Airflow, home: Path, deferrable: bool, dag: str) -> None:
    """Each DAG succeeds unchanged and without parameters, and waits where Airflow's configuration says."""
    output = airflow("dags", "test", dag)

    with sqlite3.connect(home / "airflow.db") as database:
        states = database.execute("SELECT state FROM dag_run WHERE dag_id = ?", [dag]).fetchall()
        tasks = database.execute("SELECT state FROM task_instance WHERE dag_id = ?", [dag]).fetchall()
    database.close()
    assert states == [("success",)], output
    assert set(tasks) <= {("success",), ("skipped",)}
    assert ("success",) in tasks
    assert ("running trigger in line" in output) == (dag in (DEFERRABLE if deferrable else DEFERRED)), output
