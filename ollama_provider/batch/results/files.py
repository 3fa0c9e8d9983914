"""Where outcomes go: all rows and the failed rows, in the order of the input, and the summary.

The parts hold outcomes in the order in which they came. The input's order is kept as one number a row, so the results
are a streaming merge: look up the place, copy the line, put index and id into it. Neither rows nor outcomes are ever in
memory together.
"""

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from math import isfinite
from types import MappingProxyType
from typing import IO, Any, Protocol

from pydantic_core import from_json

from ollama_provider.batch.store.journal import AFTER_KEY, Journal, PartReader, State, escape_surrogates
from ollama_provider.batch.store.storage import FileWriter, Storage

RESULTS, FAILED = "results.jsonl", "failed.jsonl"
_ALL_RESULTS = frozenset({RESULTS, "results.parquet"})

#: Class of the error of a row that a table cannot hold.
REFUSED = "RefusedByTable"

_BUFFER = 1 << 20
#: Rows, or bytes of their lines, that are written at a time; a group of rows in Parquet.
_ROWS, _BYTES = 1000, 8 << 20
_MISSING = 2**32 - 1


def as_json(value: Any) -> bytes:
    r"""Return the value of an id column as strict JSON.

    Dates become ISO 8601, decimals text, bytes hex digits, NaN null; half a surrogate pair becomes its escape, such as
    ``\ud83d``; what JSON cannot say at all becomes the text that Python writes for it.
    """
    if isinstance(value, float) and not isfinite(value):
        return b"null"
    try:
        found = _ENCODE(value)
        if found[0] in "[{" or "\\ud" in found:  # else it is strict already
            from_json(found, allow_inf_nan=False)
    except (TypeError, ValueError, RecursionError):  # NaN, odd keys or half a pair somewhere inside, or too deep
        return _ENCODE(_description(value)).encode()
    return found.encode()


