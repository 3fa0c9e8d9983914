"""Servers that answer with what they were sent, and in other ways that Ollama never would."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ollama_provider.testing import Model, StandIn
from tests.security.canaries import ANSWER
from tests.sockets import listening


@dataclass(frozen=True)
class Seen:
    """A request as it arrived.

    Attributes:
        head: request line and headers.
        body: without the framing of chunks.
    """

    head: str
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split(" ", 2)[1]

    @property
    def whole(self) -> str:
        return self.head + self.body.decode()


@dataclass
class Hostile:
    """A server, and the requests that it has seen."""

    url: str
    seen: list[Seen] = field(default_factory=list)


Answering = Callable[[Seen], bytes]


@contextlib.contextmanager
def hostile(answer: Answering) -> Iterator[Hostile]:
    """Run a server; *answer* returns the bytes that it sends before it closes the connection."""
    server = Hostile("")

    def serve_one(connection: socket.socket) -> None:
        connection.settimeout(10)
        seen = _read(connection)
        if seen is not None:
            server.seen.append(seen)
            connection.sendall(answer(seen))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    with listening(serve_one) as url:
        server.url = url
        yield server


def _read(connection: socket.socket) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = head.decode("latin-1").lower()
    if "transfer-encoding: chunked" in fields:
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
        lines = body.split(b"\r\n")
        body = b"".join(lines[1::2])
    elif "content-length: " in fields:
        length = int(fields.partition("content-length: ")[2].split("\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
    return Seen(head.decode("latin-1"), body)


def respond(status: int, body: bytes | str, *headers: str, kind: str = "application/json") -> bytes:
    """Return an answer."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} x", f"Content-Type: {kind}", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + data


def error(status: int, text: str) -> bytes:
    """Return an error of Ollama."""
    return respond(status, json.dumps({"error": text}))


def lines(*objects: object) -> bytes:
    """Return a stream of lines."""
    return respond(200, "".join(f"{json.dumps(one)}\n" for one in objects), kind="application/x-ndjson")


def once_it_is_trusted(fault: Answering) -> Answering:
    """Return an Ollama that turns hostile when it is given a text."""
    ollama = StandIn(models=[Model("llama3.2", ("completion", "tools", "embedding"))])

    def answer(seen: Seen) -> bytes:
        if "canary" in seen.body.decode():
            return fault(seen)
        reply = ollama.answer(seen.head.split(" ", 1)[0], seen.path, body=seen.body)
        return respond(reply.status, reply.body, kind=reply.headers.get("content-type", "application/json"))

    return answer


def _one_line(seen: Seen) -> str:
    return " ".join(seen.whole.split())


def _half(seen: Seen) -> bytes:
    part = {"model": "m", "response": ANSWER, "message": {"role": "assistant", "content": ANSWER}, "done": False}
    return lines(part)[:-30]


#: Faults of a server that quotes what it was sent, or breaks off an answer.
FAULTS: dict[str, Answering] = {
    "401 that quotes headers": lambda seen: error(401, f"unauthorized: {' '.join(seen.head.split())}"),
    "500 that quotes the prompt": lambda seen: error(500, f"cannot run {seen.body.decode()}"),
    "500 that quotes the prompt alone": lambda seen: error(500, f"bad: {seen.whole[-220:]}"),
    "400 of nested JSON": lambda seen: respond(400, json.dumps({"error": {"message": _one_line(seen)}})),
    "403 as text": lambda seen: respond(403, seen.whole, kind="text/plain"),
    "a page that quotes": lambda seen: respond(
        502, f"<html><title>{seen.head[-60:]}</title>{seen.whole}</html>", kind="text/html"
    ),
    "a page in place of an answer": lambda seen: respond(200, f"<html>{seen.whole}</html>", kind="text/html"),
    "headers that quote": lambda seen: respond(
        401, "", f"WWW-Authenticate: Basic realm={_one_line(seen)[:900]!r}", f"Retry-After: {_one_line(seen)[:300]}"
    ),
    "a content type that quotes": lambda seen: respond(
        200, "no", kind=f"text/{_header(seen, 'authorization')}; x={_header(seen, 'x-api-key')}"
    ),
    "a redirect that quotes": lambda seen: respond(
        307, "", f"Location: http://{_header(seen, 'x-api-key')}.example/{_header(seen, 'authorization')}"
    ),
    "an error within the answer": lambda seen: lines({"response": ANSWER}, {"error": f"lost {_one_line(seen)}"}),
    "half an answer": _half,
    "an answer that is no JSON": lambda seen: respond(200, f'{{"response": "{ANSWER}"\n{seen.whole}'),
    "an answer of other types": lambda seen: lines(
        {"response": [ANSWER], "message": ANSWER, "models": seen.whole, "version": [seen.whole], "status": {}},
    ),
    "no HTTP": lambda seen: f"NONSENSE {_one_line(seen)}\r\n\r\n".encode(),
    "a broken head": lambda seen: f"HTTP/1.1 200 OK\r\n{_one_line(seen)[:500]}\r\n\r\n".encode(),
}


def _header(seen: Seen, name: str) -> str:
    return next((line.partition(": ")[2] for line in seen.head.split("\r\n") if line.lower().startswith(name)), "")
