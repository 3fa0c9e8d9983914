"""report.html of a night in a real browser: 300,000 rows of which 2,000 failed, in two runs with an outage."""

import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import pypdf
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from ollama_provider.batch import BatchSpec, FailurePolicy, Outcome, Summary
from ollama_provider.batch.records import Provenance, ServerShare
from ollama_provider.batch.report.history import History
from ollama_provider.batch.report.prompts import ShownPrompts
from ollama_provider.batch.report.run_report import write_report
from ollama_provider.batch.results import files
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.spec import Names, Shard
from ollama_provider.batch.store import manifest
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import shared_fields
from ollama_provider.batch.store.storage import Storage, open_storage, write

ROWS, FAILED = 300_000, 2_000
#: 22:00 UTC, and the seconds in which the two runs were at work.
EVENING, RUNS = 1795903200.0, ((0, 11_500), (12_400, 28_300))
OUTAGE = range(16_000, 16_700)
WORDS = ("the parcel", "came late", "in a damaged box", "and", "the customer", "asks for", "a refund", "another one")
HOSTILE = "</pre><script>alert('script')</script><img src=x onerror=alert('image')>\x1b[2J\u202e"
PROVENANCE = Provenance(
    "llama3.2:3b", "a80c4f17acd5" * 5 + "a80c", "http://gpu1:11434", "0.24.0", "9f2c4a1be07d3355", 7, 4096
)
ERRORS = (
    (
        "InvalidOutputError",
        "the answer does not fit the schema: sentiment: 'mixed' is not 'good' or 'bad'",
        '{"sentiment": "mixed"}',
    ),
    ("InvalidOutputError", "the answer does not fit the schema: because is missing", '{"sentiment": "good"}'),
    ("CutAnswerError", "the answer ended at num_predict", HOSTILE),
    ("BrokenRow", "orders.csv, line 4711: 3 fields instead of 4", None),
)


def outcomes() -> Iterator[Outcome]:
    """The outcomes of the night, always the same."""
    dice, errors = random.Random(5), cycle(ERRORS)
    failed = set(dice.sample(range(ROWS), FAILED))
    texts = [" ".join(dice.choices(WORDS, k=dice.randrange(4, 20))) for _ in range(500)]
    measures = []
    for _ in range(5000):
        tokens, prompt, speed = int(dice.lognormvariate(4.2, 0.5)), int(dice.lognormvariate(6, 0.6)), dice.gauss(62, 5)
        queued = dice.expovariate(3)
        seconds = prompt / 2500 + tokens / speed + queued
        measures.append((prompt, tokens, round(seconds, 3), round(queued, 3), round(speed, 1)))
    for number in range(ROWS):
        names = ("prompt_tokens", "tokens", "seconds", "queue_seconds", "tokens_per_second")
        known = dict(zip(names, measures[number % len(measures)], strict=True))
        key = dice.randbytes(16).hex()
        if number in failed:
            kind, text, reply = next(errors)
            yield Outcome(key, "failed", error={"class": kind, "text": text}, reply=reply, attempts=3, **known)
        else:
            output = {"sentiment": "bad", "because": texts[number % len(texts)]}
            yield Outcome(key, "ok", output=output, attempts=1, done_reason="stop", **known)


