"""What was written into a table before, so that it is not written again.

Of each row of the table: whose result it has. A crash between the table's commit and the note in the ledger makes the
next run write those rows once more, which an upsert makes harmless; the other way round cannot happen.
"""

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from secrets import token_hex
from struct import Struct
from time import monotonic
from typing import Any, ClassVar

from ollama_provider.batch.errors import DatabaseGoneError
from ollama_provider.batch.records import Table
from ollama_provider.batch.results.files import REFUSED, Parts
from ollama_provider.batch.rows.sources import canonical
from ollama_provider.batch.store.journal import KEY_BYTES, Index, Journal, State
from ollama_provider.batch.store.storage import Storage, write

_FOLDER = "written"
#: Which row of the table, and what it has.
_NOTE = Struct(f"<{KEY_BYTES}sQ")
_NEW = 1
_NAME = re.compile(rf"{_FOLDER}/(\d+)-[0-9a-f]{{8}}")


class WrittenKeys:
    """The notes in a directory, 35 bytes of memory a row.

    Args:
        storage: the directory.
        table: says which table and columns, as plain data: what was written elsewhere or otherwise does not count.
    """

    def __init__(self, storage: Storage, table: Mapping[str, Any]) -> None:
        self._storage = storage
        self._seed = blake2b(canonical(table).encode(), digest_size=KEY_BYTES)
        self._index = Index()
        self._notes: list[bytes] = []
        files = sorted((int(match[1]), name) for name in storage.names(_FOLDER) if (match := _NAME.fullmatch(name)))
        # Two runs that write at the same time take the same numbers, and no row in common.
        self._next = 1 + max((number for number, _ in files), default=0)
        for _, name in files:
            notes = storage.read(name) or b""
            # A note that is damaged stands for nothing: its row is written once more, which does no harm.
            for place, content in _NOTE.iter_unpack(notes[: len(notes) // _NOTE.size * _NOTE.size]):
                self._index[self._index.number(place)] = content

    def place(self, identity: Any) -> bytes:
        """Return what stands for the row of the table with this key."""
        digest = self._seed.copy()
        digest.update(canonical({"": identity}).encode())
        return digest.digest()

    @staticmethod
    def content(key: str, values: Any) -> int:
        """Return what stands for a result, and for what the row itself gives to the table."""
        digest = blake2b(key.encode(), digest_size=8)
        digest.update(canonical({"": values}).encode())
        return int.from_bytes(digest.digest(), "little") & ~_NEW

    def has(self, place: bytes, content: int) -> bool:
        """Tell whether the table's row has this content already."""
        return self._index[self._index.number(place)] & ~_NEW == content

    def note(self, place: bytes, content: int) -> bool:
        """Note what was written; tell whether this very run wrote another content to the same row before."""
        number = self._index.number(place)
        before = self._index[number]
        self._index[number] = content | _NEW
        self._notes.append(_NOTE.pack(place, content))
        return bool(before & _NEW) and before & ~_NEW != content

    def save(self) -> None:
        """Write the notes down that came since the last call."""
        if self._notes:
            write(self._storage, f"{_FOLDER}/{self._next:08d}-{token_hex(4)}", b"".join(self._notes))
            self._next += 1
            self._notes = []


logger = logging.getLogger(__name__)

#: Rows of one statement, rows between two notes in the ledger, and rows that wait at most while the table is gone.
_CHUNK, _NOTED, _BACKLOG = 500, 10_000, 50_000
#: Seconds of the first and the longest pause while the table is gone.
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_SLICE = 0.1


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A row of the input that goes into the table as soon as its result is stored."""

    number: int
    key: bytes
    index: int
    row_id: Any
    row: dict[str, Any]
    fresh: bool


class TableWriter:
    """Brings the results of a run to a table.

    Args:
        table: where to.
        storage: the directory.
        journal: holds the results.
        max_outage: seconds to wait for a table that is gone.
        pause: waits so many seconds; may raise to give up.
    """

    def __init__(
        self, table: Table, storage: Storage, journal: Journal, *, max_outage: float, pause: Callable[[float], None]
    ) -> None:
        self._table = table
        self._journal = journal
        self._storage = storage
        self._max_outage = max_outage
        self._pause = pause
        self._parts = Parts(storage, journal)
        self._columns = table.row_columns
        self._waiting: list[PendingRow] = []
        self._ready: deque[PendingRow] = deque()
        self._news = asyncio.Event()
        # One thread: a connection is not shared, and the order of writing is the order of sealing.
        self._writer = ThreadPoolExecutor(1, "batch-table")
        self._closing = False
        #: Rows written in this run, and rows that share their place in the table with an earlier one of the run.
        self.written = self.overwritten = 0
        # By index, with the table's words; and how many of them were answered in this run.
        self._refused: dict[int, str] = {}
        self.refused_fresh = 0

    async def open(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> None:
        """See `Table.open`; and read what was written before."""
        await self._run(self._table.open, examples, id_column)
        self._ledger: WrittenKeys = await self._run(WrittenKeys, self._storage, self._table.target)

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *arguments)

    def expect(
        self, number: int, key: bytes, index: int, row_id: Any, columns: Mapping[str, Any], *, fresh: bool
    ) -> None:
        """Note a row whose result, there or to come, belongs into the table."""
        row = {name: columns.get(name) for name in self._columns}
        self._waiting.append(PendingRow(number, key, index, row_id, row, fresh))

    @property
    def lags(self) -> bool:
        """So many rows wait for the table that no more should be read."""
        return len(self._ready) > _BACKLOG

    def sealed(self) -> None:
        """Take up those rows whose results are sealed by now."""
        journal, waiting = self._journal, []
        for due in self._waiting:
            match journal.state(due.number):
                case State.OK if journal.is_written(due.number):
                    self._ready.append(due)
                case State.FAILED:
                    pass
                case _:
                    waiting.append(due)
        self._waiting = waiting
        if self._ready:
            self._news.set()

    async def at_times(self, afterwards: Callable[[], None]) -> None:
        """Write whenever there is something to write; for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._ready:
                await self._run(self._write_some)
                afterwards()

    async def finish(self) -> dict[int, dict[str, str]]:
        """Write all that is sealed; return the rows that the table refused, by index, and why.

        Raises:
            DatabaseGoneError: the table was gone for longer than is tolerated.
        """
        self.sealed()
        while self._ready:
            await self._run(self._write_some)
        if self.overwritten:
            logger.warning(
                "%d rows have the same key of the table as another row of the input, and another result: which of "
                "them is in the table is chance.", self.overwritten,
            )  # fmt: skip
        return {index: {"class": REFUSED, "text": words} for index, words in self._refused.items()}

    async def close(self) -> None:
        """End, without writing what waits."""
        self._closing = True
        await self._run(self._close)
        self._writer.shutdown(wait=True)

    def _close(self) -> None:
        self._parts.close()
        self._table.close()

    # In the thread of the table.

    def _write_some(self) -> None:
        noted = 0
        try:
            while self._ready and noted < _NOTED and not self._closing:
                self._pause(0.0)
                chunk = [self._ready[place] for place in range(min(_CHUNK, len(self._ready)))]
                noted += self._write_chunk(chunk)
                for _ in chunk:
                    self._ready.popleft()
        finally:
            if noted:
                self._ledger.save()

    def _write_chunk(self, chunk: Sequence[PendingRow]) -> int:
        """Write those results that the table does not have yet; return how many were written."""
        due: list[tuple[PendingRow, bytes, int]] = []
        results: list[dict[str, Any]] = []
        for row in chunk:
            key = row.key.hex()
            own = {"index": row.index, "id": row.row_id, "key": key, "row": row.row}
            identity, values = self._table.of_row(own)
            place, content = self._ledger.place(identity), self._ledger.content(key, values)
            if not self._ledger.has(place, content):
                due.append((row, place, content))
                results.append(json.loads(self._parts.line(*self._journal.place(row.number))) | own)
        refused = self._write_patiently(results) if results else {}
        for number, (row, place, content) in enumerate(due):
            if (words := refused.get(number)) is not None:
                self._refused[row.index] = words
                self.refused_fresh += row.fresh
            else:
                self.overwritten += self._ledger.note(place, content)
        written = len(due) - len(refused)
        self.written += written
        return written

    def _write_patiently(self, results: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        waited, pause = 0.0, _PAUSE
        while True:
            try:
                return self._table.write(results)
            except DatabaseGoneError as gone:
                if waited >= self._max_outage or self._closing:
                    raise
                logger.warning("Results wait %.0f s for their table, none is lost: %s", pause, gone)
            end = monotonic() + pause
            while monotonic() < end and not self._closing:
                self._pause(_SLICE)
            waited, pause = waited + pause, min(2 * pause, _LONGEST_PAUSE)


class NoTableWriter:
    """What a run has that has no table."""

    lags: ClassVar[bool] = False
    written: ClassVar[int] = 0
    refused_fresh: ClassVar[int] = 0

    async def open(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> None:
        """Do nothing, as the others."""

    def expect(
        self, number: int, key: bytes, index: int, row_id: Any, columns: Mapping[str, Any], *, fresh: bool
    ) -> None:
        """See `TableWriter`."""

    def sealed(self) -> None:
        """See `TableWriter`."""

    async def at_times(self, afterwards: Callable[[], None]) -> None:
        """See `TableWriter`."""

    async def finish(self) -> dict[int, dict[str, str]]:
        """See `TableWriter`."""
        return {}

    async def close(self) -> None:
        """See `TableWriter`."""