def _description(value: Any) -> str:
    try:
        return escape_surrogates(value if isinstance(value, str) else repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"a value of type {type(value).__name__} that has no text"


def _as_text(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else escape_surrogates(str(value))


_ENCODE = json.JSONEncoder(default=_as_text, allow_nan=False).encode


class RowOrder:
    """The rows of the input: for each the number of its key, and its id.

    Four bytes a row in memory; the ids lie in a temporary file, which a crash may take with it.
    """

    def __init__(self, *, with_ids: bool) -> None:
        self._numbers = array("I")
        self._ids: IO[bytes] | None = tempfile.TemporaryFile(buffering=_BUFFER) if with_ids else None  # noqa: SIM115  # closed by close()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int | None, row_id: Any) -> None:
        """Append a row; *number* None is a row without an outcome."""
        self._numbers.append(_MISSING if number is None else number)
        if self._ids is not None:
            self._ids.write(as_json(row_id) + b"\n")

    def rows(self) -> Iterator[tuple[int, int, bytes]]:
        """Return index, number and id (as JSON) of each row that has an outcome."""
        if self._ids is not None:
            self._ids.seek(0)
        for index, number in enumerate(self._numbers):
            row_id = self._ids.readline()[:-1] if self._ids is not None else b"null"
            if number != _MISSING:
                yield index, number, row_id

    def count(self, journal: Journal) -> tuple[int, int]:
        """Return how many rows have a good result, and how many have failed."""
        found = Counter(map(journal.state, filter(_MISSING.__ne__, self._numbers)))
        return found[State.OK], found[State.FAILED] + found[State.FAILED_BEFORE]

    def close(self) -> None:
        """Forget the ids."""
        if self._ids is not None:
            self._ids.close()


#: A row of the results: its line of a part, its place in the input, and its id as JSON.
ResultRow = tuple[bytes, int, bytes]


class Results(Protocol):
    """A file with all rows."""

    #: Of the file.
    name: str

    def open(self, file: FileWriter, order: "RowOrder", lines: Iterator[bytes]) -> None:
        """Begin.

        Args:
            file: to write into.
            order: all rows to come.
            lines: their lines in the parts, for who must know something of them beforehand.
        """

    def write(self, rows: Sequence[ResultRow]) -> Mapping[int, str]:
        """Write some rows.

        Returns:
            Those that the file cannot hold, by their place in *rows*, with the reason. None of *rows* is written then.
        """

    def close(self) -> None:
        """Write what is left."""

    def abandon(self) -> None:
        """End without writing anything more: the file is given up."""


class JsonLines:
    """``results.jsonl``: the lines of the parts, with index and id put behind the key."""

    name = RESULTS

    def open(self, file: FileWriter, order: "RowOrder", lines: Iterator[bytes]) -> None:  # noqa: ARG002  # it need not know
        """See `Results`."""
        self._file = file

    def write(self, rows: Sequence[ResultRow]) -> Mapping[int, str]:
        """See `Results`."""
        pieces: list[bytes] = []
        for line, index, row_id in rows:
            pieces += line[:AFTER_KEY], b',"index":%d,"id":%b' % (index, row_id), line[AFTER_KEY:]
        self._file.write(b"".join(pieces))
        return {}

    def close(self) -> None:
        """See `Results`."""

    def abandon(self) -> None:
        """See `Results`."""


def _failed(line: bytes, error: dict[str, str]) -> bytes:
    """Return the line of an outcome as that of a failed one, with the answer as its raw reply.

    What failed already keeps no more than its error and its reply: the rest is what could not be written.
    """
    given = json.loads(line)
    found = {"key": given["key"], "status": "failed", "output": None, "error": error, "reply": given.get("reply")}
    if given["status"] == "ok":
        output = given["output"]
        found = given | found | {"reply": output if isinstance(output, str) else json.dumps(output)}
        found.pop("spans", None)
    return json.dumps(found, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Written:
    """What became of the results.

    Attributes:
        failed: rows that failed, those among them that the results could not hold.
        refused: outcomes that were good and that the results could not hold; the next run asks them again.
        refused_fresh: those of them that are of this run.
    """

    failed: int
    refused: int = 0
    refused_fresh: int = 0


def write_results(
    storage: Storage,
    journal: Journal,
    order: RowOrder,
    results: Results,
    check: Callable[[], None] = lambda: None,
    *,
    refused: Mapping[int, dict[str, str]] = MappingProxyType({}),
) -> Written:
    """Make the results, and ``failed.jsonl``: one line a row, ASCII, in the order of the input.

    Args:
        storage: the directory.
        journal: every outcome in it must be sealed.
        order: the rows.
        results: how all rows are written; an older file in another shape is removed.
        check: called now and then; may raise to give up.
        refused: rows, by index, that failed after their outcome was sealed, and why.

    Raises:
        StorageError: one of them could not be written, or a part was damaged during the run; an older file is still
            there then.
    """
    parts = PartReader(storage, journal)
    failures = 0
    unfit: dict[int, bytes] = {}
    try:
        with storage.create(results.name) as results_file, storage.create(FAILED) as failed_file:
            failed = JsonLines()
            failed.open(failed_file, order, iter(()))
            try:
                results.open(results_file, order, (parts.line(*journal.place(number)) for _, number, _ in order.rows()))
                for numbers, rows in _groups(parts, journal, order, refused):
                    while misfits := results.write(rows):
                        for place, why in misfits.items():
                            line, index, row_id = rows[place]
                            line = _failed(line, {"class": REFUSED, "text": f"{results.name}: {why}"})
                            rows[place] = line, index, row_id
                            unfit[numbers[place]] = line
                    failing = [row for row in rows if not row[0].startswith(b',"status":"ok"', AFTER_KEY)]
                    failed.write(failing)
                    failures += len(failing)
                    check()
                results.close()
            except BaseException:
                results.abandon()
                raise
        for name in _ALL_RESULTS - {results.name}:
            storage.delete(name)
    finally:
        parts.close()
    # Not before: what the rows of the results are made of must stay where it is.
    good = {number: line for number, line in unfit.items() if journal.state(number) is State.OK}
    fresh = sum(map(journal.is_from_this_run, good))
    for number, line in good.items():
        journal.mark_refused(number, line)
    if journal.end_part():
        journal.write_parts()
    return Written(failures, len(good), fresh)


def _groups(
    parts: PartReader, journal: Journal, order: RowOrder, refused: Mapping[int, dict[str, str]]
) -> Iterator[tuple[list[int], list[ResultRow]]]:
    """Return all rows that have an outcome, some at a time, with the numbers of their keys."""
    numbers: list[int] = []
    rows: list[ResultRow] = []
    size = 0
    for index, number, row_id in order.rows():
        line = parts.line(*journal.place(number))
        if index in refused:
            line = _failed(line, refused[index])
        numbers.append(number)
        rows.append((line, index, row_id))
        size += len(line)
        if len(rows) >= _ROWS or size >= _BYTES:
            yield numbers, rows
            numbers, rows, size = [], [], 0
    if rows:
        yield numbers, rows
