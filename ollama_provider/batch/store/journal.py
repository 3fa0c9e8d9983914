"""The journal: what was done before in a directory, and how a run knows that it is the same work.

Three promises, each with a test of its name:

1. *The key is the work.* See `ollama_provider.batch.store.keys`.
2. *What is written stays, and is not asked again.* A good result is used by all later runs. A failed row counts until
   its pass over the input is complete; the next pass asks it again.
3. *A crash loses little, and it is known what.* In a local directory each outcome is appended to an open part before
   the next request is sent. So a killed process loses the requests in flight, and nothing else. When the machine stops,
   the outcomes since the last checkpoint may be lost as well (see ``checkpoint_every``): a checkpoint *seals* the part,
   which forces it to the disk and gives it its final name. In an object store a part appears when it is sealed.

The files::

    batch.json               the manifest: settings and pass, written first
    parts/0001-0002-000003-5f0c9a1e.jsonl    outcomes as they came: pass, run within the pass, part, token of the run
    parts/0001-0002-000004-5f0c9a1e.open.jsonl    the same, not sealed yet
    results.jsonl, failed.jsonl     all rows, and the failed ones, in the order of the input
    summary.json             written last: its presence says that the pass is complete
    progress.json            where a running batch stands
    history.json             how fast it was over time, and when runs began and ended
    prompts.json             prompts of the rows that the report shows, where they are wanted in it
    report.html              what all of these say, for people
    rehearsal/               what a rehearsal keeps for itself; its parts are those of pass 0
    report.json              the same as data, for a page elsewhere

A *pass* goes once over the input, in as many runs as it takes. It is complete when a run comes to its own end.

The name of a part ends with a random token of the run that wrote it. Two runs that both believe that the directory is
theirs cannot overwrite each other's parts. The parts of a shard bear its name as well.

A part that a killed run left open is read by the next run like any other, and sealed as soon as the server has shown
the digest of its model: the same digest before and after tells who gave the answers in between. Answers of another
digest are kept without one, as in `ollama_provider.batch.store.checkpoints`.

Each line has a checksum (see `ollama_provider.batch.store.lines`). A line that a disk or a copy has changed is found
and counted, and its row is asked again. A blank line is an outcome that was discarded,
since its server's model had changed. Half a line at the end of an open part is what was being written when the
process was killed: it is cut off. Parts without a token were made by an earlier version, which wrote no checksum.
"""

import binascii
import contextlib
import json
import logging
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import groupby
from secrets import token_hex
from typing import Any, BinaryIO, NamedTuple

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.disk import GrowingFile, storage_error, storage_errors
from ollama_provider.batch.store.keys import Index
from ollama_provider.batch.store.lines import (
    AFTER_KEY,
    GOOD,
    IS_GOOD,
    IS_REFUSED,
    KEY,
    REQUEST_KEY,
    intact_end,
    is_outcome,
    is_removed,
    is_whole,
    outcome_line,
    refused_line,
    removing,
    replacing_shared,
    without_checksum,
    without_digest,
)
from ollama_provider.batch.store.storage import Storage

logger = logging.getLogger(__name__)

#: Bytes of a part that are read at a time: in a scan, and for single lines. Rows come nearly in order, so a small
#: buffer finds most lines in what it has read already.
_SCAN_BUFFER, _LINE_BUFFER = 1 << 20, 1 << 16
#: Bytes that are searched at a time: few enough for the cache of the processor.
_SEARCH_BUFFER = 1 << 18
#: The bits of a place that are the offset in its part.
_OFFSET = (1 << 40) - 1
#: Parts that a reader keeps open.
_OPEN_PARTS = 100
_PART_NAME = re.compile(r"parts/(\d+)-(\d+)-(\d+)(?:-([0-9a-f]{8}))?(?:\.(\d+of\d+))?(\.open)?\.jsonl")


class State(IntEnum):
    """What the journal knows of a key."""

    #: Nothing.
    NEW = 0
    #: A request was queued in this run; there is no outcome yet.
    REQUESTED = 1
    #: A good result.
    OK = 2
    #: Failed in this pass over the input: not asked again until the next pass.
    FAILED = 3
    #: Failed in an earlier pass: ask again.
    FAILED_BEFORE = 4


