"""The page *Ollama* in Airflow's UI: batches from their start to their report, the theme, the button, no rights."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from airflow import __version__ as version
from playwright.sync_api import FrameLocator, Locator, Page, expect

from ollama_provider.testing import Pace, Respond, Server, StandIn, serve
from tests.e2e.stack import USER, Stack

Screenshot = Callable[[Page | Locator, str], None]
AIRFLOW = tuple(map(int, version.split(".")[:2]))
#: A user whom Airflow's simple auth manager gives no role.
NOBODY = "visitor"
DAG_FILE = """
    from datetime import UTC, datetime
    from airflow.providers.common.compat.sdk import DAG
    from ollama_provider.batch import FailurePolicy, Pace, Rehearsal
    from ollama_provider.operators import OllamaBatchOperator

    with DAG("parcels", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        OllamaBatchOperator(
            task_id="complaints",
            model="llama3.2",
            rows=[{"id": f"order-{number:03}", "text": f"Parcel {number}"} for number in range(240)],
            id_column="id",
            prompt="What does the customer complain about? {{ row.text }}",
            output_path="{{ dag_run.conf.get('output_path') }}",
            resume="task",
            failures=FailurePolicy(max_failed_rows=30, max_attempts=1),
            pace=Pace(report_every=2, concurrency=2),
        )

    said = (
        "The invoice of May was sent twice.",
        "My router restarts every 76 minutes since the update.",
        "The app shows the data of last month again.",
        "Please change the address of delivery to Mill Street 74.",
        "Nobody has answered my letter of March.",
    )
    tickets = [" ".join(said[(number + step) % 5] for step in range(2 + number // 5 % 4)) for number in range(3000)]
    with DAG("tickets", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        OllamaBatchOperator(
            task_id="rehearsal",
            model="llama3.2",
            rows=[{"id": f"ticket-{number}", "text": text} for number, text in enumerate(tickets)],
            id_column="id",
            prompt="Summarise in one sentence: {{ row.text }}",
            mode=Rehearsal(show_texts=True),
            output_path="{{ dag_run.conf.get('output_path') }}",
            resume="task",
        )
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on which each tenth row fails."""
    with serve(StandIn(parallel=2)) as server:
        server.stand_in.script(
            Respond(400, {"error": "<script>alert('the prompt is too long')</script>"}),
            where=lambda body: body.get("prompt", "").endswith("7"),
            always=True,
        )
        server.stand_in.script(
            Pace(first_token=0.2), where=lambda body: not body.get("prompt", "").endswith("7"), always=True
        )
        yield server


@pytest.fixture(scope="module")
def stack(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Airflow with one DAG, and with a user without rights."""
    home = tmp_path_factory.mktemp("page", numbered=False)
    dags = home / "dags"
    dags.mkdir()
    (dags / "parcels.py").write_text(dedent(DAG_FILE))
    environment = {
        "AIRFLOW_CONN_OLLAMA_DEFAULT": json.dumps({"conn_type": "ollama", "host": server.url}),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin,{NOBODY}:",
    }
    with Stack(home, dags=dags, environment=environment) as stack:
        yield stack


def log_in(page: Page, stack: Stack, user: str) -> None:
    """Log in; whatever a script shows fails the test."""
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    passwords = json.loads((stack.home / "passwords.json").read_text())
    page.goto(stack.url)
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(passwords[user])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Password").wait_for(state="detached")


@pytest.fixture
def airflow(page: Page, stack: Stack) -> Page:
    """Airflow's UI, logged in."""
    log_in(page, stack, USER)
    return page


def frame(page: Page) -> FrameLocator:
    """Our page inside of Airflow's."""
    return page.frame_locator("iframe[title=Ollama]")


def open_from_the_menu(page: Page) -> FrameLocator:
    """Open the page as people do."""
    page.get_by_role("link", name="Ollama").click()
    return frame(page)


def test_a_batch_from_its_start_to_its_report(airflow: Page, stack: Stack, screenshot: Screenshot) -> None:
    """It is in the list at once, and page and list follow it without a reload until it has ended."""
    out = stack.home / "complaints"
    run = stack.trigger("parcels", {"output_path": f"file://{out}"})
    stack.processes.wait("at work", (out / "progress.json").exists, timeout=120)

    page = open_from_the_menu(airflow)

    row = page.get_by_role("row", name=re.compile(run.replace("+", r"\+")))
    expect(row).to_contain_text(re.compile(r"[1-9]\d* of 240"))
    expect(row).to_contain_text("running")
    screenshot(airflow, "page-batches")
    row.get_by_role("link").click()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text(re.compile(r"Running\s+\d+ of 240 rows done"))
    before = heading.inner_text()
    expect(heading).not_to_have_text(before)
    expect(heading).to_have_text("Complete 24 of 240 rows failed", timeout=120_000)
    expect(page.get_by_text("task success")).to_be_visible()
    # The most frequent reason is open.
    expect(page.get_by_text("<script>alert('the prompt is too long')").first).to_be_visible()
    screenshot(airflow, "page-batch")


def test_rows_files_and_servers_from_within_airflow(airflow: Page, stack: Stack, server: Server) -> None:
    """Rows are searched, files downloaded and servers tested without leaving Airflow's page."""
    page = open_from_the_menu(airflow)
    page.get_by_role("row", name="complaints").get_by_role("link").click()
    page.get_by_role("link", name="Failed rows").click()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(24)
    page.get_by_label("Text in id").fill("ORDER-107")
    page.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("order-107")
    rows.get_by_role("link", name="BadRequestError").click()
    expect(rows).to_have_count(24)
    with airflow.expect_download() as downloading:
        page.get_by_role("link", name="failed", exact=True).click()
    assert downloading.value.suggested_filename == "parcels-complaints-failed.jsonl"
    failed = Path(downloading.value.path()).read_bytes()
    assert failed == (stack.home / "complaints/failed.jsonl").read_bytes()
    assert len(failed.splitlines()) == 24

    stack.call("POST", "/connections", json={"connection_id": "gpus", "conn_type": "ollama", "host": server.url})
    page.get_by_role("link", name="Servers").click()
    expect(page.get_by_text("reachable", exact=True)).to_be_visible()
    page.get_by_role("link", name="Test", exact=True).click()
    expect(page.get_by_role("heading", name="Passed Test of gpus")).to_be_visible()
    expect(page.get_by_text(f"Ollama 0.24.0 at {server.url}")).to_be_visible()
    expect(airflow).to_have_url(re.compile(r"/plugin/ollama\b"))


def test_a_rehearsal_is_in_log_xcom_and_page(airflow: Page, stack: Stack, screenshot: Screenshot) -> None:
    """The log has its text, XCom its data, and the page shows it as what it is, not as a batch that is 0.7 % done."""
    run = stack.trigger("tickets", {"output_path": f"file://{stack.home}/tickets"})
    assert stack.wait_for_run("tickets", run) == {"rehearsal": "success"}
    task = f"{stack.url}/dags/tickets/runs/{run}/tasks/rehearsal"

    airflow.set_viewport_size({"width": 1280, "height": 1150})
    airflow.goto(task)
    for told in (
        "Rehearsal: 20 of 3,000 rows with llama3.2 at ",
        "| Summarise in one sentence: The invoice of May was sent twice.",
        "ticket-2999",
        "3,000 rows take",
        "Context    4,096 tokens",
    ):
        expect(airflow.get_by_text(told).first).to_be_visible()
    screenshot(airflow, "rehearsal-log")

    airflow.set_viewport_size({"width": 1280, "height": 860})
    airflow.goto(f"{task}/xcom")
    airflow.get_by_role("button", name=re.compile("Expand all", re.IGNORECASE)).click()
    expect(airflow.get_by_role("row", name="return_value")).to_contain_text("server_version")
    screenshot(airflow, "rehearsal-xcom")

    airflow.set_viewport_size({"width": 1280, "height": 720})
    page = open_from_the_menu(airflow)
    row = page.get_by_role("row", name=re.compile(re.escape(run)))
    expect(row).to_contain_text("20 asked of 3,000")
    expect(row).to_contain_text("rehearsed")
    expect(row.get_by_role("img")).to_have_count(0)
    screenshot(airflow, "rehearsal-batches")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Rehearsed 20 of 3,000 rows asked")
    expect(page.get_by_role("heading", level=2).first).to_have_text("Rehearsal")
    expect(page.get_by_text("20 of 3,000 rows were asked beforehand.")).to_be_visible()
    screenshot(airflow, "rehearsal-page")


def test_light_and_dark_follow_airflow(airflow: Page, screenshot: Screenshot) -> None:
    """Whatever the system says, and as soon as Airflow is switched."""
    page = open_from_the_menu(airflow)
    body = page.locator("body")
    colour = "body => getComputedStyle(body).backgroundColor"

    airflow.evaluate("localStorage.setItem('theme', 'dark')")
    airflow.reload()
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    dark = body.evaluate(colour)
    screenshot(airflow, "page-batches-dark")
    airflow.evaluate("localStorage.setItem('theme', 'light')")

    expect(page.locator("html.light")).to_be_attached()
    assert (dark, body.evaluate(colour)) == ("rgb(18, 22, 28)", "rgb(246, 247, 249)")


def test_the_button_opens_the_page_of_the_batch(airflow: Page, stack: Stack, screenshot: Screenshot) -> None:
    """From the page, a link leads back to the task instance, and a file is downloaded, out of Airflow's frame too."""
    (run,) = stack.call("GET", "/dags/parcels/dagRuns")["dag_runs"]
    task = f"{stack.url}/dags/parcels/runs/{run['dag_run_id']}/tasks/complaints"
    airflow.goto(f"{task}/details")
    button = airflow.get_by_role("link", name="Results", exact=True)
    expect(button).to_be_visible()
    screenshot(airflow, "page-button")

    with airflow.context.expect_page() as opened:
        # Some versions open the link in a new tab, others do not. The middle button does so in all.
        button.click(button="middle")

    alone = opened.value
    expect(alone.get_by_role("heading", level=1)).to_have_text("Complete 24 of 240 rows failed")
    page = open_from_the_menu(airflow)
    page.get_by_role("row", name="complaints").get_by_role("link").click()
    page.get_by_role("link", name="Task instance and log").click()
    expect(airflow).to_have_url(re.compile(r"/dags/parcels/runs/.+/tasks/complaints"))


def test_a_user_without_rights_sees_a_sentence(page: Page, stack: Stack, screenshot: Screenshot) -> None:
    """And nothing of any batch: neither the list nor one whose address is known."""
    log_in(page, stack, NOBODY)
    (run,) = stack.call("GET", "/dags/parcels/dagRuns")["dag_runs"]

    # Airflow shows no plugins to such a user, so there is no menu entry.
    page.goto(f"{stack.url}/ollama/")
    expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    screenshot(page, "page-not-allowed")
    answer = page.goto(f"{stack.url}/ollama/batches/parcels/{run['dag_run_id']}/complaints/-1")

    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    expect(page.get_by_text("240")).to_be_hidden()
