"""What is fuzzed: each target takes bytes, hands them to a reader of the package, and fails if a promise is broken.

The promises: a reader ends in time, raises no errors but ours, loses no row, and quotes no secret. `run.py` searches
for inputs that break them; `test_targets.py` runs the same targets over their seeds, as a part of the tests.
"""

import atexit
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import httpx

import ollama_provider
from ollama_provider.api import schemas
from ollama_provider.api.address import parse_addresses
from ollama_provider.api.decompression import BrokenAnswer, Decompressor
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.headers import headers_for
from ollama_provider.api.protocol import Decoder
from ollama_provider.api.replies import Collector, StreamedReplies
from ollama_provider.api.settings import Settings
from ollama_provider.api.timeouts import timeouts_for
from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError, StorageError
from ollama_provider.batch.records import RAW, Row, canonical_json
from ollama_provider.batch.report import row_lines
from ollama_provider.batch.report.page import report_environment
from ollama_provider.batch.report.row_pages import read_rows
from ollama_provider.batch.rows.formats import read_file
from ollama_provider.batch.store import manifest
from ollama_provider.batch.store.journal import Journal, PartReader, State
from ollama_provider.batch.store.storage import Storage, open_storage, write
from ollama_provider.connection import settings_from_connection

#: They stand in requests and settings, and no error may quote them.
PROMPT, PASSWORD = "the prompt that no error quotes, whatever is sent back", "a-password-that-stays-here"
SETTINGS = Settings(base_url="http://gpu1:11434", password=PASSWORD)
TEMPLATES = Path(ollama_provider.__file__).parent / "ui" / "templates"
NOW = datetime(2026, 11, 1, tzinfo=UTC)

REQUESTS: tuple[schemas.Request[Any], ...] = (
    schemas.GenerateRequest(model="m", prompt=PROMPT),
    schemas.GenerateRequest(model="m", prompt=PROMPT, format="json"),
    schemas.ChatRequest(model="m", messages=PROMPT),
    schemas.ChatRequest(model="m", messages=PROMPT, think=True),
    schemas.EmbedRequest(model="m", input=[PROMPT, "b"]),
    schemas.LegacyEmbedRequest(model="m", prompt=PROMPT),
    schemas.PullRequest(model="m"),
    schemas.CreateRequest(model="m", from_="n"),
    schemas.ShowRequest(model="m"),
    schemas.TagsRequest(),
    schemas.PsRequest(),
    schemas.VersionRequest(),
    schemas.DeleteRequest(model="m"),
)
_WITH_PROMPT = {number for number, request in enumerate(REQUESTS) if PROMPT in request.model_dump_json()}
STATUSES = (200, 200, 200, 204, 302, 400, 401, 403, 404, 405, 413, 429, 500, 502, 503, 504, 524)
HEADERS = ("content-type", "retry-after", "location")


def reply_path(data: bytes) -> None:
    """An answer of any server: the errors are ours and quote no secret, and a reply is strict JSON.

    Its bytes: request, status, size of the pieces in which it arrives; a line for each of `HEADERS`; the body.
    """
    kind, status, size, rest = *data[:3].ljust(3, b"\0"), data[3:]
    *lines, body = rest.split(b"\n", len(HEADERS))
    headers = httpx.Headers([(name.encode(), line) for name, line in zip(HEADERS, lines, strict=False)])
    request = REQUESTS[kind % len(REQUESTS)]
    try:
        _read_reply(request, STATUSES[status % len(STATUSES)], headers, body, size)
    except OllamaError as error:
        text = f"{error} {error!r}"
        assert PASSWORD not in text, "an error quotes the password"
        if kind % len(REQUESTS) in _WITH_PROMPT:
            assert not any(PROMPT[at : at + 16] in text for at in range(len(PROMPT) - 15)), "an error quotes the prompt"
        assert text.isprintable(), "an error has control characters"
        assert len(text) < 4000, "an error is long"


