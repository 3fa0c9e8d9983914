"""The rows of a batch, a page at a time: read by range, never whole.

A page begins where the cursor of the one before it says: at an offset of a file, or at a row of a Parquet file. So a
page takes the same time wherever it is, and no index is made. A search looks at rows for a limited time; its page says
how far it came, and where to go on.

Once a batch is complete, its rows are in the order of the input. Until then they come out of the parts, in the order in
which they were answered: the good rows of all passes, the failed ones of the current pass.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from ollama_provider.batch.errors import BatchError, StorageError
from ollama_provider.batch.report.advice import without_advice
from ollama_provider.batch.report.row_lines import Line, LineFile, LineFiles, of_part
from ollama_provider.batch.report.row_records import ParquetRecords, can_be_read
from ollama_provider.batch.results.files import FAILED, RESULTS
from ollama_provider.batch.results.parquet import PARQUET
from ollama_provider.batch.spec import Names
from ollama_provider.batch.store import manifest as manifests
from ollama_provider.batch.store.disk import storage_errors
from ollama_provider.batch.store.journal import Part, list_parts
from ollama_provider.batch.store.shards import manifest_names
from ollama_provider.batch.store.storage import Storage

#: Rows of a page, seconds after which it ends with what was found, and characters of a text that are shown.
_ROWS, _SECONDS, _SHOWN = 50, 2.0, 1000

Status = Literal["ok", "failed"]
FileKind = Literal["results", "failed", "summary"]


class Text(NamedTuple):
    """The beginning of a text, and how many characters the whole has."""

    shown: str
    length: int


@dataclass(frozen=True, kw_only=True)
class PageRow:
    """A row of a page.

    Attributes:
        key: of the request.
        index: of the row in the input, from 0; None where the batch is not complete.
        id: value of the id column; None if there is none, or the batch is not complete.
        reason: class of the error; empty for a good row.
        text: the answer, or the error.
        reply: the raw reply of a failed row, if there is one.
        attempts, tokens, seconds: see `Outcome`; None where they are unknown.
        is_cut: the line was too long to be read, so more than the end of the text may be missing.
    """

    key: str
    index: int | None
    id: Text | None
    reason: str
    text: Text
    reply: Text | None
    attempts: int | None
    tokens: int | None
    seconds: float | None
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class RowPage:
    """Some rows of a batch, and where to go on.

    Attributes:
        rows: that were found.
        next: cursor of the page after it; empty if all was looked at.
        share: of the rows up to the end of this page, from 0 to 1.
        in_order: the rows are those of a complete batch, in the order of the input.
        restarted: the cursor was none of these rows, since they were written anew: this is their first page.
        damaged: lines that cannot be read, among those that were looked at.
    """

    rows: tuple[PageRow, ...]
    next: str
    share: float
    in_order: bool
    restarted: bool
    damaged: int


def read_rows(
    storage: Storage,
    status: Status,
    *,
    cursor: str = "",
    search: str = "",
    reason: str = "",
    rows: int = _ROWS,
    seconds: float = _SECONDS,
) -> RowPage:
    """Read a page of the good or of the failed rows.

    Args:
        storage: the directory.
        status: which rows.
        cursor: `RowPage.next` of the page before; empty for the first page.
        search: text in the id, the error or the answer, in upper or lower case; empty for all rows.
        reason: class of the error; empty for all.
        rows: of the page, at most.
        seconds: after which the page ends with what was found. At least one line is read.

    Raises:
        StorageError: the directory cannot be read.
    """
    deadline = time.monotonic() + seconds
    wanted = _Wanted(status, search.lower(), reason, vectors=_has_vectors(storage))
    source, in_order = _source(storage, wanted)
    restarted = bool(cursor) and not source.knows(cursor)
    found: list[PageRow] = []
    damaged, after, share = 0, "", 1.0
    for step in source.steps("" if restarted else cursor):
        damaged += step.is_damaged
        if step.line is not None and (row := wanted.row(step.line)):
            found.append(row)
        if len(found) >= rows or time.monotonic() >= deadline:
            after, share = step.cursor, step.share
            break
    return RowPage(
        rows=tuple(found), next=after, share=share, in_order=in_order, restarted=restarted, damaged=damaged
    )  # fmt: skip


def open_file(storage: Storage, kind: FileKind) -> tuple[str, BinaryIO]:
    """Open a file of a complete batch for reading; return its name as well.

    Raises:
        StorageError: it is not there, for instance since the batch is not complete, or cannot be read.
    """
    names = {"results": (RESULTS, PARQUET), "failed": (FAILED,), "summary": (Names().summary,)}[kind]
    if storage.read(Names().summary) is None:
        raise StorageError(f"{storage.location} has no {names[0]} yet: it is written when the batch is complete")
    for name in names:
        if (file := storage.open(name)) is not None:
            return name, file
    raise StorageError(f"{storage.location} has no {names[0]} any more")


def _has_vectors(storage: Storage) -> bool:
    for name in (Names().batch, *manifest_names(storage)):
        try:
            manifest = manifests.read(storage, name)
        except BatchError:  # a damaged one says nothing; the next run tells of it
            continue
        if manifest is not None:
            return (manifest.settings or {}).get("task") == "embed"
    return False


def _source(storage: Storage, wanted: "_Wanted") -> tuple[LineFiles | ParquetRecords, bool]:
    """Return where the rows are, and whether they are in the order of the input there."""
    if storage.read(Names().summary) is not None:
        for name in (FAILED,) if wanted.status == "failed" else (RESULTS, PARQUET):
            if name == PARQUET and not can_be_read():
                continue
            if (file := storage.open(name)) is None:
                continue
            if name == PARQUET:
                return ParquetRecords(storage, file, vectors=wanted.vectors), True
            with file, storage_errors(storage.location, "read"):
                # The next run replaces the file as a whole, hardly ever by one of the same size.
                stamp = str(file.seek(0, 2))
            return LineFiles(storage, [LineFile(stamp, (name,))], wanted.skips), True
    parts = list_parts(storage)
    if wanted.status == "failed":
        parts = _of_current_pass(parts)
    return LineFiles(storage, list(map(of_part, parts)), wanted.skips), False


def _of_current_pass(parts: Sequence[Part]) -> list[Part]:
    """Return the parts of the newest pass of each shard: what failed in an earlier one is asked again."""
    newest: dict[str, int] = {}
    for part in parts:
        newest[part.shard] = max(part.pass_number, newest.get(part.shard, 0))
    return [part for part in parts if part.pass_number == newest[part.shard]]


class _Wanted:
    """Which rows are shown.

    Args:
        status: of the rows.
        search: text in lower case; empty for all.
        reason: class of the error; empty for all.
        vectors: the answers are vectors, which are not shown.
    """

    def __init__(self, status: Status, search: str, reason: str, *, vectors: bool) -> None:
        self.status = status
        self.vectors = vectors
        self._search = search
        self._reason = reason
        # What a line has if the row is wanted. Whether it is, is seen when the line is parsed, which takes far longer.
        self._values = [json.dumps(value).encode() for value in (status, reason) if value]
        self._word = max(re.findall("[a-z0-9]+", search), key=len, default="").encode()

    def skips(self, line: bytes) -> bool:
        """Return whether a line is surely none of them, without parsing it."""
        return any(value not in line for value in self._values) or (bool(self._word) and self._word not in line.lower())

    def row(self, line: Line) -> PageRow | None:
        """Return what is shown of a line; None if it is none of them."""
        if line.status != self.status:
            return None
        reason, text = ("", self._answer(line))
        if line.error is not None:
            reason, text = line.error.kind, without_advice(line.error.kind, line.error.text)
        if self._reason not in {"", reason}:
            return None
        row_id = None if line.id is None else _as_text(line.id)
        texts = (row_id, reason, text, line.reply)
        if self._search and not any(self._search in each.lower() for each in texts if each):
            return None
        return PageRow(
            key=line.key,
            index=line.index,
            id=_beginning(row_id),
            reason=reason,
            text=_beginning(text) or Text("", 0),
            reply=_beginning(line.reply),
            attempts=line.attempts,
            tokens=line.tokens,
            seconds=line.seconds,
            is_cut=line.is_cut,
        )

    def _answer(self, line: Line) -> str:
        if not self.vectors:
            return _as_text(line.output)
        if line.spans is not None:
            return f"{len(line.spans)} vectors"
        return "a vector" if line.start is None else f"a vector of the characters {line.start} to {line.end}"


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _beginning(text: str | None) -> Text | None:
    return None if text is None else Text(text[:_SHOWN], len(text))
