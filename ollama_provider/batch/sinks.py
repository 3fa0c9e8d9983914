"""Where outcomes go: all rows and the failed rows, in the order of the input, and the summary.

The parts hold outcomes in the order in which they came. The input's order is kept as one number a row, so the results
are a streaming merge: look up the place, copy the line, put index and id into it. Neither rows nor outcomes are ever in
memory together.
"""

import json
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from math import isfinite
from types import MappingProxyType
from typing import IO, Any, BinaryIO, Protocol

from pydantic_core import from_json

from ollama_provider.batch.journal import AFTER_KEY, Journal, well_formed
from ollama_provider.batch.storage import Storage, Writing

RESULTS, FAILED = "results.jsonl", "failed.jsonl"
_ALL_RESULTS = frozenset({RESULTS, "results.parquet"})

_BUFFER = 1 << 20
_OPEN_PARTS = 100
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
        return well_formed(value if isinstance(value, str) else repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"a value of type {type(value).__name__} that has no text"


def _as_text(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else well_formed(str(value))


_ENCODE = json.JSONEncoder(default=_as_text, allow_nan=False).encode


class Order:
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

    def close(self) -> None:
        """Forget the ids."""
        if self._ids is not None:
            self._ids.close()


class Parts:
    """The parts, read at any place, with a bounded number of them open."""

    def __init__(self, storage: Storage, journal: Journal) -> None:
        self._storage = storage
        self._journal = journal
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def line(self, part: int, offset: int) -> bytes:
        """Return the line of an outcome, without its checksum.

        Raises:
            StorageError: it is damaged.
        """
        file = self._file(part)
        if file.tell() != offset:
            file.seek(offset)
        return self._journal.outcome(part, file.readline())

    def _file(self, part: int) -> BinaryIO:
        file = self._open.get(part)
        if file is None:
            if len(self._open) >= _OPEN_PARTS:
                self._open.popitem(last=False)[1].close()
            # Rows come nearly in order, so a small buffer finds most lines in what it has read already.
            file = self._open[part] = self._storage.local(self._journal.part(part)).open("rb", buffering=1 << 16)
        else:
            self._open.move_to_end(part)
        return file

    def close(self) -> None:
        """Close them."""
        for file in self._open.values():
            file.close()


class Results(Protocol):
    """A file with all rows."""

    #: Of the file.
    name: str

    def open(self, file: Writing, order: "Order", lines: Iterator[bytes]) -> None:
        """Begin.

        Args:
            file: to write into.
            order: all rows to come.
            lines: their lines in the parts, for who must know something of them beforehand.
        """

    def add(self, line: bytes, index: int, row_id: bytes) -> None:
        """Write a row: its line of a part, its place in the input, and its id as JSON."""

    def close(self) -> None:
        """Write what is left."""


class JsonLines:
    """``results.jsonl``: the lines of the parts, with index and id put behind the key."""

    name = RESULTS

    def open(self, file: Writing, order: "Order", lines: Iterator[bytes]) -> None:  # noqa: ARG002  # it need not know
        """See `Results`."""
        self._buffered = _Buffered(file)
        self._add = self._buffered.add

    def add(self, line: bytes, index: int, row_id: bytes) -> None:
        """See `Results`."""
        self._add(line[:AFTER_KEY], b',"index":%d,"id":%b' % (index, row_id), line[AFTER_KEY:])

    def close(self) -> None:
        """See `Results`."""
        self._buffered.flush()


class _Buffered:
    def __init__(self, file: Writing) -> None:
        self._file = file
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, *pieces: bytes) -> None:
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        if self._size >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._pieces:
            self._file.write(b"".join(self._pieces))
            self._pieces, self._size = [], 0


def _failed(line: bytes, error: dict[str, str]) -> bytes:
    """Return the line of a good outcome as that of a failed one, with the answer as its raw reply."""
    fields = json.loads(line)
    output = fields["output"]
    fields |= {"status": "failed", "output": None, "error": error}
    fields["reply"] = output if isinstance(output, str) else json.dumps(output)
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def write_results(
    storage: Storage,
    journal: Journal,
    order: Order,
    results: Results,
    check: Callable[[], None] = lambda: None,
    *,
    refused: Mapping[int, dict[str, str]] = MappingProxyType({}),
) -> int:
    """Make the results, and ``failed.jsonl``: one line a row, ASCII, in the order of the input.

    Args:
        storage: the directory.
        journal: every outcome in it must be sealed.
        order: the rows.
        results: how all rows are written; an older file in another shape is removed.
        check: called now and then; may raise to give up.
        refused: rows, by index, that failed after their outcome was sealed, and why.

    Returns:
        How many rows failed.

    Raises:
        OSError: one of them could not be written; an older one is still there then.
    """
    parts = Parts(storage, journal)
    failures = 0
    try:
        with storage.create(results.name) as results_file, storage.create(FAILED) as failed_file:
            failed = JsonLines()
            failed.open(failed_file, order, iter(()))
            results.open(results_file, order, (parts.line(*journal.place(number)) for _, number, _ in order.rows()))
            for index, number, row_id in order.rows():
                line = parts.line(*journal.place(number))
                if index in refused:
                    line = _failed(line, refused[index])
                results.add(line, index, row_id)
                if not line.startswith(b',"status":"ok"', AFTER_KEY):
                    failed.add(line, index, row_id)
                    failures += 1
                if not index % 1000:
                    check()
            results.close()
            failed.close()
        for name in _ALL_RESULTS - {results.name}:
            storage.delete(name)
    finally:
        parts.close()
    return failures
