"""A browser for the tests, and a screenshot when one fails."""

import io
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
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

# The success criteria that a machine can check, up to the newest Web Content Accessibility Guidelines.
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

# Generous, since two cores may run Airflow, the browser and the test.
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
    """An empty page of a new browser session. After a failure its screenshot is in `tmp_path`."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def screenshot() -> Callable[[Page | Locator, str], None]:
    """Take a screenshot for the documentation, if ``SCREENSHOTS`` is set: ``SCREENSHOTS=docs/images make e2e``."""
    directory = os.environ.get("SCREENSHOTS")

    def take(what: Page | Locator, name: str) -> None:
        if directory:
            picture = Image.open(io.BytesIO(what.screenshot(animations="disabled"))).convert("RGB")
            # A palette is enough for the few colours of a user interface, and reduces the size to a third.
            picture.quantize(256).save(Path(directory, f"{name}.png"), optimize=True)

    return take


@pytest.fixture
def check_accessibility() -> Callable[[Page], None]:
    """Check a page, with everything unfolded, in light and in dark colours: WCAG 2.2, levels A and AA."""
    axe = Axe()

    def check(page: Page) -> None:
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        backgrounds = set()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            found = axe.run(page, options={"runOnly": WCAG})
            assert found.violations_count == 0, f"{page.url}, {scheme}: {found.generate_report()}"
            assert found.response["passes"]
        assert len(backgrounds) == 2

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the browser's content to a failure."""
    report = yield
    fixtures = getattr(item, "funcargs", {})
    if report.failed and isinstance(page := fixtures.get("page"), Page):
        picture = Path(fixtures["tmp_path"], "failed.png")
        page.screenshot(path=picture, full_page=True)
        report.sections.append(("The browser", f"{page.url}\n{picture}\n{page.locator('body').aria_snapshot()}"))
    return report
