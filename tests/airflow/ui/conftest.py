"""Airflow's API server in this process, with users of each kind, and batches that have run."""

import airflow
import pytest

if airflow.__version__.startswith("2."):  # it has no such page
    collect_ignore = ["test_access.py", "test_bucket.py", "test_pages.py", "test_rows.py", "test_servers.py"]


@pytest.fixture(scope="session")
def api_server(airflow_db):
    """The app of the API server, with the plugin as Airflow finds it."""
    from airflow.api_fastapi.app import create_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.airflow.ui.auth_manager.PerDagAuthManager")
        return create_app()


@pytest.fixture
def browse(api_server):
    """Return a function that gets a page for a user of a role: None has no rights, and ``""`` is nobody.

    A user named ``only <DAG>`` may see that DAG alone.
    """
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    client = TestClient(api_server, follow_redirects=False)

    def get(path: str, role: str | None = "viewer", user: str = "somebody"):
        client.cookies.clear()
        if role != "":
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=role))
            client.cookies.set("_token", token)
        return client.get(path)

    return get


@pytest.fixture
def run_batch(run_dag, ollama_conn, ollama, tmp_path):
    """Return a function that runs a batch of five rows, the third of which fails; it returns its DAG run."""
    from ollama_provider.testing import Respond

    ollama.stand_in.script(
        Respond(400, {"error": "<script>alert('error')</script>"}),
        where=lambda body: "no 2" in body["prompt"],
        always=True,
    )
    ollama.stand_in.script("<script>alert('answer')</script>", where=lambda body: "no 3" in body["prompt"], always=True)

    def run(dag_id: str = "parcels", **arguments: object):
        given = {
            "task_id": "answers",
            "model": "llama3.2",
            "rows": [f"Parcel no {number}" for number in range(5)],
            "output_path": f"file://{tmp_path}/{dag_id}",
            "resume": "one",
            **arguments,
        }
        return run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator
with DAG({dag_id!r}, schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator(**{given!r}, failures=FailurePolicy(max_failed_rows=1))
""")

    return run


@pytest.fixture
def stored(airflow_db):
    """Return a function that stores a connection in Airflow's database, for one test; its id begins with ``test``."""
    from airflow.models import Connection
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    def store(conn_id, conn_type="ollama", **fields):
        with create_session() as session:
            session.add(Connection(conn_id=conn_id, conn_type=conn_type, **fields))
        return conn_id

    yield store
    with create_session() as session:
        session.execute(delete(Connection).where(Connection.conn_id.like("test%")))