def _read_reply(request: schemas.Request[Any], status: int, headers: httpx.Headers, body: bytes, size: int) -> None:
    decoder = Decoder(request, status, headers, settings=SETTINGS, now=NOW)
    collector, pieces = Collector(request, host="h"), StreamedReplies(request, host="h")
    timeouts = timeouts_for(request, SETTINGS.timeouts, 0.0)
    step, streamed = 1 + size // 2, size % 2
    for part in _objects(decoder, [body[at : at + step] for at in range(0, len(body), step)]):
        timeouts.decoded(part, 1.0)
        if streamed:
            pieces.read(part).model_dump_json()
        else:
            collector.add(part)
    if not streamed:
        json.dumps(collector.reply().model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()


def _objects(decoder: Decoder, pieces: list[bytes]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        yield from decoder.feed(piece)
    yield from decoder.end()


def compressed_answer(data: bytes) -> None:
    """A compressed answer, in pieces: each result is small, and damage is told as such."""
    size, body = 1 + (data[:1] or b"\0")[0], data[1:]
    inflate, total = Decompressor(), 0
    try:
        for at in range(0, len(body), size):
            for piece in inflate.feed(body[at : at + size]):
                assert 0 < len(piece) <= 64 * 1024, "a piece is empty or large"
                total += len(piece)
                if total > 1 << 22:  # a client counts as well, and stops
                    return
        inflate.end()
    except BrokenAnswer:
        pass


def jsonl_rows(data: bytes) -> None:
    """A file of JSON lines: every line that is not blank is a row or a fault, in order, and none is made up."""
    try:
        rows = list(read_file(io.BytesIO(data), PurePath("rows.jsonl"), InputOptions()))
    except InputError:
        assert data[:2] in {b"\xff\xfe", b"\xfe\xff"} or data[:2].count(0) == 1
        return
    lines = data.split(b"\n")
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    full = [(number, line) for number, line in enumerate(lines, 1) if line and not line.isspace()]
    assert [row.place for row in rows] == [f"rows.jsonl, line {number}" for number, _ in full]
    for row, (_, line) in zip(rows, full, strict=True):
        _check_row(row)
        if row.fault is None:
            found = json.loads(line)
            assert canonical_json(row.columns) == canonical_json(found if isinstance(found, dict) else {"text": found})


def csv_rows(data: bytes) -> None:
    """A file of CSV: what Python's own reader finds in it, or a fault, each row at its place."""
    try:
        rows = list(read_file(io.BytesIO(data), PurePath("rows.csv"), InputOptions()))
    except InputError:
        return
    numbers = [int(row.place.rpartition(" ")[2]) for row in rows]
    assert numbers == sorted(set(numbers)), "two rows have one place"
    for row in rows:
        _check_row(row)
    if all(row.fault is None for row in rows):
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
        names, *values = [*filter(None, csv.reader(io.StringIO(text, newline="\n"), strict=True))] or [[]]
        assert [list(row.columns.values()) for row in rows] == values
        assert all(list(row.columns) == names for row in rows)


def _check_row(row: Row) -> None:
    assert isinstance(row.columns, dict)
    assert (row.fault is None) or list(row.columns) == [RAW]
    f"{row.place} {row.fault}".encode()
    canonical_json(row.columns)


@cache
def _directory() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


#: Of an earlier version, sealed, and left open by a killed run.
PARTS = ("0001-0001-000001.jsonl", "0001-0001-000001-5f0c9a1e.jsonl", "0001-0001-000001-5f0c9a1e.open.jsonl")


def part_files(data: bytes) -> None:
    """A part of a batch: its lines are outcomes or damaged; each outcome is found where it is, and stays.

    The first byte chooses the kind of part. A line with a right checksum was written by the package, and is trusted.
    """
    name, content = PARTS[(data[:1] or b"\0")[0] % len(PARTS)], data[1:]
    lines = content.split(b"\n")
    # Also the end of a line that lost its line feed is read.
    ends = [line[found.start() :] for line in lines for found in re.finditer(rb'\{"key":"', line)]
    if any(map(_is_forged, (*lines, *ends))):
        return
    folder = _directory() / "part_files"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / name).write_bytes(content)
    storage = open_storage(folder)
    keys = [bytes.fromhex(found.decode()) for found in re.findall(rb'\{"key":"([0-9a-f]{32})"', content)]
    try:
        journal = Journal(storage, 2, keep_replies=True)
        before = [journal.find(key)[1] for key in keys]
        journal.seal_left_open({"0" * 64})
        _read_lines(journal, storage, keys)
        again = Journal(storage, 2, keep_replies=True)
        assert [again.find(key)[1] for key in keys] == before, "sealing has changed what is known"
        assert not list(folder.rglob("*.open.jsonl"))
    except StorageError:
        assert name == PARTS[0], "a part with checksums cannot be read"


def _is_forged(line: bytes) -> bool:
    """The search compares what is compared here, and so makes right checksums of wrong lines."""
    text, checksum = line[:-20], line[-20:]
    if checksum != b',"crc32":"%08x"}' % crc32(text):
        return False
    try:
        found = json.loads(line)
    except ValueError:
        return True
    whole = re.match(rb'\{"key":"[0-9a-f]{32}","status":"(ok|failed)",', line)
    return not whole or not found.keys() >= {"output", "error", "digest"}


def _read_lines(journal: Journal, storage: Storage, keys: list[bytes]) -> None:
    reader = PartReader(storage, journal)
    for key in keys:
        number, state = journal.find(key)
        if state is not State.NEW:
            line = reader.line(*journal.place(number))
            assert line[:41].lower() == b'{"key":"%b"' % key.hex().encode(), "another line stands there"
            json.loads(line)
        journal.find_reply(key)
    reader.close()


def batch_manifest(data: bytes) -> None:
    """A ``batch.json``: what it says, or a refusal."""
    folder = _directory() / "batch_manifest"
    folder.mkdir(exist_ok=True)
    (folder / "batch.json").write_bytes(data)
    try:
        found = manifest.read(open_storage(folder), "batch.json")
    except StorageError:
        return
    assert found is not None
    assert found.pass_number >= 1


def page_rows(data: bytes) -> None:
    """A file of rows, and what a reader asks of it: each row on one page, and no text that a browser would obey.

    Its bytes: which rows, whether the file holds results or is a part, and how soon a page ends; a line each for the
    cursor, the search and the reason; the file.
    """
    kind, rest = (data[:1] or b"\0")[0], data[1:]
    *asked, content = rest.split(b"\n", 3)
    cursor, search, reason = (line.decode("utf-8", "replace") for line in [*asked, b"", b"", b""][:3])
    status, which = (("ok", "good"), ("failed", "failed"))[kind % 2]
    folder = _directory() / "page_rows"
    shutil.rmtree(folder, ignore_errors=True)
    storage = open_storage(folder)
    if kind & 2:
        write(storage, f"parts/{PARTS[0 if kind & 8 else 2]}", content)
    else:
        write(storage, "summary.json", b"{}")
        write(storage, "failed.jsonl" if kind % 2 else "results.jsonl", content)
    row_lines.LONGEST, before = 512, row_lines.LONGEST  # else no line of an input is a long one
    try:
        given = {"search": search, "reason": reason}
        whole = read_rows(storage, status, **given, rows=10_000, seconds=3600)
        read_rows(storage, status, **given, cursor=cursor, rows=3)
        found, at = [], ""
        while at or not found:
            page = read_rows(storage, status, **given, cursor=at, rows=2, seconds=kind & 4)
            assert not page.next or page.next != at, "a page comes no further"
            found.append(page.rows)
            at = page.next
    finally:
        row_lines.LONGEST = before
    assert [row for rows in found for row in rows] == list(whole.rows), "pages have other rows than the whole"
    _check_page(which, {"cursor": cursor, "found": whole, **given})


def _check_page(which: str, values: dict[str, Any]) -> None:
    batch = SimpleNamespace(
        dag_id="d", run_id="r", task_id="t", map_index=-1, state="success", summary=None, is_running=False, path="p",
        task_path="q",
    )  # fmt: skip
    shown = {"root": "/ollama", "airflow": "", "version": "1", "batch": batch, "which": which, "trouble": ""}
    text = report_environment(TEMPLATES).get_template("rows.html.jinja").render(**shown, reasons=[], **values)
    text.encode()
    tags = _Tags()
    tags.feed(text)
    assert tags.found <= _TAGS, f"somebody else's tags: {tags.found - _TAGS}"
    assert tags.attributes <= _ATTRIBUTES, f"somebody else's attributes: {tags.attributes - _ATTRIBUTES}"
    assert not tags.outside, "a link leads elsewhere"


#: What the template itself has.
_TAGS = {
    "a", "body", "br", "button", "caption", "datalist", "footer", "form", "h1", "head", "header", "html", "input",
    "label", "link", "main", "meta", "nav", "option", "p", "pre", "script", "section", "span", "table", "tbody", "td",
    "th", "thead", "title", "tr", "div",
}  # fmt: skip
_ATTRIBUTES = {
    "action", "aria-current", "aria-label", "aria-labelledby", "charset", "class", "content", "download", "href", "id",
    "lang", "list", "maxlength", "method", "name", "rel", "role", "scope", "src", "target", "type", "value",
}  # fmt: skip


class _Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.outside: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}
        for name, value in attrs:
            if name in {"href", "src", "action"} and not (value or "").startswith(("/", "data:,")):
                self.outside.add(tag)