#: Looking a state up here is ten times as fast as State(…), and is done for each row.
_STATES = tuple(State)
#: A plain number, for the loop over all keys.
_OK = int(State.OK)


class Part(NamedTuple):
    """The name of a part. Parts sort in the order in which they were written."""

    pass_number: int
    run_number: int
    number: int
    #: Of the run that made it; empty for parts of earlier versions, whose lines have no checksum.
    token: str
    #: Such as ``2of4``; empty for a whole batch.
    shard: str
    #: It is not sealed: a run is appending to it, or was killed.
    is_open: bool = False

    @property
    def name(self) -> str:
        """The file's name in the directory."""
        token, shard = self.token and f"-{self.token}", self.shard and f".{self.shard}"
        numbers = f"{self.pass_number:04d}-{self.run_number:04d}-{self.number:06d}"
        return f"parts/{numbers}{token}{shard}{'.open' if self.is_open else ''}.jsonl"

    def sealed(self) -> "Part":
        """Return the part as it is when it is sealed."""
        return self._replace(is_open=False)


def list_parts(storage: Storage) -> list[Part]:
    """Return the parts of a directory, in order. Other files (``.DS_Store``, a copy) are ignored."""
    found = []
    for name in storage.names("parts"):
        if (match := _PART_NAME.fullmatch(name)) and (part := _part(match)).name == name:
            found.append(part)
        else:
            logger.info("%s/%s is not a part of the batch and is ignored.", storage.location, name)
    return sorted(found)


def _part(match: re.Match[str]) -> Part:
    pass_number, run_number, number, token, shard, is_open = match.groups("")
    return Part(int(pass_number), int(run_number), int(number), token, shard, bool(is_open))


