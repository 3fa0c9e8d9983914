"""Airflow's UI in a real browser, from the connection form to the results of a nightly batch."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow import __version__ as version
from playwright.sync_api import Locator, Page, expect

from ollama_provider.provider_info import EXTRA_FIELDS
from ollama_provider.testing import Pace, Respond, Server
from tests.e2e.stack import USER, Stack
from tests.processes import free_port

DAGS = Path(__file__).parents[3] / "dags"
#: Airflows that refuse to test a connection without a port (https://github.com/apache/airflow/pull/73298), as
#: docs/reference/connection.md says.
TEST_NEEDS_A_PORT = {"3.3.1", "3.3.2"}

Screenshot = Callable[[Page | Locator, str], None]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Airflow with the DAGs of this project."""
    # The directory is visible in screenshots.
    with Stack(tmp_path_factory.mktemp("airflow", numbered=False), dags=DAGS) as stack:
        yield stack


@pytest.fixture
def airflow(page: Page, stack: Stack) -> Page:
    """Airflow's UI, logged in."""
    page.goto(stack.url)
    page.get_by_label("Username").fill(USER)
    page.get_by_label("Password").fill(stack.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    return page


def test_the_form_makes_a_connection(airflow: Page, stack: Stack, ollama: Server, screenshot: Screenshot) -> None:
    """The form stores the filled fields, and the *Test* button uses them. Empty fields have no value."""
    parts = urlsplit(ollama.url)
    airflow.goto(f"{stack.url}/connections")
    airflow.get_by_role("button", name="Add Connection").click()
    form = airflow.get_by_role("dialog")
    form.get_by_label("Connection ID").fill("from_the_form")
    choose_type(form, "Ollama")
    form.get_by_label("Host").fill("https://ollama.example.com/base")
    form.get_by_label("API key").fill("not-for-everybody")
    screenshot(airflow, "connection-standard-fields")
    form.get_by_label("Host").fill(f"{parts.scheme}://{parts.hostname}")
    form.get_by_label("Port").fill(str(parts.port))
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    field(form, "Default model").get_by_role("textbox").fill("llama3.2")
    paste(field(form, "Default options"), '{"num_ctx": 8192}')
    field(form, "First token timeout").get_by_role("spinbutton").fill("600")
    field(form, "Pull missing models").get_by_role("checkbox").press("Space")
    field(form, "Default model").scroll_into_view_if_needed()
    screenshot(airflow, "connection-extra-fields")
    form.get_by_role("button", name="Save").click()
    expect(airflow.get_by_role("row", name="from_the_form")).to_be_visible()

    made = stack.call("GET", "/connections/from_the_form")
    assert (made["conn_type"], made["port"], made["password"]) == ("ollama", parts.port, "***")
    extra = json.loads(made["extra"])
    assert extra.pop("options") in ({"num_ctx": 8192}, '{"num_ctx": 8192}')  # text before Airflow 3.2
    filled = {"model": "llama3.2", "first_token_timeout": 600, "auto_pull": False}
    # Airflow stores null for empty fields.
    assert extra == dict.fromkeys(EXTRA_FIELDS.keys() - {"options"}) | filled
    notice = press_test(airflow, stack, "from_the_form")
    expect(notice).to_contain_text(f"Ollama 0.24.0 at {ollama.url}")


def test_the_quickstart_can_be_tested(airflow: Page, stack: Stack, ollama: Server) -> None:
    """With just the fields of the quickstart, the button shows this provider's message."""
    fill_in(airflow, stack, {"Connection ID": "quickstart", "Host": ollama.host, "Port": str(ollama.port)})

    notice = press_test(airflow, stack, "quickstart")

    expect(notice).to_contain_text(f"Ollama 0.24.0 at {ollama.url}")


def test_a_connection_without_a_port(airflow: Page, stack: Stack, ollama: Server) -> None:
    """A port in the host field works for hook and command; for the button, not in the Airflows that the page names.

    When the form is opened and saved again, there is still no port.
    """
    fill_in(airflow, stack, {"Connection ID": "no_port", "Host": f"{ollama.host}:{ollama.port}"})

    notice = press_test(airflow, stack, "no_port")

    expect(notice).to_contain_text("Bad Request" if version in TEST_NEEDS_A_PORT else f"Ollama 0.24.0 at {ollama.url}")
    assert "Connection success!" in stack.airflow("connections", "test", "no_port")
    airflow.goto(f"{stack.url}/connections")
    airflow.get_by_role("row", name="no_port").get_by_role("button", name="Edit Connection").click()
    form = airflow.get_by_role("dialog")
    form.get_by_label("Description").fill("Saved again")
    form.get_by_role("button", name="Save").click()
    expect(form).not_to_be_visible()
    made = stack.call("GET", "/connections/no_port")
    assert (made["port"], made["description"]) == (None, "Saved again")


def test_an_example_says_what_it_is_for(airflow: Page, stack: Stack) -> None:
    """The list shows the DAG's description, and *Docs* its docstring."""
    stack.wait_for_dag("ollama_first_batch")
    airflow.goto(f"{stack.url}/dags?name_pattern=ollama_first_batch")
    airflow.get_by_role("link", name="ollama_first_batch").hover()
    expect(airflow.get_by_text("A summary of each line of some files")).to_be_visible()

    airflow.get_by_role("link", name="ollama_first_batch").click()
    airflow.get_by_role("button", name="Dag Docs").click()

    expect(airflow.get_by_role("dialog")).to_contain_text("results are in summaries/results.jsonl")


def test_the_button_says_what_is_there(airflow: Page, stack: Stack, ollama: Server, screenshot: Screenshot) -> None:
    """For a usable server, the message has its version and models."""
    add_connection(stack, "test_success", ollama.url, {"model": "llama3.2"})

    notice = press_test(airflow, stack, "test_success")

    expect(notice).to_contain_text(f"Ollama 0.24.0 at {ollama.url}")
    expect(notice).to_contain_text("llama3.2")
    screenshot(airflow, "connection-test-success")


def test_the_button_says_that_nobody_listens(airflow: Page, stack: Stack, screenshot: Screenshot) -> None:
    """For a refused connection, the message has the host."""
    url = f"http://127.0.0.1:{free_port()}"
    add_connection(stack, "test_refused", url)

    notice = press_test(airflow, stack, "test_refused")

    expect(notice).to_contain_text("refused")
    expect(notice).to_contain_text(url)
    screenshot(airflow, "connection-test-refused")


def test_the_button_says_that_the_key_is_wrong(
    airflow: Page, stack: Stack, ollama: Server, screenshot: Screenshot
) -> None:
    """For a proxy that refuses the API key, the message has the status, but neither key nor header."""
    ollama.stand_in.script(Respond(401, "<html>Unauthorized</html>"), path="*", always=True)
    add_connection(stack, "test_unauthorized", ollama.url, password="not-this-one")

    notice = press_test(airflow, stack, "test_unauthorized")

    expect(notice).to_contain_text("401")
    expect(notice).to_contain_text(ollama.url)
    expect(notice).not_to_contain_text("not-this-one")
    screenshot(airflow, "connection-test-unauthorized")


def test_a_connection_that_is_edited_keeps_what_it_has(airflow: Page, stack: Stack, tmp_path: Path) -> None:
    """Editing a connection that was created without the form changes only the edited field. Secrets are not shown."""
    extra = {
        "model": "llama3.2",
        "options": {"num_ctx": 8192},
        "keep_alive": 0,
        "auto_pull": False,
        "idle_timeout": 2.5,
        "max_retry_seconds": 60,
        "headers": {"X-Token": "not-for-everybody", "X-Tenant": "team-blue"},
    }
    add_connection(stack, "made_by_api", "http://gpu1:11434", extra, password="not-for-everybody-either")
    airflow.goto(f"{stack.url}/connections")
    airflow.get_by_role("row", name="made_by_api").get_by_role("button", name="Edit Connection").click()
    form = airflow.get_by_role("dialog")
    form.get_by_label("Host").fill("http://gpu2")
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    field(form, "Default model").get_by_role("textbox").fill("gemma3")
    expect(field(form, "Pull missing models").get_by_role("checkbox")).not_to_be_checked()
    form.get_by_role("button", name="Save").click()
    expect(form).not_to_be_visible()

    shown = stack.call("GET", "/connections/made_by_api")
    assert (shown["host"], shown["password"]) == ("http://gpu2", "***")
    assert json.loads(shown["extra"])["headers"] == {"X-Token": "***", "X-Tenant": "team-blue"}
    stack.airflow("connections", "export", str(tmp_path / "connections.json"))
    stored = json.loads((tmp_path / "connections.json").read_text())["made_by_api"]
    assert stored["password"] == "not-for-everybody-either"
    assert json.loads(stored["extra"]) == extra | {"model": "gemma3"}


@pytest.mark.ollama(parallel=2)
def test_a_night_from_trigger_to_results(airflow: Page, stack: Stack, ollama: Server, screenshot: Screenshot) -> None:
    """The nightly DAG is triggered, its log shows the progress, it succeeds, and its results are linked.

    The run of last night, which begins when the DAG is unpaused, goes first: its 12 documents are not asked again.
    """
    ollama.stand_in.script(Pace(first_token=4), path="generate", always=True)
    add_connection(stack, "ollama_default", ollama.url)
    stack.wait_for_dag("ollama_nightly_summaries")
    airflow.goto(f"{stack.url}/dags/ollama_nightly_summaries")
    airflow.get_by_role("button", name="Trigger").click()
    form = airflow.get_by_role("dialog")
    form.get_by_label("documents").fill("30")
    screenshot(airflow, "nightly-trigger")
    form.get_by_role("button", name="Trigger").click()

    airflow.get_by_role("row", name="summaries").get_by_role("link", name="summaries").click()
    progress = airflow.get_by_text(re.compile(r"done=\d+/30 \(\d+ %\) ok=\d+ failed=0 reused=12 .* eta=")).first
    expect(progress).to_be_visible(timeout=120_000)
    screenshot(airflow, "nightly-log")
    airflow.get_by_role("navigation", name="breadcrumb").get_by_role("link", name="manual__").click()
    # The run and its four tasks.
    expect(airflow.get_by_text("Success", exact=True).filter(visible=True)).to_have_count(5, timeout=120_000)
    screenshot(airflow, "nightly-success")

    airflow.get_by_role("row", name="summaries").get_by_role("link", name="summaries").click()
    airflow.get_by_role("link", name="Details", exact=True).click()
    with airflow.context.expect_page() as opened:
        # Some versions open the link in a new tab, others do not. The middle button does so in all.
        airflow.get_by_role("link", name="Results", exact=True).click(button="middle")
    batch = opened.value
    expect(batch.get_by_role("heading", level=1)).to_have_text("Complete All 30 rows have a good answer")
    expect(batch.get_by_text(f"{stack.home}/ollama/summaries", exact=True)).to_be_visible()
    # Web pages cannot link to local files, so the user copies the path.
    airflow.goto(f"file://{stack.home}/ollama/summaries")
    airflow.get_by_role("link", name="results.jsonl").click()
    results = [json.loads(line) for line in airflow.locator("body").inner_text().splitlines()]
    assert [row["index"] for row in results] == list(range(30))
    assert {row["status"] for row in results} == {"ok"}


@pytest.mark.ollama_servers({"parallel": 2}, {"parallel": 2}, {"parallel": 2})
def test_three_servers_from_the_form_to_the_results(airflow: Page, stack: Stack, ollama_servers: list[Server]) -> None:
    """The form takes three hosts, *Test* has a line for each, and a night is shared among all of them."""
    urls = [server.url for server in ollama_servers]
    if "ollama_default" in {each["connection_id"] for each in stack.call("GET", "/connections")["connections"]}:
        stack.call("DELETE", "/connections/ollama_default")
    # The addresses have ports of their own; that of the field is for the button of some Airflows.
    fields = {"Connection ID": "ollama_default", "Host": ", ".join(urls), "Port": "11434"}
    fill_in(airflow, stack, fields)

    notice = press_test(airflow, stack, "ollama_default")

    expect(notice).to_contain_text("3 of 3 servers can be used:")
    for url in urls:
        expect(notice).to_contain_text(f"Ollama 0.24.0 at {url} has ")
    ollama_servers[1].stop()
    notice = press_test(airflow, stack, "ollama_default")
    expect(notice).to_contain_text("2 of 3 servers can be used:")
    expect(notice).to_contain_text(urls[1])
    expect(notice).to_contain_text("refused")
    ollama_servers[1].start()

    for server in ollama_servers:
        server.stand_in.script(Pace(first_token=1), path="generate", always=True)
    dag, out = "ollama_nightly_summaries", stack.home / "ollama/three"
    run = stack.trigger(dag, {"documents": 30, "output_path": f"file://{out}"})
    airflow.goto(f"{stack.url}/dags/{dag}/runs/{run}/tasks/summaries")
    split = airflow.get_by_text("The servers of this run:").first
    expect(split).to_be_visible(timeout=240_000)
    assert set(stack.wait_for_run(dag, run).values()) == {"success"}
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["index"], row["status"]) for row in results] == [(number, "ok") for number in range(30)]
    assert {row["server"] for row in results} == set(urls)


