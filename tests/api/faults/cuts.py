"""Answers that are cut: at every byte, by a close or a reset."""

from collections.abc import Callable

from tests.api.faults.fault import (
    ANSWERED,
    BROKEN,
    CHUNKED,
    GATEWAY,
    INCOMPLETE,
    OVERLOADED,
    Fault,
    chunk,
    everywhere,
    head,
)
from tests.api.faults.operations import EMPTY, OPERATIONS, STREAMS, Group, Operation
from tests.api.faults.server import Call, Hold, Reset, Step, Wait


def _in_chunks(operation: Operation) -> bytes:
    return b"".join(map(chunk, operation.answer.splitlines(keepends=True))) + b"0\r\n\r\n"


#: How an answer says where it ends: what its head has for that, and its body.
_FRAMINGS: dict[str, tuple[Callable[[Operation], str], Callable[[Operation], bytes]]] = {
    "with a length": (lambda operation: f"Content-Length: {len(operation.answer)}", lambda operation: operation.answer),
    "in chunks": (lambda _: CHUNKED, _in_chunks),
    "up to the end of the connection": (lambda _: "Connection: close", lambda operation: operation.answer),
}
_LONGEST = max(len(_in_chunks(operation)) for operation in OPERATIONS)
_VARIANTS = {f"{framing}: {place}": (framing, place) for framing in _FRAMINGS for place in range(_LONGEST)}


def _wire(framing: str, operation: Operation) -> tuple[bytes, bytes]:
    field, body = _FRAMINGS[framing]
    return head(field(operation)), body(operation)


def _whole_objects(framing: str, operation: Operation, place: int) -> int:
    """Return how many objects an answer that is cut at a byte of its body has left."""
    _, body = _wire(framing, operation)
    if operation.group not in STREAMS:
        return 2 if body[:place].count(operation.answer) and operation.answer else 0
    # The end of the connection ends a line as well.
    ended = b"\n" if framing.startswith("up to") and body[place : place + 1] == b"\n" else b""
    return (body[:place] + ended).count(b"}\n")


def _leaves(objects: int) -> Callable[[str, Operation], bool]:
    """Return whether a cut, by its variant, leaves so many objects of an operation's answer."""

    def has(variant: str, operation: Operation) -> bool:
        framing, place = _VARIANTS[variant]
        _, body = _wire(framing, operation)
        is_cut = place < len(body) and operation.group is not Group.HEAD
        if framing.startswith("up to") and operation.group in EMPTY:
            is_cut = False
        return is_cut and _whole_objects(framing, operation, place) == objects

    return has


def _cut(framing: str, place: int) -> Callable[[Call], list[Step]]:
    def script(call: Call) -> list[Step]:
        start, body = _wire(framing, call.operation)
        return [start + body[:place]]

    return script


_CUTS = {variant: _cut(framing, place) for variant, (framing, place) in _VARIANTS.items()}


def _reset(objects: int | None) -> Callable[[Call], list[Step]]:
    """Return an answer that is reset behind so many of its objects; None is in the middle of its head."""

    def script(call: Call) -> list[Step]:
        start, _ = _wire("in chunks", call.operation)
        if objects is None:
            return [start[:20], Wait(0.1), Reset()]
        lines = call.operation.answer.splitlines(keepends=True)[:objects]
        return [start + b"".join(map(chunk, lines)), Wait(0.1), Reset()]

    return script


def _used(variants: dict[str, object], has: Callable[[str, Operation], bool]) -> list[str]:
    return [variant for variant in variants if any(has(variant, operation) for operation in OPERATIONS)]


def _closed(what: str, objects: int, outcome: dict[Group, object]) -> Fault:
    has = _leaves(objects)
    scripts = {variant: _CUTS[variant] for variant in _used(_CUTS, has)}
    return Fault(what, outcome, scripts, has=has, handed_on=STREAMS if objects else frozenset())


_HEAD = head(CHUNKED)
#: Where success has no body, the status says it.
_INCOMPLETE = everywhere(INCOMPLETE, dict.fromkeys(EMPTY, ANSWERED))


def _refusal(status: int) -> Callable[[Call], list[Step]]:
    return lambda _: [head("Content-Length: 100", status=status) + b'{"error":"the mod']


def _silent_refusal(status: int) -> Callable[[Call], list[Step]]:
    return lambda _: [head("Content-Length: 100", status=status) + b'{"error":"the mod', Hold()]


_BROKEN_REFUSALS = {"cut": _refusal, "silent": _silent_refusal}


def _has_body(_: str, operation: Operation) -> bool:
    return operation.group is not Group.HEAD


CUTS = [
    Fault(
        "closed in the middle of its head",
        everywhere(BROKEN),
        {f"{place}": (lambda _, place=place: [_HEAD[:place]]) for place in range(1, len(_HEAD))},
    ),
    _closed("closed before its first object is whole", 0, _INCOMPLETE),
    _closed("closed before its last object is whole", 1, everywhere(INCOMPLETE)),
    _closed("closed behind its last object, before its end", 2, everywhere(ANSWERED)),
    Fault(
        "a refusal of a proxy that is cut, or stops: 429, 503",
        everywhere(OVERLOADED),
        {f"{status} {name}": make(status) for status in (429, 503) for name, make in _BROKEN_REFUSALS.items()},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "a refusal of a proxy that is cut, or stops: 502, 504, 520 to 524",
        everywhere(GATEWAY),
        {f"{status} {name}": make(status) for status in (502, 504, 520) for name, make in _BROKEN_REFUSALS.items()},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "another refusal that is cut, or stops: 400 to 428, 500",
        everywhere(INCOMPLETE),
        {
            f"{status} {name}": make(status)
            for status in (400, 401, 404, 500)
            for name, make in _BROKEN_REFUSALS.items()
        },
        has=_has_body,
        slow=True,
    ),
    Fault("reset in the middle of its head", everywhere(BROKEN), {"": _reset(None)}, slow=True),
    Fault(
        "reset behind its head",
        _INCOMPLETE,
        {"": _reset(0)},
        has=_has_body,
        slow=True,
    ),
    Fault(
        "reset before its last object",
        everywhere(INCOMPLETE),
        {"": _reset(1)},
        has=lambda _, operation: operation.group in STREAMS,
        slow=True,
        handed_on=STREAMS,
    ),
    Fault(
        "reset behind its last object, before its end",
        everywhere(ANSWERED),
        {"": _reset(2)},
        has=_has_body,
        slow=True,
    ),
]
