"""The connection form of Airflow 2, which the hook's own methods make, in a real browser."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect

from ollama_provider.testing import Server
from tests.e2e.stack import AIRFLOW, USER
from tests.processes import Processes, free_port


@dataclass(frozen=True)
class Webserver:
    """Airflow 2's webserver, and what it takes to log in."""

    url: str
    password: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """A webserver alone: a form needs no scheduler."""
    home = tmp_path_factory.mktemp("airflow")
    port = free_port()
    made = Webserver(
        url=f"http://localhost:{port}",
        password=secrets.token_urlsafe(12),
        environment={name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__WEBSERVER__SECRET_KEY": secrets.token_hex(16),
            "AIRFLOW__WEBSERVER__WORKERS": "1",
        },
    )
    user = ["--username", USER, "--password", made.password, "--role", "Admin"]
    person = ["--firstname", "A", "--lastname", "B", "--email", "a@example.com"]
    for command in (["db", "migrate"], ["users", "create", *user, *person]):
        subprocess.run([AIRFLOW, *command], env=made.environment, check=True, capture_output=True)
    with Processes(home / "processes") as processes:
        processes.start("webserver", [AIRFLOW, "webserver", "--port", str(port)], env=made.environment)
        processes.wait("listening", lambda: _answers(f"{made.url}/health"), timeout=120)
        yield made


@pytest.fixture
def form(page: Page, webserver: Webserver, ollama: Server) -> Page:
    """The form for a new connection to the stand-in, logged in and filled in."""
    page.goto(f"{webserver.url}/login/")
    page.get_by_label("Username").fill(USER)
    page.get_by_label("Password").fill(webserver.password)
    page.get_by_role("button", name="Sign In").click()
    page.goto(f"{webserver.url}/connection/add")
    page.get_by_label("Connection Id").fill("from_the_form")
    page.locator(".select2-selection").click()
    page.locator(".select2-search__field").fill("Ollama")
    page.locator(".select2-search__field").press("Enter")
    parts = urlsplit(ollama.url)
    page.get_by_label("Host").fill(f"{parts.scheme}://{parts.hostname}")
    page.get_by_label("Port").fill(str(parts.port))
    page.get_by_label("API key").fill("not-for-everybody")
    page.get_by_label("Default model").fill("llama3.2")
    page.get_by_label("First token timeout").fill("600")
    page.get_by_label("Pull missing models").fill("false")
    return page


def test_the_form_makes_a_connection(form: Page, webserver: Webserver, ollama: Server) -> None:
    """What is filled in is what a hook reads: numbers as numbers, and no as no."""
    form.get_by_role("button", name="Save").click()
    expect(form.get_by_text("Added Row")).to_be_visible()

    program = (
        "from ollama_provider.hooks import OllamaHook; s = OllamaHook('from_the_form').settings; "
        "print(s.base_url, s.model, s.timeouts.first_token, s.auto_pull)"
    )
    done = subprocess.run(
        [AIRFLOW.with_name("python"), "-c", program],
        env=webserver.environment,
        check=True,
        capture_output=True,
        text=True,
    )

    assert done.stdout.splitlines()[-1] == f"{ollama.url} llama3.2 600.0 False"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
