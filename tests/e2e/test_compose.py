"""Checks of the compose file for users that need no Docker: every name in it must exist."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli.cli_parser import get_parser
from airflow.configuration import conf
from airflow.dag_processing.dagbag import DagBag
from cryptography.fernet import Fernet

import ollama_provider
from ollama_provider.hooks import OllamaHook
from tests.e2e.examples import DAGS, NAMES

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
COMPOSE = DEPLOY / "docker-compose.yaml"

#: Variables that are no settings of Airflow's, by who reads them. No program here knows the names: they were looked up.
VARIABLES = {
    # The entry point of Airflow's image: scripts/docker/entrypoint_prod.sh in its repository.
    "_AIRFLOW_DB_MIGRATE": "apache/airflow",
    "_AIRFLOW_WWW_USER_CREATE": "apache/airflow",
    "_AIRFLOW_WWW_USER_USERNAME": "apache/airflow",
    "_AIRFLOW_WWW_USER_PASSWORD": "apache/airflow",
    # dumb-init, which starts it: "Signal propagation" in the documentation of Airflow's image.
    "DUMB_INIT_SETSID": "apache/airflow",
    # The C library of Airflow's image, which is built on Debian: mallopt(3).
    "MALLOC_ARENA_MAX": "apache/airflow",
    "MALLOC_TRIM_THRESHOLD_": "apache/airflow",
    # Airflow's connections. Another test checks which ones, and that they can be read.
    "AIRFLOW_CONN_OLLAMA_DEFAULT": "apache/airflow",
    # The entry point of PostgreSQL's image: docker-entrypoint.sh in docker-library/postgres.
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "postgres",
    "POSTGRES_DB": "postgres",
    # The server: envconfig/config.go in ollama/ollama.
    "OLLAMA_NUM_PARALLEL": "ollama/ollama",
}


def make_up(directory: Path) -> Path:
    """Run the script for the secrets in *directory*; return the path of the file that it wrote."""
    subprocess.run(["sh", DEPLOY / "secrets.sh"], cwd=directory, check=True)
    return directory / ".env"


def read(file: Path) -> dict[str, str]:
    """The variables in a ``.env``."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The secrets that the script for ``.env`` generates."""
    return read(make_up(tmp_path_factory.mktemp("compose")))


@pytest.fixture(scope="module")
def services(secrets: dict[str, str]) -> dict[str, Any]:
    """The services, with the secrets filled in as Docker does."""
    text = re.sub(r"\$\{(\w+):\?\}", lambda found: secrets[found[1]], COMPOSE.read_text())
    assert "${" not in text, "a variable that nothing checks"
    return yaml.safe_load(text)["services"]


@pytest.fixture(scope="module")
def airflow(services: dict[str, Any]) -> dict[str, Any]:
    """The services that run Airflow."""
    return {name: service for name, service in services.items() if "build" in service}


@pytest.mark.parametrize("name", ["docker-compose.yaml", "gpu.yaml"])
def test_it_follows_the_compose_specification(name: str) -> None:
    """The published schema of compose files accepts it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / name]

    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_images_are_named_with_their_version(services: dict[str, Any], airflow: dict[str, Any]) -> None:
    """The version of Airflow is the one that the tests run on, and every image has a fixed version."""
    pinned = metadata.version("apache-airflow")
    others = {service["image"] for name, service in services.items() if name not in airflow}

    for service in airflow.values():
        assert service["image"] == f"airflow-ollama:{pinned}"
        assert f"FROM apache/airflow:{pinned}\n" in service["build"]["dockerfile_inline"]
        assert f" apache-airflow=={pinned} airflow-provider-ollama\n" in service["build"]["dockerfile_inline"]
    assert {image.split(":")[0] for image in others} == {"ollama/ollama", "postgres", "redis"}
    assert all(re.fullmatch(r"[^:]+:\d+(\.\d+)*(-\w+)?", image) for image in others)


def test_a_wheel_beside_it_is_installed(airflow: dict[str, Any]) -> None:
    """The image copies a wheel with this package's name, and a file that always exists, which COPY needs."""
    wheel = f"airflow_provider_ollama-{ollama_provider.__version__}-py3-none-any.whl"
    for service in airflow.values():
        dockerfile = service["build"]["dockerfile_inline"]
        (copy,) = re.findall(r"^COPY (.+) (\S+)/$", dockerfile, re.MULTILINE)
        *sure, pattern = copy[0].split()

        assert fnmatch(wheel, pattern)
        assert sure == [COMPOSE.name]
        assert f"pip install --no-cache-dir --find-links {copy[1]} " in dockerfile


