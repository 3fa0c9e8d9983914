"""Airflow for tests that need it: connections, a database, and a way to run a DAG."""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.utils.db import initdb

from ollama_provider.api.retry import without_waiting
from tests.airflow.buckets import bucket, connect_s3  # noqa: F401  # fixtures
from tests.airflow.databases import database, duck, mysql, pgvector, postgres, sqlite  # noqa: F401  # fixtures
from tests.services import S3, Mariadb, Postgresql, mariadb, postgresql, program, s3

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before 3.2
    from airflow.models.dagbag import DagBag

try:
    from airflow.sdk.execution_time import supervisor
except ImportError:  # Airflow 2
    pass
else:
    # Airflow 3.1 and 3.2 build the API of `dag.test` anew for each run, in three seconds; 3.3 keeps it, like this.
    supervisor.in_process_api_server = functools.lru_cache(maxsize=1)(supervisor.in_process_api_server)

AddConnection = Callable[..., str]
RunDag = Callable[..., Any]


@pytest.fixture
def add_connection(monkeypatch: pytest.MonkeyPatch) -> AddConnection:
    """Return a function that adds an Airflow connection of type Ollama and returns its id.

    Its keywords are the fields of a connection; *extra* may be a dict or text.
    """

    def add(conn_id: str = "ollama_default", **fields: Any) -> str:
        value = {"conn_type": "ollama", **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(value))
        return conn_id

    return add


@pytest.fixture(scope="session")
def a_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgresql]:
    """A PostgreSQL server of this worker. Tests that need one are skipped where it is not installed."""
    try:
        program("initdb")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(scope="session")
def a_pgvector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgresql]:
    """A PostgreSQL server of this worker that has pgvector."""
    with postgresql(tmp_path_factory.mktemp("pgvector"), with_pgvector=True) as server:
        yield server


@pytest.fixture(scope="session")
def a_mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mariadb]:
    """A MariaDB server of this worker. Tests that need one are skipped where it is not installed."""
    try:
        program("mariadb-install-db")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with mariadb(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture(scope="session")
def an_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server of this worker."""
    with s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def airflow_db(airflow_home: Path) -> Path:
    """The metadata database of this worker, created at first need; its file."""
    initdb()
    return airflow_home / "airflow.db"


@pytest.fixture
def run_dag(airflow_db: Path, dags_folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunDag:
    """Return a function that runs a DAG in this process, with all its tasks, and returns the DagRun.

    Its argument is the source of a DAG file that holds one DAG, or the path of such a file. The DagRun's `state` and
    `get_task_instances()` say how it went; XComs are in ``task_instance.xcom_pull``.
    """

    # Python takes bytecode for up to date by its source's size and second of change: two sources of one length, run
    # within a second, would be one.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(dag_file: str | Path, **conf: Any) -> Any:
        source = dag_file.read_text() if isinstance(dag_file, Path) else dag_file
        (path := dags_folder / "dag_under_test.py").write_text(source)
        try:
            bag = DagBag(dag_folder=str(path))
            assert not bag.import_errors, bag.import_errors
            (dag,) = bag.dags.values()
            if hasattr(dag, "sync_to_db"):  # Airflow 2 forgets the events of assets that are not stored
                dag.sync_to_db()
            return dag.test(run_conf=conf or None)
        finally:
            path.unlink()

    return run


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let triggers end at once: no scheduler of a test has to hear first that their task has left its worker."""
    monkeypatch.setattr("ollama_provider.triggers._MINIMUM_SECONDS", 0.0)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Make the waits before new attempts zero."""
    with without_waiting():
        yield
