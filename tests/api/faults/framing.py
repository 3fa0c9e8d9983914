"""Damaged and unusual HTTP."""

import gzip
import zlib
from collections.abc import Callable

from tests.api.faults.fault import (
    ANSWERED,
    INCOMPLETE,
    NOT_OLLAMA,
    Fault,
    chunk,
    everywhere,
    first,
    head,
    pieces,
    whole,
)
from tests.api.faults.operations import EMPTY, STREAMS, Group, Operation
from tests.api.faults.server import Call, Keep, Script, Step

#: Where success has no body, the status says it.
_BODY_LOST = everywhere(INCOMPLETE, dict.fromkeys(EMPTY, ANSWERED))


def _has_body(_: str, operation: Operation) -> bool:
    return operation.group not in EMPTY


def _is_stream(_: str, operation: Operation) -> bool:
    return operation.group in STREAMS


def _start(text: str) -> Script:
    """Return an answer that begins with these lines instead of a usual status line."""

    def script(call: Call) -> list[Step]:
        body = call.operation.answer
        start = f"{text}\r\nContent-Length: {len(body)}\r\n\r\n".encode("latin-1")
        return [start + (body if call.has_body else b""), Keep()]

    return script


def _fields(*fields: str) -> Script:
    return _start("\r\n".join(["HTTP/1.1 200 OK", *fields]))


def _length(value: str) -> Script:
    return lambda call: pieces(call, call.operation.answer, headers=(value,))


def _chunks(make: Callable[[bytes], bytes]) -> Script:
    """Return an answer in chunks, made of its body by a function."""
    return lambda call: pieces(call, make(call.operation.answer))


def _before(interim: bytes) -> Script:
    """Return the good answer behind another one that is none yet."""
    return lambda call: [interim, *whole(call, call.operation.answer)]


def _surplus(data: bytes) -> Script:
    def script(call: Call) -> list[Step]:
        good, *rest = whole(call, call.operation.answer)
        assert isinstance(good, bytes)
        return [good + data, *rest]

    return script


def _good_chunks(make: Callable[[bytes], bytes]) -> Script:
    """Return an answer in chunks, behind which the connection can be used again."""
    return lambda call: pieces(call, make(call.operation.answer), Keep())


def _first_then(broken: bytes) -> Script:
    """Return the first object of a stream, and then something that is no chunk."""
    return lambda call: pieces(call, chunk(first(call.operation)) + broken)


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _packed(encoding: str, pack: Callable[[bytes], bytes]) -> Script:
    return lambda call: whole(call, pack(call.operation.answer), f"Content-Encoding: {encoding}")


def _two_members(data: bytes) -> bytes:
    return gzip.compress(data[:10]) + gzip.compress(data[10:])


