"""Sixteen-byte keys to numbers, a million of them in some 35 MB.

A dict of bytes and ints needs five times as much, and a batch may have millions of rows. The keys are hashes already,
so their first bytes are as good a hash as any.
"""

import binascii
import hashlib
import json
import logging
import re
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import IntEnum
from math import isfinite
from secrets import token_hex
from sys import byteorder
from typing import Any, NamedTuple
from zlib import crc32

from pydantic_core import from_json

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.storage import Storage, storage_errors

_EMPTY = 0
KEY_BYTES = 16


class Index:
    """Numbers each key in the order of its first appearance and keeps one 64-bit value for it.

    A hash table with open addressing: `_table` holds number + 1 of a key, at the place its first bytes tell or behind.
    """

    def __init__(self) -> None:
        self._keys = bytearray()
        self._values = array("Q")
        self._table = array("I", bytes(4 * 1024))
        self._mask = 1023

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: int) -> int:
        return self._values[number]

    def __setitem__(self, number: int, value: int) -> None:
        self._values[number] = value

    def number(self, key: bytes) -> int:
        """Return the number of *key*, a new one (with value 0) if it was not known."""
        table, mask, keys = self._table, self._mask, self._keys
        place = int.from_bytes(key[:8], byteorder) & mask
        while (entry := table[place]) != _EMPTY:
            start = (entry - 1) * KEY_BYTES
            if keys[start : start + KEY_BYTES] == key:
                return entry - 1
            place = (place + 1) & mask
        number = len(self._values)
        table[place] = number + 1
        keys += key
        self._values.append(0)
        if number * 3 > mask * 2:
            self._grow()
        return number

    def key(self, number: int) -> bytes:
        """Return the key that has *number*."""
        return bytes(self._keys[number * KEY_BYTES : (number + 1) * KEY_BYTES])

    def _grow(self) -> None:
        size = 2 * len(self._table)
        mask = size - 1
        table = array("I", bytes(4 * size))
        words = array("Q", bytes(self._keys))
        for number in range(len(self._values)):
            place = words[2 * number] & mask
            while table[place] != _EMPTY:
                place = (place + 1) & mask
            table[place] = number + 1
        self._table, self._mask = table, mask


logger = logging.getLogger(__name__)

_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

# Every line of a part begins {"key":"<32 hex digits>","status":"ok" or "failed": a resume looks at these places only.
_HEAD = b'{"key":"'
_KEY = slice(len(_HEAD), len(_HEAD) + 2 * KEY_BYTES)
#: Where the rest of a line begins, at the comma behind the key: index and id are put there.
AFTER_KEY = _KEY.stop + 1
_GOOD = slice(AFTER_KEY, AFTER_KEY + 15)
_IS_GOOD = b',"status":"ok",'
#: An outcome that was good, and that the results could not hold: it takes the place of the good one.
_IS_REFUSED = b',"status":"failed","refused":true,'
# Behind the status, where there is a schema.
_REQUEST = re.compile(rb',"status":"[a-z]+"(?:,"refused":true)?,"request":"([0-9a-f]{32})"')
# Every line of a part with a token ends with this: the CRC-32 of all that stands before it.
_CHECK = b',"crc32":"%08x"}\n'
_TAIL = len(_CHECK % 0)
_BEFORE, _CHECK_AT = slice(None, -_TAIL), slice(-_TAIL, None)
#: Bytes of a part that are read at a time.
_READ = 1 << 20
_PART_NAME = re.compile(r"parts/(\d+)-(\d+)-(\d+)(?:-([0-9a-f]{8}))?(?:\.(\d+of\d+))?\.jsonl")


class State(IntEnum):
    """What is known of a key."""

    #: Nothing.
    NEW = 0
    #: Asked in this run, no outcome yet.
    REQUESTED = 1
    #: A good result.
    OK = 2
    #: Failed in this pass over the input: not asked again until the next pass.
    FAILED = 3
    #: Failed in an earlier pass: ask again.
    FAILED_BEFORE = 4


#: Ten times as fast as State(…), and asked for each row.
_STATES = tuple(State)


class Part(NamedTuple):
    """What the name of a part says. Parts sort in the order in which they were made."""

    pass_number: int
    run_number: int
    number: int
    #: Of the run that made it; empty for parts of earlier versions, whose lines have no checksum.
    token: str
    #: Such as ``2of4``; empty for a whole batch.
    shard: str

    @property
    def name(self) -> str:
        """The file's name in the directory."""
        token, shard = self.token and f"-{self.token}", self.shard and f".{self.shard}"
        return f"parts/{self.pass_number:04d}-{self.run_number:04d}-{self.number:06d}{token}{shard}.jsonl"