def test_airflow_knows_every_setting(airflow: dict[str, Any]) -> None:
    """Each ``AIRFLOW__SECTION__OPTION`` is an option of this Airflow or of its Celery provider."""
    settings = {name for service in airflow.values() for name in service["environment"] if "__" in name}

    unknown = {
        name
        for name in settings
        if (parts := name.lower().split("__"))[2] not in conf.configuration_description[parts[1]]["options"]
    }

    assert len(settings) > 10
    assert not unknown


def test_other_variables_are_known(services: dict[str, Any]) -> None:
    """Every other variable is read by the service's image."""
    others = {
        (name, "apache/airflow" if "build" in service else service["image"].partition(":")[0])
        for service in services.values()
        for name in service.get("environment", {})
        if not name.startswith("AIRFLOW__")
    }

    assert others == set(VARIABLES.items())


def test_airflow_knows_every_command(airflow: dict[str, Any]) -> None:
    """Each service runs a command of this Airflow, and together they are all its components."""
    commands = {service["command"] for service in airflow.values()}

    for command in commands:
        get_parser().parse_args(command.split())
    assert commands == {"version", "api-server", "scheduler", "dag-processor", "triggerer", "celery worker"}


def test_services_find_each_other(services: dict[str, Any], airflow: dict[str, Any]) -> None:
    """Each host in a URL is a service, and each condition that a service waits for can become true."""
    for service in airflow.values():
        values = [value for value in service["environment"].values() if "://" in value and "localhost" not in value]
        hosts = {host for value in values for host in re.findall(r"://(?:[^@/]*@)?([a-z-]+)", value)}
        assert hosts == {"api-server", "ollama", "postgres", "redis"}
    for service in services.values():
        for other, wanted in service.get("depends_on", {}).items():
            assert ("healthcheck" in services[other]) == (wanted["condition"] == "service_healthy")


def test_volumes_are_declared_and_shared(airflow: dict[str, Any]) -> None:
    """All Airflow services share DAGs, logs and results, and each named volume is declared."""
    declared = yaml.safe_load(COMPOSE.read_text())["volumes"].keys()
    mounts = {tuple(service["volumes"]) for service in airflow.values()}
    named = {mount.split(":")[0] for mount in next(iter(mounts)) if not mount.startswith(".")}

    assert len(mounts) == 1
    assert named == {"logs", "results"}
    assert declared == named | {"database", "models"}


def test_results_are_on_the_shared_volume(airflow: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All services share the directories that the DAGs of dags/ and the payloads of deferred tasks use by default."""
    monkeypatch.setenv("AIRFLOW_HOME", "/opt/airflow")  # as in Airflow's image
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ((volume,),) = {
        tuple(mount.removeprefix("results:") for mount in service["volumes"] if mount.startswith("results:"))
        for service in airflow.values()
    }
    (handover,) = {service["environment"]["AIRFLOW__OLLAMA__HANDOVER_PATH"] for service in airflow.values()}
    bag = DagBag(dag_folder=str(DAGS))
    places = {name: dag.params["output_path"] for name, dag in bag.dags.items() if "output_path" in dag.params}

    assert (bag.import_errors, sorted(bag.dags)) == ({}, NAMES)
    assert len(places) > 5
    assert {name for name, place in places.items() if not place.startswith(f"file://{volume}/")} == set()
    assert handover.startswith(f"file://{volume}/")
    for service in airflow.values():
        # If the image lacks the directory, Docker creates it for root.
        assert f"RUN mkdir {volume}\n" in service["build"]["dockerfile_inline"]


def test_the_secrets_fit(secrets: dict[str, str], tmp_path: Path) -> None:
    """The script generates exactly the secrets that the file uses, new ones each time, in the right format."""
    asked = set(re.findall(r"\$\{(\w+):\?\}", COMPOSE.read_text()))
    again = read(make_up(tmp_path))

    assert secrets.keys() == again.keys() == asked
    assert not set(secrets.values()) & set(again.values())
    Fernet(secrets["FERNET_KEY"])
    # Below 64 bytes, PyJWT warns that a key is too short for HS512.
    assert len(secrets["JWT_SECRET"]) >= 64


def test_the_secrets_are_kept(tmp_path: Path) -> None:
    """Other users cannot read the file, and a second run does not replace the keys of an existing database."""
    file = make_up(tmp_path)
    before = file.read_text()

    with pytest.raises(subprocess.CalledProcessError):
        make_up(tmp_path)

    assert file.read_text() == before
    assert file.stat().st_mode & 0o077 == 0


def test_the_connection_is_the_ollama_service(
    services: dict[str, Any], airflow: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection, read as by a task, has the host of the service and a model."""
    (value,) = {service["environment"]["AIRFLOW_CONN_OLLAMA_DEFAULT"] for service in airflow.values()}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", value)

    settings = OllamaHook().settings

    assert settings.base_url == "http://ollama:11434"
    assert settings.model == "llama3.2"
    assert "ollama" in services
