"""The lines of the parts: one outcome each, as strict JSON in ASCII, with a checksum.

A line begins with the key and ends with a CRC-32 of what stands before it. A line that a disk or a copy has changed is
found, and its row is asked again. The parts of the first format have lines without a checksum, which are parsed
instead. In the parts a vector is the base64 of its float32s.
"""

import base64
import binascii
import json
import re
import sys
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from math import isfinite
from typing import Any
from zlib import crc32

from pydantic_core import from_json

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.keys import KEY_BYTES

_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

# Every line begins {"key":"<32 hex digits>","status":"ok" or "failed". A resume reads these places only.
_HEAD = b'{"key":"'
KEY = slice(len(_HEAD), len(_HEAD) + 2 * KEY_BYTES)
#: Where the rest of a line begins, at the comma after the key: the results insert index and id there.
AFTER_KEY = KEY.stop + 1
#: Where a good outcome says so, and what it says there.
GOOD = slice(AFTER_KEY, AFTER_KEY + 15)
IS_GOOD = b',"status":"ok",'
#: A good outcome that the results file cannot hold. This line replaces the one of the good outcome.
IS_REFUSED = b',"status":"failed","refused":true,'
#: The request key comes after the status, where there is a schema.
REQUEST_KEY = re.compile(rb',"status":"[a-z]+"(?:,"refused":true)?,"request":"([0-9a-f]{32})"')
# Every line ends with the CRC-32 of what stands before it, since the second format.
_CHECK = b',"crc32":"%08x"}\n'
_TAIL = len(_CHECK % 0)
_BEFORE, _CHECK_AT = slice(None, -_TAIL), slice(-_TAIL, None)


def outcome_line(outcome: Outcome, shared: str) -> bytes:
    """Return the line of an outcome: strict JSON in ASCII, so that every tool finds the same end of the line.

    A failed outcome can always be written: values that JSON cannot represent are replaced.

    Raises:
        RejectedReplyError: a good outcome has values that strict JSON or UTF-8 cannot represent (a number that
            overflowed, half a surrogate pair), or lists that are nested too deeply to be read again.
    """
    try:
        return _line(outcome, shared)
    except (ValueError, TypeError, RecursionError):
        if outcome.status == "ok":
            raise RejectedReplyError(
                "the answer cannot be written as JSON: it has a number that is too large, half a surrogate pair, or "
                "is nested too deeply"
            ) from None
        return _line(_json_safe(outcome), shared)


def _json_safe(outcome: Outcome) -> Outcome:
    """Return a failed outcome with all values that JSON cannot represent replaced."""
    plain = {
        field.name: _safe_value(getattr(outcome, field.name)) for field in fields(outcome) if field.name != "output"
    }
    return replace(outcome, output=None, **plain)


def _safe_value(value: Any) -> Any:
    match value:
        case str():
            return escape_surrogates(value)
        case float():
            return value if isfinite(value) else None
        case dict():
            return {name: _safe_value(inner) for name, inner in value.items()}
        case tuple() | bool() | None:
            return value
        case int():
            return value if abs(value) < 1 << 63 else None
    return None


