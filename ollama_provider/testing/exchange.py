"""A request, and the reply to it as steps: send the head, send a line, pause, wait, disconnect.

Handlers are generators of steps and never wait themselves. The socket (`server.py`) carries the steps out;
`collect` carries them out without waiting, for tests without a network. Closing the generator means that the client
has disconnected.
"""

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from ollama_provider.testing.go.encoding import Json, loads

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"


class Gate:
    """An event that requests wait for. It stays open once it is open. Safe to use from several threads.

    A test scripts `Stall(until=gate)` to hold a request for as long as it wants. The scheduler queues requests with
    gates. It is no `threading.Event`, since a waiting request must not block the thread of the server.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []
        self.is_open = False

    def __repr__(self) -> str:
        return f"Gate({'open' if self.is_open else 'closed'})"

    def open(self) -> None:
        """Let all waiting requests continue, and all later ones at once."""
        with self._lock:
            self.is_open = True
            waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def on_open(self, callback: Callable[[], object]) -> None:
        """Call *callback* once when the gate opens; at once if it is open."""
        with self._lock:
            if not self.is_open:
                self._waiting.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], object]) -> None:
        """Do not call *callback* any more: whoever waited has left."""
        with self._lock:
            if callback in self._waiting:
                self._waiting.remove(callback)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        method: Upper case.
        path: Without the query.
        headers: Names in lower case.
        body: The raw bytes.
        query: The part after `?`; no endpoint reads it.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    query: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response with one body. No other step of the exchange sends anything.

    Attributes:
        status: HTTP status.
        body: The whole body.
        content_type: None sends no such header.
        headers: Further headers.
        foreign: The response comes from something other than Ollama, such as a proxy.
    """

    status: int
    body: bytes = b""
    content_type: str | None = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of a stream; its lines follow."""

    status: int = 200
    content_type: str = NDJSON


@dataclass(frozen=True, slots=True)
class Line:
    r"""Bytes of a stream, as a rule one JSON object and its `\n`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the gate opens."""

    gate: Gate


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection before the body is complete: with FIN, or with RST if *reset*."""

    reset: bool = False


Step = Response | Head | Line | Pause | Wait | Disconnect
Steps = Generator[Step, None, None]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply as a client would receive it.

    Attributes:
        status: HTTP status; 0 if the connection was closed before a byte was sent.
        headers: Names in lower case.
        body: All bytes of the body.
        seconds: Sum of the scripted delays.
        cut: The connection was closed before the reply was complete.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    cut: bool = False

    @property
    def lines(self) -> list[Json]:
        """The body read as NDJSON, one value per line."""
        return [loads(line) for line in self.body.split(b"\n") if line]

    @property
    def json(self) -> Json:
        """The body read as JSON."""
        return loads(self.body)


def collect(steps: Steps) -> Reply:
    """Carry out *steps* without waiting.

    Args:
        steps: A reply, from `StandIn.exchange`.

    Raises:
        RuntimeError: A step waits for a gate that is not open: a held request, a slot, another load.
    """
    status, content_type, seconds, headers = 0, "", 0.0, dict[str, str]()
    body = bytearray()
    for step in steps:
        match step:
            case Response():
                status, content_type = step.status, step.content_type or ""
                headers |= {name.lower(): value for name, value in step.headers.items()}
                body += step.body
            case Head():
                status, content_type = step.status, step.content_type
            case Line():
                body += step.data
            case Pause():
                seconds += step.seconds
            case Wait():
                if not step.gate.is_open:
                    raise RuntimeError("the reply waits for a gate that is not open")
            case Disconnect():
                return Reply(status, headers, bytes(body), seconds, cut=True)
    if content_type:
        headers["content-type"] = content_type
    return Reply(status, headers, bytes(body), seconds)
