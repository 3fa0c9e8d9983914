"""Silence, drips, and answers without end."""

import gzip
import zlib

from tests.api.faults.fault import (
    ANSWERED,
    CHUNKED,
    FIRST_TOKEN,
    IDLE,
    INCOMPLETE,
    NOT_OLLAMA,
    OVERLOADED,
    PULL_FAILED,
    PULL_STALLED,
    REJECTED,
    TIMEOUT,
    TOTAL,
    Fault,
    Outcome,
    chunk,
    everywhere,
    first,
    head,
    pieces,
)
from tests.api.faults.operations import EMPTY, STREAMS, Group, Operation
from tests.api.faults.server import Call, Forever, Hold, Keep, Script, Step, Wait

_HEAD = head(CHUNKED)
#: Timeouts of what must stall. Of those before it, none.
_SOON, _NEVER = 0.4, 60


def _timeouts(**soon: float) -> dict[str, dict[str, float]]:
    return {"timeouts": {"first_token": _NEVER, "idle": _NEVER, "pull_stall": _SOON} | soon}


def _is_stream(_: str, operation: Operation) -> bool:
    return operation.group in STREAMS


def _has_body(_: str, operation: Operation) -> bool:
    return operation.group is not Group.HEAD


def _timed_out(inference: Outcome, empty: Outcome = TIMEOUT) -> dict[Group, Outcome]:
    """Return the outcome of an answer that does not go on.

    Args:
        inference: that of operations with a model at work.
        empty: that of operations whose success has no body.
    """
    stalled = {Group.PULL: PULL_STALLED, Group.PUSH: PULL_STALLED}
    return everywhere(
        TIMEOUT, {Group.TEXT: inference, Group.VECTORS: inference, **stalled, **dict.fromkeys(EMPTY, empty)}
    )