def escape_surrogates(text: str) -> str:
    r"""Return a text that UTF-8 can encode: half a surrogate pair becomes its escape, such as ``\ud83d``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_whole(line: bytes) -> bool:
    """Return whether a line is as it was written, by its checksum."""
    return line[_CHECK_AT] == _CHECK % crc32(line[_BEFORE])


def is_outcome(line: bytes) -> bool:
    """Return whether a line of a part without checksums is a whole outcome, as far as its content shows."""
    if line[: KEY.start] != _HEAD or line[-2:] != b"}\n":
        return False
    try:
        found = from_json(line, allow_inf_nan=False)
        whole = len(binascii.unhexlify(line[KEY])) == KEY_BYTES
    except ValueError:
        return False
    if not whole or not isinstance(found, dict) or not found.keys() >= {"key", "status", "output", "error"}:
        return False
    return bool(found["key"] == line[KEY].decode("ascii"))  # and not a longer one that begins with it


def with_checksum(text: bytes) -> bytes:
    """Return the line of *text*, which lacks its closing brace."""
    return text + _CHECK % crc32(text)


def without_checksum(line: bytes) -> bytes | None:
    """Return a line without its checksum; None if it is not as it was written."""
    text = line[_BEFORE]
    return text + b"}\n" if line[_CHECK_AT] == _CHECK % crc32(text) else None


def refused_line(line: bytes) -> bytes:
    """Return the line of an outcome that the results cannot hold, for the line of a failed one without checksum."""
    head, _, rest = line.removesuffix(b"}\n").partition(b',"status":"failed",')
    return with_checksum(head + IS_REFUSED + rest)


def replacing_shared(shared: str, instead: str) -> Callable[[bytes], bytes]:
    """Return a function that replaces shared fields in a line that has them, and returns any other as it is.

    Args:
        shared: the fields to replace, as they were given to `outcome_line`.
        instead: the same fields in no more characters, so that each line keeps its length and its place.
    """
    old, new = f",{shared}".encode("ascii"), f",{instead:<{len(shared)}}".encode("ascii")

    def change(line: bytes) -> bytes:
        text = line[_BEFORE]
        return with_checksum(text.removesuffix(old) + new) if text.endswith(old) else line

    return change


def removing(keys: Collection[bytes]) -> Callable[[bytes], bytes]:
    """Return a function that makes a line blank if it has one of these keys (hex digits). Other lines do not change."""
    return lambda line: b"\n".rjust(len(line)) if line[KEY] in keys else line


def is_removed(line: bytes) -> bool:
    """Return whether a line is blank, since its outcome was discarded."""
    return line[-1:] == b"\n" and line.isspace()


def intact_end(line: bytes) -> bytes:
    """Return the whole line at the end of a damaged one that has lost its line feed; empty if there is none."""
    place = line.find(_HEAD, 1)
    while place > 0:
        if line[_CHECK_AT] == _CHECK % crc32(line[place:-_TAIL]):
            return line[place:]
        place = line.find(_HEAD, place + 1)
    return b""


def without_digest(line: bytes, known: Collection[str | None]) -> bytes:
    """Return a line with null in place of a digest that is not among the *known* ones. Its length stays the same."""
    if not is_whole(line):
        return line
    text = line[_BEFORE]
    digest = from_json(line).get("digest")
    if digest in known:
        return line
    # It is among the shared fields, which are the last ones.
    before, field, after = text.rpartition(b'"digest":%b' % _ENCODE(digest).encode())
    return with_checksum(before + b'"digest":null'.ljust(len(field)) + after)


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
    if outcome.queue_seconds is not None:
        found["queue_seconds"] = outcome.queue_seconds
    found["tokens_per_second"] = outcome.tokens_per_second
    found["attempts"] = outcome.attempts
    found["done_reason"] = outcome.done_reason
    found["prompt_cut"] = outcome.prompt_cut
    found["answer_cut"] = outcome.answer_cut
    if outcome.rungs:
        found["rungs"] = outcome.rungs
    text = f'{{"key":"{outcome.key}","status":"{outcome.status}",{_ENCODE(found)[1:-1]},{shared}'
    line = with_checksum(text.encode("ascii"))
    # This takes a microsecond, and makes sure that strict parsers can read what is written. Hardly two answers are the
    # same, so a cache of their strings would only take time and a megabyte.
    from_json(line, allow_inf_nan=False, cache_strings="keys")
    return line


def shared_fields(given: Mapping[str, Any]) -> str:
    """Return fields that many rows have in common, as JSON without braces. They are put at the end of each line."""
    return _ENCODE({name: _safe_value(value) for name, value in given.items()})[1:-1]


def encode_vector(vector: Sequence[float]) -> str:
    """Return a vector as the parts have it: the base64 of its float32s in little-endian order.

    That is a third of the size of its JSON, and fast to write and to read.
    """
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def decode_vector(text: str) -> "array[float]":
    """Return the vector that `encode_vector` made a text of."""
    numbers = array("f", base64.b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