def parts_of(storage: Storage) -> list[Part]:
    """Return the parts of a directory, in order; files that are no parts (``.DS_Store``, a copy) are left alone."""
    found = []
    for name in storage.names("parts"):
        if (match := _PART_NAME.fullmatch(name)) and (part := _part(match)).name == name:
            found.append(part)
        else:
            logger.info("%s/%s is no part of the batch and is left alone.", storage.location, name)
    return sorted(found)


def _part(match: re.Match[str]) -> Part:
    pass_number, run_number, number, token, shard = match.groups("")
    return Part(int(pass_number), int(run_number), int(number), token, shard)


class Keys:
    """Makes the keys of a run; see the first promise."""

    def __init__(self, digest: str, request: Mapping[str, Any], schema: Any = None) -> None:
        """Fix what all rows share.

        Args:
            digest: of the model; its name where the server lists no digest.
            request: everything of the request that bears on the answer, but prompt, images and schema.
            schema: of the answer; None for text.
        """
        shared = json.dumps({"model": digest, **request}, sort_keys=True, separators=(",", ":"))
        self._shared = hashlib.blake2b(shared.encode(), digest_size=KEY_BYTES)
        self._schema = b"" if schema is None else json.dumps(schema, sort_keys=True).encode()

    def key(self, prompt: str, images: Sequence[str] = ()) -> bytes:
        """Return the sixteen bytes that stand for this work."""
        return self.keys(prompt, images)[0]

    def keys(self, prompt: str, images: Sequence[str] = ()) -> tuple[bytes, bytes | None]:
        """Return the key, and the request key where there is a schema."""
        request = self._hash(b"p", prompt, *images)
        if not self._schema:
            return request, None
        return hashlib.blake2b(request + self._schema, digest_size=KEY_BYTES).digest(), request

    def without_request(self, content: str) -> bytes:
        """Return the key of a row that never becomes a request, because it cannot be read or rendered."""
        return self._hash(b"u", content)

    def _hash(self, kind: bytes, *texts: str) -> bytes:
        digest = self._shared.copy()
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%b%d:%b" % (kind, len(data), data))
        return digest.digest()