class Journal:
    """The outcomes of a directory: an index in memory, and the lines in parts.

    Args:
        storage: the directory.
        pass_number: the current pass over the input.
        shard: the shard that writes, such as ``2of4``; None for a whole batch. The outcomes of other shards are read
            as well, but not their open parts: they may be at work.
        keep_replies: index the raw replies by their request keys, too.
        only_reads: nothing will be added. Then damaged lines are counted and not logged: the next run asks their rows
            again, and logs that.

    Attributes:
        damaged: lines that were damaged.

    Raises:
        StorageError: a part cannot be read.
    """

    def __init__(
        self,
        storage: Storage,
        pass_number: int,
        *,
        shard: str | None = None,
        keep_replies: bool = False,
        only_reads: bool = False,
    ) -> None:
        self._storage = storage
        self._index = Index()
        self._replies = Index() if keep_replies else None
        self.damaged = 0
        found = list_parts(storage)
        run_number = 1 + max((part.run_number for part in found if part.pass_number == pass_number), default=0)
        #: The part of the next outcome. The ones before it in this run have the same name but for their numbers, so
        #: only the parts of earlier runs are listed: a night has thousands.
        self._current = Part(pass_number, run_number, 1, token_hex(4), shard or "", is_open=True)
        self._earlier = [
            part for part in found
            if not part.is_open or (shard in {None, part.shard} and part.sealed() not in found)
        ]  # fmt: skip
        #: Where the part of the next outcome goes; None while it has none.
        self._file: GrowingFile | None = None
        #: The parts that are complete and not sealed yet.
        self._waiting: deque[GrowingFile] = deque()
        # Bytes of lines. One is changed by the thread that adds outcomes, the other by the one that seals parts.
        self._added = self._sealed = 0
        #: Numbers of the parts that earlier runs left open, and the bytes of each up to the end of its last line.
        self._left_open: dict[int, int] = {}
        for number in range(len(self._earlier)):
            self._scan(number, warn=not only_reads)

    def _part_at(self, number: int) -> Part:
        """Return the part with this number in `place`: a part of an earlier run, or a sealed one of this run."""
        in_this_run = number - len(self._earlier) + 1
        if in_this_run < 1:
            return self._earlier[number]
        return self._current._replace(number=in_this_run, is_open=False)

    @property
    def _complete(self) -> int:
        """How many parts are complete, and so the number of the current one in `place`."""
        return len(self._earlier) + self._current.number - 1

    def _scan(self, part_number: int, *, warn: bool) -> None:
        part = self._earlier[part_number]
        # The pass number of another shard is not this one's.
        mine = (part.pass_number, part.shard) == (self._current.pass_number, self._current.shard)
        failed = State.FAILED if mine else State.FAILED_BEFORE
        index, replies, unhexlify, has_checksum = self._index, self._replies, binascii.unhexlify, bool(part.token)
        place, damaged = part_number << 40, 0
        path = self._storage.local(part.name)
        with storage_errors(self._storage.location, "read"), path.open("rb", buffering=_SCAN_BUFFER) as lines:
            for line in lines:
                if not (is_whole(line) if has_checksum else is_outcome(line)):
                    if part.is_open and line[-1:] != b"\n":
                        break  # what was being written when the process was killed
                    if is_removed(line):
                        place += len(line)
                        continue
                    damaged += 1
                    rest = intact_end(line) if has_checksum else b""
                    place += len(line) - len(rest)
                    if not rest:
                        continue
                    line = rest  # noqa: PLW2901  # what is left of it
                number = index.number(unhexlify(line[KEY]))
                if line[GOOD] == IS_GOOD:
                    index[number] = place << 3 | State.OK
                elif index[number] & 7 != State.OK or line.startswith(IS_REFUSED, AFTER_KEY):
                    index[number] = place << 3 | failed
                if replies is not None and (found := REQUEST_KEY.match(line, AFTER_KEY)):
                    replies[replies.number(unhexlify(found[1]))] = place
                place += len(line)
        if part.is_open:
            self._left_open[part_number] = place & ((1 << 40) - 1)
        self.damaged += damaged
        if damaged and warn:
            logger.warning(
                "%d damaged lines in %s of %s are skipped; their rows are asked again.",
                damaged, part.name, self._storage.location,
            )  # fmt: skip

    def seal_left_open(self, digests: Collection[str]) -> None:
        """Seal the parts that killed runs left open.

        Args:
            digests: of the models that the server has now. Outcomes with another digest are kept without one: nobody
                looked at the model between these outcomes and a change.

        Raises:
            StorageError: one cannot be sealed.
        """
        known = {None, *digests}
        for number, size in self._left_open.items():
            part = self._earlier[number]
            self._earlier[number] = part.sealed()
            file = self._storage.reopen(part.name, part.sealed().name, size)
            if not size:
                file.discard()
                continue
            file.rewrite(lambda line: without_digest(line, known))
            file.seal()
        self._left_open = {}

    def find(self, key: bytes) -> tuple[int, State]:
        """Return the number of *key* in this run, and its state."""
        number = self._index.number(key)
        return number, _STATES[self._index[number] & 7]

    def state(self, number: int) -> State:
        """Return the state of the key with this number."""
        return _STATES[self._index[number] & 7]

    def mark_requested(self, number: int) -> None:
        """Record that a request was queued for this key, so that an equal row waits for the same outcome."""
        self._index[number] = State.REQUESTED

    def find_reply(self, request_key: bytes) -> dict[str, Any] | None:
        """Return the newest line of earlier runs with a raw reply to this request; None if there is none."""
        if self._replies is None:
            return None
        found = self._replies.find(request_key)  # and not `number`, which would keep the key of each new row
        if found is None:
            return None
        number, offset = divmod(self._replies[found], 1 << 40)
        part = self._earlier[number]
        path = self._storage.local(part.name)
        with storage_errors(self._storage.location, "read"), path.open("rb") as lines:
            lines.seek(offset)
            line: dict[str, Any] = json.loads(self.without_checksum(number, lines.readline()))
        return line if line.get("reply") is not None and "refused" not in line else None

    def without_checksum(self, number: int, line: bytes) -> bytes:
        """Verify the checksum of a line, and return the line without it.

        Args:
            number: of the part, from `place`.
            line: as it stands in the part.

        Raises:
            StorageError: the line was changed since it was scanned or written.
        """
        if number < len(self._earlier) and not self._earlier[number].token:
            return line
        text = without_checksum(line)
        if text is None:
            raise StorageError(
                f"{self._storage.location}/{self.part_name(number)} was damaged during the run. Start again: only the "
                "damaged rows are asked again."
            )
        return text

    def add(self, number: int, outcome: Outcome, shared: str) -> None:
        """Append an outcome to the open part.

        Args:
            number: of the key, from `find`.
            outcome: of that key.
            shared: fields that all rows of the run have in common; see `shared_fields`.

        Raises:
            RejectedReplyError: see `outcome_line`; the journal has not changed then.
            StorageError: it cannot be written.
        """
        self._append(number, outcome_line(outcome, shared), State.OK if outcome.status == "ok" else State.FAILED)

    def mark_refused(self, number: int, line: bytes) -> None:
        """Record that the results file cannot hold a good outcome, so that the next pass asks again.

        Args:
            number: of the key.
            line: the outcome as a failed one, as it stands in the results.
        """
        self._append(number, refused_line(line), State.FAILED)

    def _append(self, number: int, line: bytes, state: State) -> None:
        if self._file is None:
            self._file = self._storage.append_to(self._current.name, self._current.sealed().name)
        self._file.append(line)
        offset = self._file.size - len(line)  # before it may stand what could not be written earlier
        self._index[number] = (self._complete << 40 | offset) << 3 | state
        self._added += len(line)

    def end_part(self) -> bool:
        """Complete the part of the outcomes since the last call. Return whether any part waits to be sealed."""
        if self._file is not None:
            self._waiting.append(self._file)
            self._current = self._current._replace(number=self._current.number + 1)
            self._file = None
        return bool(self._waiting)

    def seal_parts(self) -> None:
        """Seal the completed parts. This may run in another thread than everything else.

        Raises:
            StorageError: one could not be sealed, and keeps waiting.
        """
        while self._waiting:
            part = self._waiting[0]
            part.seal()
            self._waiting.popleft()
            self._sealed += part.size

    def discard_parts(self) -> None:
        """Remove the completed parts that are not sealed yet. Their outcomes are lost.

        Raises:
            StorageError: one could not be removed.
        """
        while self._waiting:
            self._waiting.popleft().discard()

    def remove(self, keys: Collection[bytes]) -> None:
        """Remove the outcomes with these keys (hex digits) from the parts that wait to be sealed.

        Each leaves a blank line, so that the other lines keep their places.
        """
        change = removing(keys)
        for part in tuple(self._waiting):  # another thread may complete a part meanwhile
            part.rewrite(change)

    def replace_shared(self, shared: str, instead: str) -> None:
        """Replace the shared fields of the outcomes in parts that wait to be sealed. Other lines do not change.

        Args:
            shared: the fields to replace, as they were given to `add`.
            instead: the same fields in no more characters, so that each line keeps its length and its place.
        """
        change = replacing_shared(shared, instead)
        for part in tuple(self._waiting):  # another thread may complete a part meanwhile
            part.rewrite(change)

    @property
    def unsealed(self) -> int:
        """Bytes of outcomes that may be lost when the machine stops."""
        return self._added - self._sealed

    def is_sealed(self, number: int) -> bool:
        """Return whether the outcome of this key is in a sealed part, and so would survive any crash."""
        part, _ = self.place(number)
        return part < self._complete - len(self._waiting)

    def is_from_this_run(self, number: int) -> bool:
        """Return whether the outcome of this key was added in this run."""
        return self.place(number)[0] >= len(self._earlier)

    def place(self, number: int) -> tuple[int, int]:
        """Return the number of the part and the offset of this key's outcome."""
        place = self._index[number] >> 3
        return place >> 40, place & ((1 << 40) - 1)

    def place_of_key(self, key: bytes) -> int | None:
        """Return where the outcome of *key* is, as one number; None if the key is not known.

        This may run in another thread than everything else. Whether the outcome counts, and can be read, `stored` says.
        """
        number = self._index.find(key)
        return None if number is None else self._index[number] >> 3

    def stored(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return where the good and where the failed outcomes are that count, in the order in which they were stored.

        Each is one number, for `lines`. A key that was requested again and has no new outcome is in neither, nor is an
        outcome in a part that is not sealed yet, unless an earlier run left the part open. This may run in another
        thread than everything else.
        """
        complete = self._complete - len(self._waiting)
        # Sorted part by part: a million numbers in one list would take 40 MB.
        by_part: dict[int, array[int]] = {}
        last, append = -1, array("Q").append
        for value in self._index.values():
            if value & 7 >= _OK and (part := value >> 43) < complete:
                if part != last:  # most keys are in the part of the one before
                    last, append = part, by_part.setdefault(part, array("Q")).append
                append(value)
        good, failed = array("Q"), array("Q")
        for part in sorted(by_part):
            of_part = sorted(by_part.pop(part))
            good.extend([value >> 3 for value in of_part if value & 7 == _OK])
            failed.extend([value >> 3 for value in of_part if value & 7 > _OK])
        return good, failed

    def lines(self, stored: Iterable[int]) -> Iterator[bytes]:
        """Return the lines at these places, which are sorted and in sealed parts, or were there at the beginning.

        Raises:
            StorageError: a part cannot be read.
        """
        for part, of_part in groupby(stored, lambda place: place >> 40):
            with self._reading(part) as lines:
                for place in of_part:
                    lines.seek(place & _OFFSET)
                    yield lines.readline()

    def lines_with(self, texts: Sequence[bytes], *stored: Sequence[int]) -> Iterator[bytes]:
        """Return those lines at these places that have one of the texts: far faster than to look at each line.

        Raises:
            StorageError: a part cannot be read.
        """
        for part in sorted({place >> 40 for places in stored for place in _one_of_each_part(places)}):
            with self._reading(part) as lines:
                offset = part << 40
                while block := lines.read(_SEARCH_BUFFER) + lines.readline():
                    for start, end in sorted({span for text in texts for span in _lines_having(block, text)}):
                        # What stands before it in the line is damaged, unless it begins there.
                        place = max(_last_until(places, offset + end - 1) for places in stored)
                        if place >= offset + start:
                            yield block[place - offset : end]
                    offset += len(block)

    @contextlib.contextmanager
    def _reading(self, number: int) -> Iterator[BinaryIO]:
        path = self._storage.local(self._part_at(number).name)
        with storage_errors(self._storage.location, "read"), path.open("rb", buffering=_LINE_BUFFER) as lines:
            yield lines

    def part_name(self, part: int) -> str:
        """Return the name of the file of a part, which is sealed."""
        return self._part_at(part).sealed().name


def _one_of_each_part(places: Sequence[int]) -> Iterator[int]:
    at = 0
    while at < len(places):
        yield places[at]
        at = bisect_left(places, (places[at] >> 40) + 1 << 40, at)


def _lines_having(block: bytes, text: bytes) -> Iterator[tuple[int, int]]:
    """Return begin and end of each line of a block that has the text."""
    found = block.find(text)
    while found >= 0:
        end = block.find(b"\n", found) + 1 or len(block)
        yield block.rfind(b"\n", 0, found) + 1, end
        found = block.find(text, end)


def _last_until(places: Sequence[int], end: int) -> int:
    at = bisect_right(places, end)
    return places[at - 1] if at else -1


class PartReader:
    """Reads lines at any place of the parts, and keeps a bounded number of files open."""

    def __init__(self, storage: Storage, journal: Journal) -> None:
        self._storage = storage
        self._journal = journal
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def line(self, part: int, offset: int) -> bytes:
        """Return the line of an outcome, without its checksum.

        Args:
            part: number of the part; see `Journal.place`.
            offset: of the line in the part.

        Raises:
            StorageError: the line is damaged, or cannot be read.
        """
        try:
            file = self._file(part)
            if file.tell() != offset:
                file.seek(offset)
            line = file.readline()
        except OSError as error:
            raise storage_error(error, self._storage.location, "read") from error
        return self._journal.without_checksum(part, line)

    def _file(self, part: int) -> BinaryIO:
        file = self._open.get(part)
        if file is None:
            if len(self._open) >= _OPEN_PARTS:
                self._open.popitem(last=False)[1].close()
            path = self._storage.local(self._journal.part_name(part))
            file = self._open[part] = path.open("rb", buffering=_LINE_BUFFER)
        else:
            self._open.move_to_end(part)
        return file

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