def history() -> History:
    """Rows over time: a warm-up at the start of each run, an outage of one of two servers, slow waves."""
    found, per_second = History(1), ROWS / sum(end - begin for begin, end in RUNS)
    for begin, end in RUNS:
        found.begin(EVENING + begin)
        rows = out = 0.0
        for second in range(begin + 1, end + 1):
            down = second in OUTAGE
            if second == OUTAGE[0]:
                found.note(EVENING + second, "outage", "http://gpu2:11434: the connection was refused")
            wave = (1 + 0.2 * math.sin(second / 2500)) * min(1, (second - begin) / 300) * (0.5 if down else 1)
            rows, out = rows + per_second * wave, out + 0.5 * down
            flight = min(48, 8 + (second - begin) // 20) // (2 if down else 1)
            found.add(EVENING + second, rows=int(rows), tokens=int(74 * rows), in_flight=flight, out=out)
    found.note(EVENING + RUNS[-1][1], "ended", "complete")
    return found


def write_night(storage: Storage) -> None:
    """Write what the two runs have left."""
    journal, order, shared = Journal(storage, 1), RowOrder(with_fields=True), shared_fields(vars(PROVENANCE))
    for number, outcome in enumerate(outcomes()):
        key, _ = journal.find(bytes.fromhex(outcome.key))
        journal.add(key, outcome, shared)
        order.add(key, f"order-{number:06d}")
        if number % 20_000 == 0:
            journal.end_part()
            journal.seal_parts()
    journal.end_part()
    journal.seal_parts()
    files.write_results(storage, journal, order, files.json_lines_format(vectors=False))
    order.close()
    history().save(storage, "history.json")
    spec = BatchSpec(
        model=PROVENANCE.model, rows="s3://lake/orders/*.parquet", id_column="order_id", output_type={"type": "object"},
        failures=FailurePolicy(max_failed_ratio=0.01, max_attempts=5),
    )  # fmt: skip
    begun = manifest.Manifest(settings=spec.settings(), provenance=vars(PROVENANCE))
    manifest.save(storage, begun, Names())
    servers = (
        ServerShare("http://gpu1:11434", 118_000, 8_732_000, 549.0, 32),
        ServerShare("http://gpu2:11434", 61_000, 4_514_000, 284.0, 16, 700.0),
    )
    summary = Summary(
        complete=True, reason="complete", directory=storage.location, rows=ROWS, ok=ROWS - FAILED, failed=FAILED,
        reused=121_000, left=0, seconds=15_900.0, provenance=PROVENANCE, servers=servers,
    )  # fmt: skip
    write(storage, Names().summary, summary.as_json())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    storage = open_storage(directory)
    # For the pictures of the documentation.
    storage.location = "s3://lake/results/orders"
    write_night(storage)
    write_report(storage)
    return directory / "report.html"


def write_shards(storage: Storage) -> None:
    """Write what four shards leave that two workers ran, before the merge, with prompts of the rows to be shown."""
    dice, started = random.Random(7), (0, 0, 5_200, 6_100)
    for number, begun in enumerate(started):
        shard, speed = Shard(number, len(started)), (0.5, 0.44, 0.52, 0.41)[number]
        manifest.save(
            storage, manifest.Manifest(settings={"model": PROVENANCE.model}, provenance=vars(PROVENANCE)), shard.names
        )
        journal, kept, found = Journal(storage, 1, shard=shard.name), ShownPrompts(1), History(1)
        shared, rows, end = shared_fields(vars(PROVENANCE)), 2_500, begun + round(2_500 / speed)
        for row, outcome in enumerate(islice(outcomes(), number * rows, (number + 1) * rows)):
            key, _ = journal.find(bytes.fromhex(outcome.key))
            journal.add(key, outcome, shared)
            prompt = f"Is this review good or bad, and why?\n\n{' '.join(dice.choices(WORDS, k=30))} {HOSTILE}"
            kept.add(outcome, prompt, EVENING + begun + row)
        journal.end_part()
        journal.seal_parts()
        kept.save(storage, shard.names.prompts)
        found.begin(EVENING + begun)
        for second in range(begun + 1, end + 1):
            done = min(rows, (second - begun) * speed)
            found.add(EVENING + second, rows=int(done), tokens=int(74 * done), in_flight=16, out=0.0)
        found.note(EVENING + end, "ended", "complete")
        found.save(storage, shard.names.history)
        share = ServerShare(f"http://gpu{1 + number % 2}:11434", rows, 74 * rows, round(74 * speed, 1), 16)
        summary = Summary(
            complete=True, reason="complete", directory=storage.location, rows=rows, ok=rows - 17, failed=17, left=0,
            seconds=end - begun, provenance=PROVENANCE, servers=(share,),
        )  # fmt: skip
        write(storage, shard.names.summary, summary.as_json())


@pytest.fixture(scope="module")
def report_of_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = open_storage(tmp_path_factory.mktemp("shards"))
    directory = Path(storage.location)
    storage.location = "s3://lake/results/reviews"
    write_shards(storage)
    write_report(storage)
    return directory / "report.html"


def open_page(browser: Browser, report: Path, **how: object) -> Page:
    """Open the report; whatever it loads or runs fails the test."""
    page = browser.new_context(reduced_motion="reduce", **how).new_page()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.on("console", lambda message: pytest.fail(message.text))
    page.on("request", lambda request: None if request.url == report.as_uri() else pytest.fail(request.url))
    page.goto(report.as_uri())
    return page


def test_it_is_small(report: Path) -> None:
    """However many rows there are."""
    assert report.stat().st_size < 200_000


def read(browser: Browser, report: Path, scheme: str, width: int, height: int) -> Page:
    """Open it without scripts: in the reader's colours, and without scrolling sideways."""
    page = open_page(
        browser, report, java_script_enabled=False, color_scheme=scheme, viewport={"width": width, "height": height}
    )

    expect(page.get_by_role("heading", level=1)).to_have_text("Complete 2,000 of 300,000 rows failed")
    expect(page.get_by_role("img", name="Rows a second over time")).to_be_visible()
    expect(page.get_by_role("table", name="What each server did in the last run")).to_be_visible()
    colour = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (colour == "rgb(246, 247, 249)") == (scheme == "light")
    assert page.locator("html").evaluate("html => html.scrollWidth") <= width
    return page


def test_it_is_read_in_light_colours(
    browser: Browser, report: Path, screenshot: Callable[[Page | Locator, str], None]
) -> None:
    """State, numbers, reasons and pace are seen at once."""
    page = read(browser, report, "light", 1280, 1500)

    screenshot(page, "report")


def test_it_is_read_in_dark_colours(
    browser: Browser, report: Path, screenshot: Callable[[Page | Locator, str], None]
) -> None:
    """As the reader's system has it."""
    page = read(browser, report, "dark", 1280, 900)

    screenshot(page, "report-dark")


def test_it_is_read_on_a_phone(
    browser: Browser, report: Path, screenshot: Callable[[Page | Locator, str], None]
) -> None:
    """In one column."""
    page = read(browser, report, "light", 390, 844)

    screenshot(page, "report-phone")


def test_the_charts(browser: Browser, report: Path, screenshot: Callable[[Page | Locator, str], None]) -> None:
    """Outage and second run are marked."""
    page = open_page(browser, report, viewport={"width": 1280, "height": 900})
    section = page.get_by_role("region", name="Over time")

    expect(section.get_by_text("servers out of service")).to_be_visible()
    expect(section.get_by_text("another run began")).to_be_visible()
    screenshot(section, "report-time")


def test_reasons_open_with_the_keyboard(browser: Browser, report: Path) -> None:
    """And a reply with a script is text."""
    page = open_page(browser, report)
    expect(page.get_by_text("<script>").first).to_be_hidden()

    closed = page.locator("summary", has_text="CutAnswerError")
    closed.focus()
    page.keyboard.press("Enter")

    expect(page.get_by_text("take cut answers with allow_cut=True")).to_be_visible()
    expect(page.get_by_text("orders.csv, line 4711").first).to_be_hidden()
    expect(page.get_by_text("<script>alert('script')</script>").first).to_be_visible()
    assert page.evaluate("document.scripts.length") == 0


def test_shards_and_prompts(
    browser: Browser, report_of_shards: Path, screenshot: Callable[[Page | Locator, str], None]
) -> None:
    """Each shard has a line, with when it was at work; a prompt with a script is text."""
    page = open_page(browser, report_of_shards, viewport={"width": 1280, "height": 900})
    shards = page.get_by_role("region", name="Shards")

    expect(shards.get_by_role("row")).to_have_count(5)
    expect(shards.get_by_role("img", name="from 2026-11-28 22:00:00 UTC").first).to_be_visible()
    screenshot(shards, "report-shards")
    good = page.get_by_role("region", name="Good rows to look at")
    expect(good.get_by_label("The prompt").first).to_contain_text("<script>alert('script')</script>")
    assert good.get_by_label("The prompt").count() == 20
    first = good.get_by_role("listitem").first
    screenshot(first, "report-prompt")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator("html").evaluate("html => html.scrollWidth") <= width


def test_everybody_can_read_it(browser: Browser, report: Path, report_of_shards: Path, check_accessibility) -> None:
    """Also with a screen reader, or with weak eyes."""
    for each in (report, report_of_shards):
        check_accessibility(open_page(browser, each))


def test_it_is_printed_as_a_whole(browser: Browser, report: Path, tmp_path: Path) -> None:
    """On paper nothing can be opened, so what is closed on the screen is there: all reasons, and all settings."""
    page = open_page(browser, report, color_scheme="dark")

    page.pdf(path=tmp_path / "report.pdf", format="A4")

    pages = [each.extract_text() for each in pypdf.PdfReader(tmp_path / "report.pdf").pages]
    text = " ".join(" ".join(pages).split())
    assert "2,000 of 300,000 rows failed" in text
    assert "orders.csv, line 4711" in text
    assert "What each server did in the last run" in text
    assert "pace.checkpoint_every" in text
    assert len(pages) < 25
    page.emulate_media(media="print")
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(255, 255, 255)"
    if directory := os.environ.get("SCREENSHOTS"):
        shutil.copy(tmp_path / "report.pdf", directory)
