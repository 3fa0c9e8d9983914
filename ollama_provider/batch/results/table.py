"""Good results go into a table of the user's, and a note in the directory says which rows it has.

A result is written only when a checkpoint holds it, so the table never has a row that a crash could take back. A crash
between the table's commit and the note makes the next run write those rows once more. Since a row is an upsert, that
does no harm; a note without its row cannot happen.

Shards write their rows, too, and the merge what is left. If two shards note another content for the same row of the
table, which of them came last is unknown. Neither counts then, and the merge writes that row again.
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
from typing import Any

from ollama_provider.batch.errors import DatabaseGoneError
from ollama_provider.batch.records import REFUSED, Table, Vectors, canonical_json
from ollama_provider.batch.results.json_lines import MisfitError, vector_numbers, vector_rows
from ollama_provider.batch.spec import Shard
from ollama_provider.batch.store.journal import Journal, PartReader, State
from ollama_provider.batch.store.keys import KEY_BYTES, Index
from ollama_provider.batch.store.storage import Storage, write

logger = logging.getLogger(__name__)

_FOLDER = "written"
#: A note: hash of the table's key, hash of what the row has.
_NOTE = Struct(f"<{KEY_BYTES}sQ")
#: The lowest bits of a content hash are free. One says that the row was written by this run, the others by whom.
_FREE, _WRITTEN_NOW = 0xFFFF, 1
#: Neither a whole run, which is 0, nor a shard: two shards that disagree.
_DISPUTED = 0xFFFE
_NAME = re.compile(rf"{_FOLDER}/(\d+)-[0-9a-f]{{8}}(?:\.(\d+)of\d+)?")

#: Rows of one statement; rows written between two notes; rows that wait at most while the database is down.
_CHUNK, _NOTED, _BACKLOG = 500, 10_000, 50_000
#: Seconds of the first and the longest pause while the database is down.
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
#: Seconds after which a pause looks whether it is still wanted.
_SLICE = 0.1


class WrittenKeys:
    """Which rows of a table have which result, as noted in the directory's ``written/``. Takes 35 bytes a row.

    Args:
        storage: the directory.
        target: which table and columns, as plain data. Rows written to another target do not count.
        shard: that notes; None for a whole batch, also for a merge.
    """

    def __init__(self, storage: Storage, target: Mapping[str, Any], shard: Shard | None = None) -> None:
        self._storage = storage
        self._suffix = "" if shard is None else f".{shard.name}"
        self._writer = _writer(None if shard is None else shard.number)
        self._seed = blake2b(canonical_json(target).encode(), digest_size=KEY_BYTES)
        self._index = Index()
        self._notes: list[bytes] = []
        files = sorted(
            (int(match[1]), name, _writer(None if match[2] is None else int(match[2])))
            for name in storage.names(_FOLDER)
            if (match := _NAME.fullmatch(name))
        )
        # Runs at the same time take the same numbers. Their tokens differ.
        self._next = 1 + max((number for number, _, _ in files), default=0)
        for _, name, writer in files:
            notes = storage.read(name) or b""
            # A damaged note matches no row. That row is written once more, which does no harm.
            for row, content in _NOTE.iter_unpack(notes[: len(notes) // _NOTE.size * _NOTE.size]):
                self._load(self._index.number(row), content & ~_FREE, writer)

    def _load(self, number: int, content: int, writer: int) -> None:
        before = self._index[number]
        if writer and before & _FREE not in {0, writer} and before & ~_FREE != content:
            self._index[number] = _DISPUTED
        else:
            self._index[number] = content | writer

    def row_hash(self, table_key: Any) -> bytes:
        """Return the hash of the table's row with this key."""
        digest = self._seed.copy()
        digest.update(canonical_json({"": table_key}).encode())
        return digest.digest()

    @staticmethod
    def content_hash(key: str, values: Any) -> int:
        """Return the hash of what a row has: the key of its result, and the values that are not the model's."""
        digest = blake2b(key.encode(), digest_size=8)
        digest.update(canonical_json({"": values}).encode())
        # No content is 0, which stands for a row that nobody has written.
        return (int.from_bytes(digest.digest(), "little") & ~_FREE) or _FREE + 1

    def has(self, row: bytes, content: int) -> bool:
        """Return whether the table's row has this content already."""
        return self._index[self._index.number(row)] & ~_FREE == content

    def add(self, row: bytes, content: int) -> bool:
        """Note what was written. Return whether this run wrote another content to the same row before."""
        number = self._index.number(row)
        before = self._index[number]
        self._index[number] = content | self._writer | _WRITTEN_NOW
        self._notes.append(_NOTE.pack(row, content))
        return bool(before & _WRITTEN_NOW) and before & ~_FREE != content

    def save(self) -> None:
        """Store the notes that were added since the last call."""
        if self._notes:
            write(self._storage, f"{_FOLDER}/{self._next:08d}-{token_hex(4)}{self._suffix}", b"".join(self._notes))
            self._next += 1
            self._notes = []