class Journal:
    """The outcomes of a directory: an index in memory, the lines in parts.

    Args:
        storage: the directory.
        pass_number: which pass over the input this is.
        shard: whose journal this is, such as ``2of4``; its parts bear the name, and what others have is known as well.
        keep_replies: know the raw replies by their request keys, too.
    """

    def __init__(
        self, storage: Storage, pass_number: int, *, shard: str | None = None, keep_replies: bool = False
    ) -> None:
        self._storage = storage
        self._index = Index()
        self._replies = Index() if keep_replies else None
        self._parts = parts_of(storage)
        run_number = 1 + max((part.run_number for part in self._parts if part.pass_number == pass_number), default=0)
        self._current = Part(pass_number, run_number, 0, token_hex(4), shard or "")
        self._lines: list[bytes] = []
        self._waiting: deque[tuple[str, list[bytes]]] = deque()
        # One is written by the thread that adds, the other by the one that seals.
        self._added = self._sealed = 0
        self._known = len(self._parts)
        for number in range(self._known):
            self._scan(number)
        self._begin_part()

    def _begin_part(self) -> None:
        self._current = self._current._replace(number=self._current.number + 1)
        self._parts.append(self._current)
        self._lines = []
        self._offset = 0

    def _scan(self, part_number: int) -> None:
        part = self._parts[part_number]
        # The pass number of another shard is not this one's.
        mine = (part.pass_number, part.shard) == (self._current.pass_number, self._current.shard)
        failed = State.FAILED if mine else State.FAILED_BEFORE
        index, replies, unhexlify, has_checksum = self._index, self._replies, binascii.unhexlify, bool(part.token)
        place, damaged = part_number << 40, 0
        path = self._storage.local(part.name)
        with storage_errors(self._storage.location, "read"), path.open("rb", buffering=_READ) as lines:
            for line in lines:
                if not (line[_CHECK_AT] == _CHECK % crc32(line[_BEFORE]) if has_checksum else _is_outcome(line)):
                    damaged += 1
                else:
                    number = index.number(unhexlify(line[_KEY]))
                    if line[_GOOD] == _IS_GOOD:
                        index[number] = place << 3 | State.OK
                    elif index[number] & 7 != State.OK or line.startswith(_IS_REFUSED, AFTER_KEY):
                        index[number] = place << 3 | failed
                    if replies is not None and (found := _REQUEST.match(line, AFTER_KEY)):
                        replies[replies.number(unhexlify(found[1]))] = place + 1
                place += len(line)
        if damaged:
            logger.warning(
                "%d damaged lines in %s of %s are left out; their rows are asked again.",
                damaged, part.name, self._storage.location,
            )  # fmt: skip

    def find(self, key: bytes) -> tuple[int, State]:
        """Return the number that stands for *key* in this run, and what is known of it."""
        number = self._index.number(key)
        return number, _STATES[self._index[number] & 7]

    def state(self, number: int) -> State:
        """Return what is known of the key with this number."""
        return _STATES[self._index[number] & 7]

    def mark_requested(self, number: int) -> None:
        """Note that a request for it is on its way, so that a second row like it waits for the same outcome."""
        self._index[number] = State.REQUESTED

    def find_reply(self, request_key: bytes) -> dict[str, Any] | None:
        """Return the newest line of an earlier run that holds a raw reply to this request; None if there is none."""
        if self._replies is None:
            return None
        place = self._replies[self._replies.number(request_key)]
        if not place:
            return None
        number, offset = divmod(place - 1, 1 << 40)
        part = self._parts[number]
        path = self._storage.local(part.name)
        with storage_errors(self._storage.location, "read"), path.open("rb") as lines:
            lines.seek(offset)
            line: dict[str, Any] = json.loads(self.outcome(number, lines.readline()))
        return line if line.get("reply") is not None and "refused" not in line else None

    def outcome(self, number: int, line: bytes) -> bytes:
        """Return a line of a part without its checksum.

        Args:
            number: of the part, from `place`.
            line: as it stands there.

        Raises:
            StorageError: it was changed since it was read or written.
        """
        part = self._parts[number]
        if not part.token:
            return line
        text = line[_BEFORE]
        if line[_CHECK_AT] != _CHECK % crc32(text):
            raise StorageError(
                f"{self._storage.location}/{part.name} was damaged during the run. Start again: what is damaged is "
                "asked again, and nothing else."
            )
        return text + b"}\n"

    def add(self, number: int, outcome: Outcome, shared: str) -> None:
        """Take an outcome; it is safe when its part is sealed.

        Args:
            number: from `find`.
            outcome: of that key.
            shared: fields that all rows of the run have in common, as JSON without braces.

        Raises:
            RejectedReplyError: see `encode`; nothing has changed then.
        """
        self._append(number, encode(outcome, shared), State.OK if outcome.status == "ok" else State.FAILED)

    def refuse(self, number: int, line: bytes) -> None:
        """Note that the results cannot hold a good outcome, so that the next run asks again.

        Args:
            number: of the outcome.
            line: the outcome as a failed one, as it stands in the results.
        """
        head, _, rest = line.removesuffix(b"}\n").partition(b',"status":"failed",')
        self._append(number, _with_checksum(head + _IS_REFUSED + rest), State.FAILED)

    def _append(self, number: int, line: bytes, state: State) -> None:
        self._index[number] = ((len(self._parts) - 1) << 40 | self._offset) << 3 | state
        self._lines.append(line)
        self._offset += len(line)
        self._added += len(line)

    def end_part(self) -> bool:
        """Make what came since the last call a part that waits to be sealed; tell whether any part waits."""
        if self._lines:
            self._waiting.append((self._current.name, self._lines))
            self._begin_part()
        return bool(self._waiting)

    def write_parts(self) -> None:
        """Write the parts that wait. May run in another thread than everything else.

        Raises:
            StorageError: one could not be written; nothing of it is visible, and it waits on.
        """
        while self._waiting:
            name, lines = self._waiting[0]
            data = b"".join(lines)
            with self._storage.create(name) as file:
                file.write(data)
            self._waiting.popleft()
            self._sealed += len(data)

    def replace_shared(self, shared: str, instead: str) -> None:
        """Put the outcomes of the parts that wait down to something else; those with other shared fields stay.

        Args:
            shared: as it was given to `add`.
            instead: the same fields, in no more characters: the lines keep their length, and so their places.
        """
        old, new = f",{shared}".encode("ascii"), f",{instead:<{len(shared)}}".encode("ascii")
        for _, lines in self._waiting:
            for number, line in enumerate(lines):
                text = line[:-_TAIL]
                if text.endswith(old):
                    lines[number] = _with_checksum(text.removesuffix(old) + new)

    @property
    def unwritten(self) -> int:
        """Bytes that a crash would lose."""
        return self._added - self._sealed

    def is_written(self, number: int) -> bool:
        """Tell whether the outcome with this number would survive a crash."""
        part, _ = self.place(number)
        return part < len(self._parts) - 1 - len(self._waiting)

    def is_fresh(self, number: int) -> bool:
        """Tell whether the outcome with this number was added in this run."""
        return self.place(number)[0] >= self._known

    def place(self, number: int) -> tuple[int, int]:
        """Return part and offset of the outcome with this number."""
        place = self._index[number] >> 3
        return place >> 40, place & ((1 << 40) - 1)

    def part(self, part: int) -> str:
        """Return the name of a part."""
        return self._parts[part].name