def fill_in(page: Page, stack: Stack, fields: dict[str, str]) -> None:
    """Create a connection of type Ollama with the form, with just these fields."""
    page.goto(f"{stack.url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    choose_type(form, "Ollama")
    for label, text in fields.items():
        form.get_by_label(label).fill(text)
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row", name=fields["Connection ID"])).to_be_visible()


def choose_type(form: Locator, name: str) -> None:
    """Choose the connection type in a list that is filtered by the typed text."""
    box = form.get_by_role("combobox", name="Connection Type")
    box.focus()
    box.press_sequentially(name)
    box.press("Enter")
    expect(form.get_by_role("button", name="Extra Fields", exact=True)).to_be_visible()


def paste(part: Locator, text: str) -> None:
    """Replace the content of a part of the form at once. Its JSON editor would complete typed brackets and quotes."""
    page = part.page
    page.context.grant_permissions(["clipboard-write", "clipboard-read"])
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    part.get_by_role("textbox").focus()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.press("ControlOrMeta+V")


def field(form: Locator, label: str) -> Locator:
    """Return the part of the form with this label."""
    return form.get_by_role("group").filter(has_text=re.compile(f"^{re.escape(label)}"))


def add_connection(stack: Stack, name: str, url: str, extra: dict[str, Any] | None = None, **more: str) -> None:
    """Create a connection without the form."""
    parts = urlsplit(url)
    body = {
        "connection_id": name,
        "conn_type": "ollama",
        "host": f"{parts.scheme}://{parts.hostname}",
        "port": parts.port,
    }
    stack.call("POST", "/connections", json={**body, **more, "extra": json.dumps(extra or {})})


def press_test(page: Page, stack: Stack, connection: str) -> Locator:
    """Press the *Test* button of a connection's row; return the element with the message."""
    page.goto(f"{stack.url}/connections")
    page.get_by_role("row", name=connection).get_by_role("button", name="Test Connection").click()
    notice = page.get_by_role("region", name="Notifications").get_by_role("status")
    expect(notice).to_be_in_viewport(ratio=1)
    return notice
