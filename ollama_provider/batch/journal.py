"""What was done before, and how we know it is the same work.

Three promises, each with a test of its name:

1. *The key is the work.* Two rows are the same work if and only if the model's digest, the rendered request (prompt,
   system, thinking), the options, the schema of the answer and the images are the same. Position, file, id, model
   name, server, keep_alive, time and number of the try play no part. (A context size that the batch chose by itself
   plays none either; one that the user gave does. Nor does what is tried when an answer does not fit the schema: it
   asks the same question.) Where there is a schema, the *request key* covers the same but the schema, and every line
   keeps the raw reply under it: when the schema changes, the kept replies are judged anew, and only rows whose reply
   does not fit are asked again. What a pydantic class checks beyond its JSON schema is code, and no part of any key.
2. *What is sealed stays, and is not asked again.* A part appears whole or not at all, and is never written twice. A
   good result is used for ever; a failed row counts until the run it failed in has ended by itself, and the next run
   asks it again.
3. *A crash loses little, and we know what.* Only what finished since the last part (`checkpoint_every`) and what was in
   flight.

The files::

    batch.json               identity and settings, written first
    parts/0001-0002-000003.jsonl    outcomes as they came: round, try within the round, number
    results.jsonl, failed.jsonl     all rows, and the failed ones, in the order of the input
    summary.json             written last: its presence says complete
    progress.json            where a running batch stands

A *round* is one pass over the input, over as many tries as it takes. It ends when a run comes to its own end.
"""

import binascii
import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from ollama_provider.batch.index import KEY_BYTES, Index
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.storage import Storage

logger = logging.getLogger(__name__)

_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

# Every line of a part begins {"key":"<32 hex digits>","status":"ok" or "failed": a resume looks at these places only.
_HEAD = b'{"key":"'
_KEY = slice(len(_HEAD), len(_HEAD) + 2 * KEY_BYTES)
#: Where the rest of a line begins, at the comma behind the key: index and id are put there.
AFTER_KEY = _KEY.stop + 1
_GOOD = slice(AFTER_KEY, AFTER_KEY + 15)
_IS_GOOD = b',"status":"ok",'
# Behind the status, where there is a schema.
_REQUEST = re.compile(rb',"status":"[a-z]+","request":"([0-9a-f]{32})"')


class State(IntEnum):
    """What is known of a key."""

    #: Nothing.
    NEW = 0
    #: Asked in this run, no outcome yet.
    ASKED = 1
    #: A good result.
    OK = 2
    #: Failed in this round: settled until the next.
    FAILED = 3
    #: Failed in an earlier round: ask again.
    FAILED_BEFORE = 4