def _writer(shard: int | None) -> int:
    """Return what stands for a shard in the free bits of a content hash; 0 for a whole run."""
    return 0 if shard is None else (shard % (_DISPUTED // 2 - 1) + 1) << 1


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A row of the input whose result, there already or to come, belongs into the table.

    It is what stays of a row while its prompt is answered, so it has no more of the input than the table takes.

    Attributes:
        number: the journal's number of its key.
        own: what does not come from the model: ``index``, ``id``, ``key`` and ``row`` (columns of the input).
        fresh: the result is one of this run.
    """

    number: int
    own: dict[str, Any]
    fresh: bool


class TableWriter:
    """Writes the results of a run into a table, in a thread of its own, as soon as they are in a checkpoint.

    Args:
        table: takes the results.
        written: rows that the table has.
        storage: the directory.
        journal: knows the results.
        vectors: the results are vectors.
        max_outage: seconds to wait for a database that is down.
        pause: waits so many seconds; may raise to end the run.
    """

    def __init__(
        self,
        table: Table,
        written: WrittenKeys,
        storage: Storage,
        journal: Journal,
        *,
        vectors: bool,
        max_outage: float,
        pause: Callable[[float], None],
    ) -> None:
        self._table = table
        self._written_keys = written
        self._journal = journal
        self._max_outage = max_outage
        self._pause = pause
        self._parts = PartReader(storage, journal)
        self._result = _vectors if vectors else json.loads
        self._columns = table.row_columns
        self._waiting: list[PendingRow] = []
        self._ready: deque[PendingRow] = deque()
        self._work = asyncio.Event()
        # One thread, since a connection to a database must not be shared, and rows must be written in their order.
        self._thread = ThreadPoolExecutor(1, "batch-table")
        self._closing = False
        #: Rows written in this run.
        self.written = 0
        #: Rows written in this run over another result of this run: the table's key does not tell them apart.
        self.overwritten = 0
        #: Refused rows whose result is one of this run.
        self.refused_fresh = 0
        # By index of the row: the text of the database.
        self._refused: dict[int, str] = {}

    async def open(
        self, examples: Sequence[Mapping[str, Any]], id_column: str | None, vectors: Vectors | None = None
    ) -> None:
        """Check that the table can be written; see `Table.open`."""
        await self._in_thread(self._table.open, examples, id_column, vectors)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def add(self, number: int, key: bytes, index: int, row_id: Any, columns: Mapping[str, Any], *, fresh: bool) -> None:
        """Note a row whose result, there already or to come, belongs into the table."""
        row = {name: columns.get(name) for name in self._columns}
        self._waiting.append(PendingRow(number, {"index": index, "id": row_id, "key": key.hex(), "row": row}, fresh))

    @property
    def is_behind(self) -> bool:
        """So many rows wait for the table that no more should be read."""
        return len(self._ready) > _BACKLOG

    def on_checkpoint(self) -> None:
        """Queue the rows whose results are in a checkpoint by now."""
        journal, waiting = self._journal, []
        for row in self._waiting:
            match journal.state(row.number):
                case State.OK if journal.is_sealed(row.number):
                    self._ready.append(row)
                case State.FAILED if journal.is_sealed(row.number):  # until then it may be discarded and asked again
                    pass
                case _:
                    waiting.append(row)
        self._waiting = waiting
        if self._ready:
            self._work.set()

    async def run(self, on_written: Callable[[], None]) -> None:
        """Write what is queued, until cancelled; *on_written* is called after each bundle of rows."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._ready:
                await self._in_thread(self._write_queued)
                on_written()

    async def finish(self) -> dict[int, dict[str, str]]:
        """Write all results that are in a checkpoint; return the rows that the table refused, by index, with the error.

        Raises:
            DatabaseGoneError: the database was down for longer than *max_outage*.
        """
        self.on_checkpoint()
        while self._ready:
            await self._in_thread(self._write_queued)
        if self.overwritten:
            logger.warning(
                "%d rows have the same key of the table as another row of the input, and another result: which of "
                "them is in the table is chance.", self.overwritten,
            )  # fmt: skip
        return {index: {"class": REFUSED, "text": text} for index, text in self._refused.items()}

    async def close(self) -> None:
        """End, without writing what is queued."""
        self._closing = True
        await self._in_thread(self._close)
        self._thread.shutdown(wait=True)

    # The methods below run in the thread.

    def _close(self) -> None:
        self._parts.close()
        self._table.close()

    def _write_queued(self) -> None:
        count = 0
        try:
            while self._ready and count < _NOTED and not self._closing:
                self._pause(0.0)
                chunk = [self._ready[place] for place in range(min(_CHUNK, len(self._ready)))]
                count += self._write_chunk(chunk)
                for _ in chunk:
                    self._ready.popleft()
        finally:
            if count:
                self._written_keys.save()

    def _write_chunk(self, chunk: Sequence[PendingRow]) -> int:
        """Write those results that the table does not have yet; return how many were written."""
        due: list[tuple[PendingRow, bytes, int]] = []
        results: list[dict[str, Any]] = []
        for row in chunk:
            table_key, values = self._table.of_row(row.own)
            row_hash = self._written_keys.row_hash(table_key)
            content = self._written_keys.content_hash(row.own["key"], values)
            if self._written_keys.has(row_hash, content):
                continue
            try:
                result = self._result(self._parts.line(*self._journal.place(row.number)))
            except MisfitError as error:
                self._refuse(row, str(error))
                continue
            due.append((row, row_hash, content))
            results.append(result | row.own)
        refused = self._write_with_retries(results) if results else {}
        for place, (row, row_hash, content) in enumerate(due):
            if (text := refused.get(place)) is not None:
                self._refuse(row, text)
            else:
                self.overwritten += self._written_keys.add(row_hash, content)
        count = len(due) - len(refused)
        self.written += count
        return count

    def _refuse(self, row: PendingRow, text: str) -> None:
        self._refused[row.own["index"]] = text
        self.refused_fresh += row.fresh

    def _write_with_retries(self, results: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        waited, pause = 0.0, _PAUSE
        while True:
            try:
                return self._table.write(results)
            except DatabaseGoneError as gone:
                if waited >= self._max_outage or self._closing:
                    raise
                logger.warning(
                    "Database unavailable, writing again in %.0f s (requests go on, no result is lost): %s",
                    pause, gone,
                )  # fmt: skip
            end = monotonic() + pause
            while monotonic() < end and not self._closing:
                self._pause(_SLICE)
            waited, pause = waited + pause, min(2 * pause, _LONGEST_PAUSE)


def _vectors(line: bytes) -> dict[str, Any]:
    """Return the result of a line of a part with vectors, as `Table.write` takes it."""
    pieces = [row | {"output": vector_numbers(row["output"])} for row in vector_rows(line)]
    return {**pieces[0], "pieces": pieces} if "chunk" in pieces[0] else pieces[0]
