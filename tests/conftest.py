"""Configure Airflow for the tests: an AIRFLOW_HOME for each test worker, set before anything imports Airflow."""

import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

assert "airflow" not in sys.modules, "a plugin has imported Airflow before its home was set"

_HOME = Path(tempfile.mkdtemp(prefix="airflow-home-"))
_DAGS = _HOME / "dags"
_DAGS.mkdir()

for _name in list(os.environ):
    if _name.startswith("AIRFLOW_") or _name.upper().endswith("_PROXY"):
        del os.environ[_name]
os.environ |= {
    "AIRFLOW_HOME": str(_HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(_DAGS),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME}/airflow.db",
    # Tests send nothing to other machines: no update check, no usage statistics.
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "SCARF_ANALYTICS": "False",
}
if version("apache-airflow").startswith("2."):
    # The default executor of Airflow 2 does not work with SQLite.
    os.environ["AIRFLOW__CORE__EXECUTOR"] = "SequentialExecutor"


# The same inputs in each run, on every machine: a test that fails once fails again. The profile "search" draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("search", max_examples=10_000, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """The AIRFLOW_HOME of this worker."""
    return _HOME


@pytest.fixture(scope="session")
def dags_folder() -> Path:
    """The DAGs folder of this worker's Airflow."""
    return _DAGS


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