def encode(outcome: Outcome, shared: str) -> bytes:
    """Return the line of an outcome: strict JSON, ASCII only, so that every tool agrees where it ends.

    A failed outcome can always be written: what JSON cannot say of it is replaced.

    Raises:
        RejectedReplyError: a good outcome holds what strict JSON or UTF-8 cannot say (a number that overflowed, half a
            surrogate pair), or lists that are nested too deeply for those who read it.
    """
    try:
        return _line(outcome, shared)
    except (ValueError, TypeError, RecursionError):
        if outcome.status == "ok":
            raise RejectedReplyError(
                "the answer cannot be written as JSON: it has a number that is too large, half a surrogate pair, or "
                "is nested too deeply"
            ) from None
        return _line(_sayable(outcome), shared)


def _sayable(outcome: Outcome) -> Outcome:
    """Return a failed outcome with all that JSON cannot say replaced by what it can."""
    plain = {field.name: _plain(getattr(outcome, field.name)) for field in fields(outcome) if field.name != "output"}
    return replace(outcome, output=None, **plain)


def _plain(value: Any) -> Any:
    match value:
        case str():
            return well_formed(value)
        case float():
            return value if isfinite(value) else None
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case tuple() | bool() | None:
            return value
        case int():
            return value if abs(value) < 1 << 63 else None
    return None


def well_formed(text: str) -> str:
    r"""Return a text that UTF-8 can say: half a surrogate pair becomes its escape, such as ``\ud83d``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_outcome(line: bytes) -> bool:
    """Tell whether a line of a part without checksums is whole, as far as that can be seen."""
    if line[: _KEY.start] != _HEAD or line[-2:] != b"}\n":
        return False
    try:
        found = from_json(line, allow_inf_nan=False)
        whole = len(binascii.unhexlify(line[_KEY])) == KEY_BYTES
    except ValueError:
        return False
    return whole and isinstance(found, dict) and found.keys() >= {"key", "status", "output", "error"}


def _with_checksum(text: bytes) -> bytes:
    return text + _CHECK % crc32(text)


def _line(outcome: Outcome, shared: str) -> bytes:
    found: dict[str, Any] = {}
    if outcome.request is not None:
        found["request"] = outcome.request
    found["output"] = outcome.output
    found["error"] = outcome.error
    if outcome.spans:
        found["spans"] = outcome.spans
    if outcome.reply is not None:
        found["reply"] = outcome.reply
    if outcome.thinking is not None:
        found["thinking"] = outcome.thinking
    found["prompt_tokens"] = outcome.prompt_tokens
    found["tokens"] = outcome.tokens
    found["seconds"] = outcome.seconds
    found["tokens_per_second"] = outcome.tokens_per_second
    found["attempts"] = outcome.attempts
    found["done_reason"] = outcome.done_reason
    found["prompt_cut"] = outcome.prompt_cut
    found["answer_cut"] = outcome.answer_cut
    if outcome.rungs:
        found["rungs"] = outcome.rungs
    text = f'{{"key":"{outcome.key}","status":"{outcome.status}",{_ENCODE(found)[1:-1]},{shared}'
    line = _with_checksum(text.encode("ascii"))
    # It takes a microsecond to be sure that what is written can be read again, by others too.
    from_json(line, allow_inf_nan=False)
    return line


def shared_fields(given: Mapping[str, Any]) -> str:
    """Return fields as JSON without braces, made once and put at the end of each line."""
    return _ENCODE({name: _plain(value) for name, value in given.items()})[1:-1]
