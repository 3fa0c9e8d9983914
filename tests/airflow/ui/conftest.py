"""Airflow's API server in this process, with users of each kind, and batches that have run."""

import airflow
import pytest

if airflow.__version__.startswith("2."):
    collect_ignore = ["test_access.py"]


@pytest.fixture(scope="session")
def api_server(airflow_db):
    """The app of the API server, with the plugin as Airflow finds it."""
    from airflow.api_fastapi.app import create_app

    return create_app()


@pytest.fixture
def browse(api_server):
    """Return a function that gets a page for a user of a role: None has no rights, and ``""`` is nobody."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    client = TestClient(api_server, follow_redirects=False)

    def get(path: str, role: str | None = "viewer"):
        client.cookies.clear()
        if role != "":
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="somebody", role=role))
            client.cookies.set("_token", token)
        return client.get(path)

    return get
