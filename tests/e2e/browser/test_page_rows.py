"""Rows, downloads and servers of the page in Airflow's UI, in a real browser against Airflow's API server."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import FrameLocator, Locator, Page, expect

from ollama_provider.testing import Model, Respond, Server, StandIn, serve
from tests.airflow.conftest import airflow_db, no_settling  # noqa: F401  # fixtures
from tests.airflow.ui.conftest import api_server, stored  # noqa: F401  # fixtures
from tests.e2e.stack import AIRFLOW
from tests.processes import free_port

Screenshot = Callable[[Page | Locator, str], None]
_DAG = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator
with DAG("parcels", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator(
        task_id="complaints",
        model="llama3.2",
        rows=[{"id": f"order-{number:03}", "text": f"Parcel {number}"} for number in range(240)],
        id_column="id",
        prompt="What does the customer complain about? {{ row.text }}",
        output_path="FOLDER",
        resume="one",
        failures=FailurePolicy(max_failed_rows=30, max_attempts=1),
    )
"""


@pytest.fixture
def ollama() -> Iterator[Server]:
    """A server on which each tenth row fails."""
    models = [Model("llama3.2"), Model("qwen3"), Model("nomic-embed-text", ("embedding",))]
    with serve(StandIn(models=models)) as server:
        server.stand_in.script(
            Respond(400, {"error": "<script>alert('the prompt is too long')</script>"}),
            where=lambda body: re.search(r"Parcel \d*7$", body.get("prompt", "")) is not None,
            always=True,
        )
        yield server


@pytest.fixture
def night(airflow_db, dags_folder: Path, ollama_conn: str, tmp_path: Path) -> Iterator[Path]:  # noqa: F811
    """A batch that has run, in a process of its own, since Playwright has its event loop in this one; its directory."""
    file = dags_folder / "parcels.py"
    file.write_text(_DAG.replace("FOLDER", f"file://{tmp_path}"))
    subprocess.run([AIRFLOW, "dags", "test", "parcels"], check=True, capture_output=True)
    yield tmp_path / "one"
    file.unlink()


@pytest.fixture
def airflow(api_server) -> Iterator[str]:  # noqa: F811
    """Airflow's API server on a port; its URL."""
    server = uvicorn.Server(uvicorn.Config(api_server, "127.0.0.1", free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def opened(page: Page, airflow: str) -> Callable[[str], FrameLocator]:
    """Return a function that opens Airflow's UI with our page in it, as an admin, at an address below ours."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="admin", role="admin"))
    page.context.add_cookies([{"name": "_token", "value": token, "url": airflow}])
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))

    def go(address: str) -> FrameLocator:
        page.goto(f"{airflow}/plugin/ollama")
        frame = page.frame_locator("iframe[title=Ollama]")
        frame.locator("nav.tabs").wait_for()
        page.frames[-1].goto(f"{airflow}/{address}")
        return frame

    return go


def test_rows_are_searched_and_files_downloaded(
    page: Page, opened, night: Path, screenshot: Screenshot
) -> None:  # fmt: skip
    """By a text, by a click on a reason, page by page; and a download leaves Airflow's frame."""
    frame = opened("ollama/")
    frame.get_by_role("link", name="parcels / complaints").click()
    frame.get_by_role("link", name="Failed rows").click()
    rows = frame.locator("tbody tr")
    expect(rows).to_have_count(24)
    expect(rows.first).to_contain_text("<script>alert('the prompt is too long')")
    screenshot(page, "page-failed-rows")
    frame.get_by_label("Text in id").fill("ORDER-107")
    frame.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("order-107")
    rows.first.get_by_role("link", name="BadRequestError").click()
    expect(rows).to_have_count(24)

    frame.get_by_role("link", name="Good rows").click()
    expect(rows).to_have_count(50)
    frame.get_by_role("link", name="Next page").click()
    expect(rows.first).to_contain_text("order-055")
    with page.expect_download() as downloading:
        frame.get_by_role("link", name="results", exact=True).click()

    assert downloading.value.suggested_filename == "parcels-complaints-results.jsonl"
    assert Path(downloading.value.path()).read_bytes() == (night / "results.jsonl").read_bytes()


def test_servers_and_a_test_of_them(page: Page, opened, stored, ollama, screenshot: Screenshot) -> None:  # noqa: F811
    """What one has on disk and in memory, and what is wrong with another; and nobody's password."""
    ollama.stand_in.answer("POST", "/api/generate", body=b'{"model": "llama3.2", "prompt": "a", "stream": false}')
    stored("test_gpus", host=f"{ollama.url}, 127.0.0.1:9", login="airflow", password="not-for-everybody")

    frame = opened("ollama/servers")

    expect(frame.get_by_text("reachable", exact=True)).to_be_visible()
    expect(frame.get_by_role("table", name="On disk").get_by_role("row", name="qwen3:latest")).to_contain_text("Q4_K_M")
    loaded = frame.get_by_role("table", name="In memory").get_by_role("row", name="llama3.2:latest")
    expect(loaded).to_contain_text("UTC")
    expect(frame.get_by_text("connection refused (at http://127.0.0.1:9)")).to_be_visible()
    screenshot(page, "page-servers")
    frame.get_by_role("link", name="Test", exact=True).click()
    expect(frame.get_by_role("heading", name="Failed Test of test_gpus")).to_be_visible()
    expect(frame.get_by_text("1 of 2 servers can be used:")).to_be_visible()
    assert "not-for-everybody" not in frame.locator("html").inner_html()
    frame.get_by_role("link", name="All servers").click()
    expect(frame.get_by_role("heading", name="Servers", exact=True)).to_be_visible()


def test_everybody_can_read_every_view(
    page: Page, airflow: str, opened, night: Path, stored, ollama, check_accessibility  # noqa: F811
) -> None:  # fmt: skip
    """Also with a screen reader, or with weak eyes."""
    ollama.stand_in.answer("POST", "/api/generate", body=b'{"model": "llama3.2", "prompt": "a", "stream": false}')
    stored("test_gpus", host=f"{ollama.url}, 127.0.0.1:9")

    def check(heading: str) -> None:
        expect(page.get_by_role("heading", level=1)).to_contain_text(heading)
        check_accessibility(page)

    # Not within Airflow's frame, which Airflow may load again at any time.
    page.goto(f"{airflow}/ollama/")
    check("Batches")
    for link, heading in (
        ("parcels / complaints", "24 of 240 rows failed"),
        ("Failed rows", "Failed rows"),
        ("Good rows", "Good rows"),
        ("Servers", "Servers"),
        ("Test", "Test of test_gpus"),
    ):
        # The newest of the batches; those of other tests are listed below it.
        page.get_by_role("link", name=link, exact=True).first.click()
        check(heading)
    page.goto(f"{airflow}/ollama/batches/parcels/no/batch/-1")
    check("Not found")
