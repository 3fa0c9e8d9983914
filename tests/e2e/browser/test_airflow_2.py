"""The UI of Airflow 2 in a real browser, where it differs from Airflow 3: the connection form and batch results."""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect

from ollama_provider.testing import Server
from tests.e2e.stack import AIRFLOW, USER
from tests.processes import Processes, free_port

DAGS = Path(__file__).parents[3] / "dags"
DAG = "ollama_nightly_summaries"


@dataclass(frozen=True)
class Webserver:
    """Airflow 2's webserver, with user and password."""

    url: str
    password: str
    environment: dict[str, str]

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a command in the same environment and return its output."""
        done = subprocess.run(command, env=self.environment | environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """Only a webserver: the form and the results of a finished run need no scheduler."""
    home = tmp_path_factory.mktemp("airflow")
    port = free_port()
    made = Webserver(
        url=f"http://localhost:{port}",
        password=secrets.token_urlsafe(12),
        environment={name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__WEBSERVER__SECRET_KEY": secrets.token_hex(16),
            "AIRFLOW__WEBSERVER__WORKERS": "1",
        },
    )
    user = ["--username", USER, "--password", made.password, "--role", "Admin"]
    person = ["--firstname", "A", "--lastname", "B", "--email", "a@example.com"]
    made.run(AIRFLOW, "db", "migrate")
    made.run(AIRFLOW, "users", "create", *user, *person)
    with Processes(home / "processes") as processes:
        processes.start("webserver", [AIRFLOW, "webserver", "--port", str(port)], env=made.environment)
        processes.wait("listening", lambda: _answers(f"{made.url}/health"), timeout=120)
        yield made


@pytest.fixture
def airflow(page: Page, webserver: Webserver) -> Page:
    """Airflow's UI, logged in."""
    page.goto(f"{webserver.url}/login/")
    page.get_by_label("Username").fill(USER)
    page.get_by_label("Password").fill(webserver.password)
    page.get_by_role("button", name="Sign In").click()
    return page


@pytest.fixture
def form(airflow: Page, webserver: Webserver, ollama: Server) -> Page:
    """The form for a new connection to the stand-in, filled in."""
    airflow.goto(f"{webserver.url}/connection/add")
    airflow.get_by_label("Connection Id").fill("from_the_form")
    choose_type(airflow, "Ollama")
    parts = urlsplit(ollama.url)
    airflow.get_by_label("Host").fill(f"{parts.scheme}://{parts.hostname}")
    airflow.get_by_label("Port").fill(str(parts.port))
    airflow.get_by_label("API key").fill("not-for-everybody")
    airflow.get_by_label("Default model").fill("llama3.2")
    airflow.get_by_label("Default options").fill('{"num_ctx": 8192}')
    airflow.get_by_label("First token timeout").fill("600.5")
    airflow.get_by_label("Pull missing models").fill("false")
    return airflow


def test_the_form_makes_a_connection(form: Page, webserver: Webserver, ollama: Server) -> None:
    """A filled form can be tested, and a hook reads the same values, also after opening and saving the form again."""
    form.locator("#test-connection").click()
    expect(form.get_by_text(f"Ollama 0.24.0 at {ollama.url}")).to_be_visible()
    form.get_by_role("button", name="Save").click()
    expect(form.get_by_text("Added Row")).to_be_visible()
    form.goto(f"{webserver.url}/connection/edit/1")
    form.get_by_label("Description").fill("Saved again")
    form.get_by_role("button", name="Save").click()
    expect(form.get_by_text("Changed Row")).to_be_visible()

    program = (
        "from ollama_provider.hooks import OllamaHook; s = OllamaHook('from_the_form').settings; "
        "print(s.base_url, s.model, s.options.num_ctx, s.timeouts.first_token, s.auto_pull)"
    )
    printed = webserver.run(AIRFLOW.with_name("python"), "-c", program)

    assert printed.splitlines()[-1] == f"{ollama.url} llama3.2 8192 600.5 False"


def test_a_connection_without_a_port(airflow: Page, webserver: Webserver, ollama: Server) -> None:
    """The *Test* button works with the port in the host field."""
    airflow.goto(f"{webserver.url}/connection/add")
    choose_type(airflow, "Ollama")
    airflow.get_by_label("Host").fill(f"{ollama.host}:{ollama.port}")

    airflow.locator("#test-connection").click()

    expect(airflow.get_by_text(f"Ollama 0.24.0 at {ollama.url}")).to_be_visible()


def test_a_batch_says_where_its_results_are(
    airflow: Page, webserver: Webserver, ollama: Server, tmp_path: Path
) -> None:
    """The *Results* button of the task opens a page with the directory."""
    conf = {"documents": 2, "output_path": f"file://{tmp_path}/summaries"}
    connection = {"conn_type": "ollama", "host": ollama.url}
    webserver.run(AIRFLOW, "dags", "reserialize")
    webserver.run(
        *[AIRFLOW, "dags", "test", DAG, "2026-11-21", "--conf", json.dumps(conf)],
        AIRFLOW_CONN_OLLAMA_DEFAULT=json.dumps(connection),
    )
    task = {"dag_run_id": "manual__2026-11-21T00:00:00+00:00", "task_id": "summaries"}
    airflow.goto(f"{webserver.url}/dags/{DAG}/grid?{urlencode(task)}")
    airflow.get_by_role("link", name="Results", exact=True).click()

    directory = airflow.get_by_role("row", name=re.compile("^results "))
    expect(directory).to_contain_text(f"file://{tmp_path}/summaries")
    assert (tmp_path / "summaries/results.jsonl").exists()


def choose_type(page: Page, name: str) -> None:
    """Choose the connection type in a list that is filtered by the typed text."""
    page.locator(".select2-selection").click()
    page.locator(".select2-search__field").fill(name)
    page.locator(".select2-search__field").press("Enter")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