#: Ten times as fast as State(…), and asked for each row.
_STATES = tuple(State)


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

    def unasked(self, content: str) -> bytes:
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
        round_number: which pass over the input this is.
        shard: whose journal this is, such as ``2of4``; its parts bear the name, and what others have is known as well.
        keep_replies: know the raw replies by their request keys, too.
    """

    def __init__(
        self, storage: Storage, round_number: int, *, shard: str | None = None, keep_replies: bool = False
    ) -> None:
        self._storage = storage
        self._round = round_number
        self._suffix = f".{shard}.jsonl" if shard else ".jsonl"
        self._index = Index()
        self._replies = Index() if keep_replies else None
        self._parts = storage.names("parts")
        tries = [self._numbers(name)[:2] for name in self._parts]
        self._try = 1 + max((number for of_round, number in tries if of_round == round_number), default=0)
        self._made = 0
        self._lines: list[bytes] = []
        self._current = ""
        self._waiting: deque[tuple[str, list[bytes]]] = deque()
        # One is written by the thread that adds, the other by the one that seals.
        self._added = self._sealed = 0
        for part in range(len(self._parts)):
            self._scan(part)
        self._begin_part()

    @staticmethod
    def _numbers(name: str) -> tuple[int, int, str]:
        round_number, try_number, rest = name.removeprefix("parts/").split("-")
        return int(round_number), int(try_number), rest[rest.index(".") :]

    def _begin_part(self) -> None:
        self._made += 1
        self._current = f"parts/{self._round:04d}-{self._try:04d}-{self._made:06d}{self._suffix}"
        self._parts.append(self._current)
        self._lines = []
        self._offset = 0

    def _scan(self, part: int) -> None:
        name = self._parts[part]
        of_round, _, suffix = self._numbers(name)
        # Another shard's round is not this one's.
        mine = of_round == self._round and suffix == self._suffix
        failed = State.FAILED if mine else State.FAILED_BEFORE
        index, replies, unhexlify = self._index, self._replies, binascii.unhexlify
        place, damaged = part << 40, 0
        with self._storage.local(name).open("rb") as lines:
            for line in lines:
                try:
                    key = unhexlify(line[_KEY])
                except ValueError:
                    key = b""
                if len(key) != KEY_BYTES or line[-2:] != b"}\n" or line[: _KEY.start] != _HEAD:
                    damaged += 1
                else:
                    number = index.number(key)
                    if line[_GOOD] == _IS_GOOD:
                        index[number] = place << 3 | State.OK
                    elif index[number] & 7 != State.OK:
                        index[number] = place << 3 | failed
                    if replies is not None and (found := _REQUEST.match(line, AFTER_KEY)):
                        replies[replies.number(unhexlify(found[1]))] = place + 1
                place += len(line)
        if damaged:
            logger.warning(
                "%d damaged lines in %s of %s are left out; their rows are asked again.",
                damaged, name, self._storage.location,
            )  # fmt: skip

    def find(self, key: bytes) -> tuple[int, State]:
        """Return the number that stands for *key* in this run, and what is known of it."""
        number = self._index.number(key)
        return number, _STATES[self._index[number] & 7]

    def state(self, number: int) -> State:
        """Return what is known of the key with this number."""
        return _STATES[self._index[number] & 7]

    def asked(self, number: int) -> None:
        """Note that a request for it is on its way, so that a second row like it waits for the same outcome."""
        self._index[number] = State.ASKED

    def kept(self, request_key: bytes) -> dict[str, Any] | None:
        """Return the newest line of an earlier run that holds a raw reply to this request; None if there is none."""
        if self._replies is None:
            return None
        place = self._replies[self._replies.number(request_key)]
        if not place:
            return None
        part, offset = divmod(place - 1, 1 << 40)
        with self._storage.local(self._parts[part]).open("rb") as lines:
            lines.seek(offset)
            line: dict[str, Any] = json.loads(lines.readline())
        return line if line.get("reply") is not None else None

    def add(self, number: int, outcome: Outcome, shared: str) -> None:
        """Take an outcome; it is safe when its part is sealed.

        Args:
            number: from `find`.
            outcome: of that key.
            shared: fields that all rows of the run have in common, as JSON without braces.
        """
        line = encode(outcome, shared)
        good = State.OK if outcome.status == "ok" else State.FAILED
        self._index[number] = ((len(self._parts) - 1) << 40 | self._offset) << 3 | good
        self._lines.append(line)
        self._offset += len(line)
        self._added += len(line)

    def cut_off(self) -> bool:
        """Make what came since the last call a part that waits to be sealed; tell whether any part waits."""
        if self._lines:
            self._waiting.append((self._current, self._lines))
            self._begin_part()
        return bool(self._waiting)

    def seal(self) -> None:
        """Write the parts that wait. May run in another thread than everything else.

        Raises:
            OSError: one could not be written; nothing of it is visible, and it waits on.
        """
        while self._waiting:
            name, lines = self._waiting[0]
            data = b"".join(lines)
            with self._storage.create(name) as file:
                file.write(data)
            self._waiting.popleft()
            self._sealed += len(data)

    @property
    def unsealed(self) -> int:
        """Bytes that a crash would lose."""
        return self._added - self._sealed

    def is_sealed(self, number: int) -> bool:
        """Tell whether the outcome with this number would survive a crash."""
        part, _ = self.place(number)
        return part < len(self._parts) - 1 - len(self._waiting)

    def place(self, number: int) -> tuple[int, int]:
        """Return part and offset of the outcome with this number."""
        place = self._index[number] >> 3
        return place >> 40, place & ((1 << 40) - 1)

    def part(self, part: int) -> str:
        """Return the name of a part."""
        return self._parts[part]


def encode(outcome: Outcome, shared: str) -> bytes:
    """Return the line of an outcome, ASCII only, so that every tool agrees where it ends."""
    fields: dict[str, Any] = {} if outcome.request is None else {"request": outcome.request}
    fields["output"] = outcome.output
    fields["error"] = outcome.error
    if outcome.spans:
        fields["spans"] = outcome.spans
    if outcome.reply is not None:
        fields["reply"] = outcome.reply
    if outcome.thinking is not None:
        fields["thinking"] = outcome.thinking
    fields["prompt_tokens"] = outcome.prompt_tokens
    fields["tokens"] = outcome.tokens
    fields["seconds"] = outcome.seconds
    fields["tokens_per_second"] = outcome.tokens_per_second
    fields["attempts"] = outcome.attempts
    fields["done_reason"] = outcome.done_reason
    fields["prompt_cut"] = outcome.prompt_cut
    fields["answer_cut"] = outcome.answer_cut
    if outcome.rungs:
        fields["rungs"] = outcome.rungs
    return f'{{"key":"{outcome.key}","status":"{outcome.status}",{_ENCODE(fields)[1:-1]},{shared}}}\n'.encode("ascii")


def shared_fields(fields: Mapping[str, Any]) -> str:
    """Return fields as JSON without braces, made once and put at the end of each line."""
    return _ENCODE(dict(fields))[1:-1]