FRAMING = [
    Fault(
        "a broken status line or head",
        everywhere(INCOMPLETE),
        {
            "status of letters": _start("HTTP/1.1 abc OK"),
            "status of four digits": _start("HTTP/1.1 1000 OK"),
            "no status": _start("HTTP/1.1"),
            "a field without a colon": _fields("no colon here"),
            "a field without a name": _fields(": a"),
            "a name with a blank": _fields("X Y: a"),
            "NUL": _fields("X: a\x00b"),
            "a field of 200 KB": _fields("X: " + "a" * 200_000),
            "100,000 fields": _fields(*["X: a"] * 100_000),
            "another protocol": lambda _: [
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
            ],
        },
    ),
    Fault(
        "a length that is no number, negative, over 64 bits, or two different ones",
        everywhere(INCOMPLETE),
        {
            value: _length(f"Content-Length: {value}")
            for value in ("abc", "-5", "99999999999999999999999999999999", "5\r\nContent-Length: 6", "1_0", "+5", "0x5")
        },
    ),
    Fault(
        "a length that is too long, behind a whole answer",
        everywhere(ANSWERED),
        {"": lambda call: pieces(call, call.operation.answer, headers=("Content-Length: 1000",))},
    ),
    Fault(
        "a length that is too short",
        everywhere(INCOMPLETE),
        {
            "": lambda call: pieces(
                call, call.operation.answer, headers=(f"Content-Length: {len(call.operation.answer) - 5}",)
            )
        },
        has=_has_body,
        handed_on=STREAMS,
    ),
    Fault(
        "no body, where there must be one",
        everywhere(INCOMPLETE, dict.fromkeys(EMPTY, ANSWERED)),
        {
            "200": lambda call: whole(call, b""),
            "204": lambda _: [head(status=204), Keep()],
            "205": lambda call: whole(call, b"", status=205),
            "blank lines": lambda call: whole(call, b"\n\r\n \n"),
        },
    ),
    Fault(
        "a chunk that is none",
        _BODY_LOST,
        {
            "letters": _chunks(lambda _: b"xyz\r\n"),
            "bytes": _chunks(lambda _: b"\xff\xfe\x00\x01" * 100),
            "a negative size": _chunks(lambda body: b"-5\r\n" + body),
            "a size of 0x": _chunks(lambda body: b"0x%x\r\n" % len(body) + body),
            "a size over 64 bits": _chunks(lambda body: b"1" * 30 + b"\r\n" + body),
        },
    ),
    Fault(
        "a chunk that is longer than its size",
        _BODY_LOST,
        {"": _chunks(lambda body: b"%x\r\n%s!!" % (len(body[2:]), body))},
        handed_on=STREAMS,
    ),
    Fault(
        "a chunk that is none, behind the first object",
        everywhere(INCOMPLETE),
        {
            "letters": _first_then(b"zz\r\ngarbage"),
            "bytes": _first_then(b"\xff" * 100),
            "no size": _first_then(b"\r\n"),
        },
        has=_is_stream,
        handed_on=STREAMS,
    ),
    Fault(
        "a chunk that is none, behind the last object",
        everywhere(ANSWERED),
        {"": _chunks(lambda body: chunk(body or b" ") + b"zz\r\n")},
    ),
    Fault(
        "unusual HTTP that is allowed, or harmless",
        everywhere(ANSWERED),
        {
            "100 before it": _before(b"HTTP/1.1 100 Continue\r\n\r\n"),
            "103 before it": _before(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
            "HTTP/1.0": _start("HTTP/1.0 200 OK"),
            "no reason": _start("HTTP/1.1 200"),
            "a field in Latin-1": _fields("X: \xe4\xff"),
            "an empty field": _fields("X:"),
            "no length": lambda call: pieces(call, call.operation.answer, headers=("Connection: close",)),
            "extensions of chunks": _good_chunks(
                lambda body: (b"%x;a=b\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
            ),
            "trailers": _good_chunks(lambda body: (chunk(body) if body else b"") + b"0\r\nX: a\r\n\r\n"),
            "sizes in capitals": _good_chunks(
                lambda body: (b"%02X\r\n%s\r\n" % (len(body), body)) * bool(body) + b"0\r\n\r\n"
            ),
            "chunks of a byte": _good_chunks(
                lambda body: b"".join(chunk(body[place : place + 1]) for place in range(len(body))) + b"0\r\n\r\n"
            ),
            "another answer behind it": _surplus(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
            "letters behind it": _surplus(b"junk"),
            "a cookie": _fields("Set-Cookie: a=b; Path=/"),
        },
    ),
    Fault(
        "another content type, or none",
        everywhere(ANSWERED),
        {
            kind: (lambda call, kind=kind: whole(call, call.operation.answer, f"Content-Type: {kind}"))
            for kind in ("text/html", "application/octet-stream", "application/json; charset=utf-16", "", "nonsense")
        },
    ),
    Fault(
        "compressed: gzip, deflate",
        everywhere(ANSWERED),
        {
            "gzip": _packed("gzip", gzip.compress),
            "two members": _packed("x-gzip", _two_members),
            "deflate": _packed("deflate", zlib.compress),
            "raw deflate": _packed("Deflate", _raw_deflate),
            "not at all": _packed("identity", bytes),
        },
    ),
    Fault(
        "compressed, and cut or damaged",
        everywhere(INCOMPLETE),
        {
            "cut": _packed("gzip", lambda body: gzip.compress(body)[:15]),
            "damaged": _packed("gzip", lambda _: b"\x1f\x8bgarbage"),
            "not compressed": _packed("gzip", bytes),
            "a wrong checksum": _packed("gzip", lambda body: gzip.compress(body)[:-8] + b"12345678"),
        },
        has=_has_body,
    ),
    Fault(
        "compressed otherwise: br, zstd, twice",
        everywhere(NOT_OLLAMA),
        {encoding: _packed(encoding, lambda _: b"\x01\x02") for encoding in ("br", "zstd", "gzip, gzip", "my-own")},
        has=lambda _, operation: operation.group is not Group.HEAD,
    ),
]