def _half(call: Call) -> list[Step]:
    body = first(call.operation) or b" "
    return [_HEAD + b"%x\r\n" % len(body) + body[: len(body) // 2], Hold()]


def _drip(call: Call) -> list[Step]:
    """Return the good answer, byte by byte."""
    steps: list[Step] = [bytes([byte]) for byte in _HEAD + chunk(call.operation.answer or b" ") + b"0\r\n\r\n"]
    return [*(step for byte in steps for step in (byte, Wait(0.001))), Keep()]


SILENCE = [
    Fault(
        "nothing comes",
        _timed_out(FIRST_TOKEN),
        {
            "not even a head": lambda _: [Hold()],
            "a part of the head": lambda _: [_HEAD[:20], Hold()],
        },
        settings=_timeouts(first_token=_SOON),
        limits={"read_timeout": _SOON},
        slow=True,
    ),
    Fault(
        "nothing comes behind the head",
        _timed_out(FIRST_TOKEN, ANSWERED),
        {"": lambda _: [_HEAD, Hold()]},
        settings=_timeouts(first_token=_SOON),
        limits={"read_timeout": _SOON},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "silence in the middle of the first object",
        _timed_out(IDLE, ANSWERED),
        {"": _half},
        settings=_timeouts(idle=_SOON),
        limits={"read_timeout": _SOON},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "silence behind the first object",
        _timed_out(IDLE),
        {"": lambda call: [_HEAD + chunk(first(call.operation)), Hold()]},
        settings=_timeouts(idle=_SOON),
        limits={"read_timeout": _SOON},
        has=_is_stream,
        slow=True,
        handed_on=STREAMS,
    ),
    Fault(
        "silence behind the last object, or blanks",
        everywhere(ANSWERED),
        {
            "silence": lambda call: [_HEAD + chunk(call.operation.answer), Hold()],
            "blanks": lambda call: [_HEAD + chunk(call.operation.answer), Forever(chunk(b" \n"), every=0.02)],
        },
        settings=_timeouts(),
        has=_is_stream,
        slow=True,
    ),
    Fault(
        "byte by byte, and whole in the end",
        everywhere(ANSWERED),
        {"": _drip},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "blanks without end, and no object",
        _timed_out(IDLE, ANSWERED),
        {
            "blanks": lambda _: [_HEAD, Forever(chunk(b" "), every=0.02)],
            "blank lines": lambda _: [_HEAD, Forever(chunk(b"\n"), every=0.02)],
        },
        settings=_timeouts(idle=_SOON / 10),
        limits={"read_timeout": _SOON},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "object after object, longer than `total_timeout` grants",
        {**_timed_out(TOTAL), Group.CREATE: TIMEOUT},
        {"": lambda call: [_HEAD, Forever(chunk(first(call.operation)), every=0.02)]},
        settings=_timeouts(total=_SOON),
        limits={"read_timeout": _SOON / 4},
        has=_is_stream,
        slow=True,
        handed_on=STREAMS,
    ),
]

# Without end


def _too_long(others: Outcome = NOT_OLLAMA) -> dict[Group, Outcome]:
    """Return the outcome of an answer that is too long."""
    return everywhere(
        others, {Group.TEXT: REJECTED, Group.VECTORS: REJECTED, Group.PULL: PULL_FAILED, Group.PUSH: PULL_FAILED}
    )


def _forever(data: bytes, start: bytes = b"") -> Script:
    again = Forever(data * (2**18 // len(data)))
    return lambda call: pieces(call, start, again, headers=("Connection: close",))


def _endless_objects(call: Call) -> list[Step]:
    return [head("Connection: close"), Forever(first(call.operation) * 1000)]


def _bomb(data: bytes, headers: str) -> Script:
    """Return 1 GiB in less than 2 MB: the same piece again and again."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    piece = packer.compress(data * (2**20 // len(data))) + packer.flush(zlib.Z_FULL_FLUSH)
    start = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" if headers == "gzip" else b""
    body = start + piece * 1024
    return lambda call: pieces(call, body, headers=(f"Content-Encoding: {headers}", f"Content-Length: {len(body)}"))


def _members(call: Call) -> list[Step]:
    """Return a body in a thousand pieces that are compressed each by itself."""
    body = gzip.compress(b" " * 2**20, 9) * 1024
    return pieces(call, body, headers=("Content-Encoding: gzip", f"Content-Length: {len(body)}"))


ENDLESS = [
    Fault(
        "a body of 1 GiB",
        _too_long(),
        {
            "one line": lambda call: pieces(
                call, b'{"response":"', Forever(b"a" * 2**18), headers=(f"Content-Length: {2**30}",)
            ),
        },
        has=_has_body,
    ),
    Fault(
        "a line without end",
        _too_long(),
        {
            "letters": _forever(b"a"),
            "a text": _forever(b"a", b'{"response":"'),
            "brackets": _forever(b"[", b'{"response":'),
            "blanks": _forever(b" "),
        },
        limits={"max_bytes": 2**20},
        has=_has_body,
    ),
    Fault("blank lines without end", _too_long(), {"": _forever(b"\n")}, limits={"max_bytes": 2**20}, has=_has_body),
    Fault(
        "objects without end",
        _too_long(),
        {"": _endless_objects},
        limits={"max_bytes": 2**17},
        has=_is_stream,
        handed_on=STREAMS,
    ),
    Fault(
        "a refusal without end",
        everywhere(OVERLOADED),
        {"": lambda _: [head("Connection: close", status=503), Forever(b"a" * 2**16)]},
        has=_has_body,
    ),
    Fault(
        "a bomb: 1 GiB that is compressed to 1 MB",
        _too_long(),
        {
            "gzip": _bomb(b" ", "gzip"),
            "deflate": _bomb(b"a", "deflate"),
            "members": _members,
        },
        limits={"max_bytes": 2**20},
        has=_has_body,
    ),
    Fault(
        "a head without end",
        everywhere(INCOMPLETE),
        {
            "one field": lambda _: [b"HTTP/1.1 200 OK\r\nX: ", Forever(b"a" * 2**16)],
            "many fields": lambda _: [b"HTTP/1.1 200 OK\r\n", Forever(b"X: a\r\n" * 10_000)],
            "status line": lambda _: [b"HTTP/1.1 200 ", Forever(b"a" * 2**16)],
        },
    ),
    Fault(
        "the size or the extension of a chunk, or what follows the last one, without end",
        everywhere(INCOMPLETE, dict.fromkeys(EMPTY, ANSWERED)),
        {
            "size": lambda _: [_HEAD, Forever(b"1" * 2**16)],
            "extension": lambda _: [_HEAD, b"5;", Forever(b"a" * 2**16)],
            "trailers": lambda _: [_HEAD, b"0\r\n", Forever(b"X: a\r\n" * 10_000)],
        },
        has=_has_body,
    ),
]