def connection(data: bytes) -> None:
    """The extra of a connection: settings that a client can be made of, or a refusal without a secret."""
    text = data.decode("utf-8", "replace")
    given = SimpleNamespace(conn_id="c", host="gpu1", port=None, schema=None, login=None, password=PASSWORD, extra=text)
    try:
        settings = settings_from_connection(given)
        headers_for(settings)
    except InvalidRequestError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert PASSWORD not in refusal
    if refusal:
        return
    for seconds in settings.timeouts.model_dump().values():
        assert seconds is None or 0 < seconds < float("inf"), "a wait without an end"
    settings.model_dump_json()


def host(data: bytes) -> None:
    """The Host of a connection: addresses that can be used and that read as themselves, or a refusal."""
    text = data.decode("utf-8", "replace")
    field, _, more = text.partition("\n")
    port, _, scheme = more.partition("\n")
    try:
        urls = parse_addresses(field, port, scheme)
    except InvalidRequestError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "@" not in field or field not in refusal, "an error quotes what may be a password"
        return
    assert urls
    assert len(set(urls)) == len(urls)
    Settings(base_url=urls[0], other_urls=urls[1:])
    for url in urls:
        assert parse_addresses(url) == (url,), "an address does not read as itself"
        assert httpx.URL(url).host, "no host"


Target = Callable[[bytes], None]

#: By name, which is that of the folder of its corpus as well. The endpoints of a web page are to be added here.
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        reply_path, compressed_answer, jsonl_rows, csv_rows, part_files, batch_manifest, page_rows, connection, host,
    )
}  # fmt: skip
