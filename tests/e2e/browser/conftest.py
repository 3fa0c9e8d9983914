"""A browser for the tests, and a look at what it showed when one of them failed."""

import io
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

# Debian's package; Playwright's own browsers are not downloaded. The flags keep it from looking for Google's hosts, and
# let it run as root, as in CI.
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]

# Two cores run all of Airflow, the browser and the test.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """An empty page of a browser that remembers nothing; a failure leaves a picture of it in `tmp_path`."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def screenshot() -> Callable[[Page | Locator, str], None]:
    """Take a picture for the documentation, if the environment says where: ``SCREENSHOTS=docs/images make e2e``."""
    directory = os.environ.get("SCREENSHOTS")

    def take(what: Page | Locator, name: str) -> None:
        if directory:
            picture = Image.open(io.BytesIO(what.screenshot(animations="disabled"))).convert("RGB")
            # A user interface has few colours: a palette makes a third of the size of it.
            picture.quantize(256).save(Path(directory, f"{name}.png"), optimize=True)

    return take


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what the browser showed."""
    report = yield
    fixtures = getattr(item, "funcargs", {})
    if report.failed and isinstance(page := fixtures.get("page"), Page):
        picture = Path(fixtures["tmp_path"], "failed.png")
        page.screenshot(path=picture, full_page=True)
        report.sections.append(("The browser", f"{page.url}\n{picture}\n{page.locator('body').aria_snapshot()}"))
    return report
