"""What an exchange does next, as values: wait, send the head, send a line, break the connection.

The stand-in decides without waiting: its handlers are generators of steps, and whoever drives them (a socket in
`server.py`, or `collect` below, which waits for nothing) does what the step says. Closing the generator is the client's
hanging up.
"""

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from ollama_provider.testing.go.encoding import Json, loads

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"


class Gate:
    """A door somebody waits at until somebody else opens it; it never closes again.

    Scripts use it to hold a request for exactly as long as a test wants (`hold`), the scheduler to queue requests.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []
        self.is_open = False

    def __repr__(self) -> str:
        return f"Gate({'open' if self.is_open else 'shut'})"

    def open(self) -> None:
        """Let everybody through, now and later. May be called from any thread."""
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


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request as the stand-in sees it.

    Attributes:
        method: Upper case.
        path: Without the query.
        headers: Names in lower case.
        body: The raw bytes.
        query: What stands behind `?`; no endpoint reads it.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    query: str = ""


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete answer with one body: the only step that sends, if it is sent at all.

    Attributes:
        status: HTTP status.
        body: All of it.
        content_type: None sends none.
        headers: Further ones.
        foreign: It is not Ollama that answers.
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
    """Nothing happens for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing happens until the gate opens."""

    gate: Gate


@dataclass(frozen=True, slots=True)
class Break:
    """The connection breaks: FIN without the end of the body, or RST."""

    reset: bool = False


Step = Whole | Head | Line | Pause | Wait | Break
Steps = Generator[Step, None, None]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client would have seen, all at once.

    Attributes:
        status: HTTP status; 0 if the connection was cut before a byte was sent.
        headers: Names in lower case.
        body: All bytes of the body.
        seconds: How long the scripted delays would have taken.
        cut: The connection was broken instead of ended.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    cut: bool = False

    @property
    def lines(self) -> list[Json]:
        """The JSON values of an NDJSON body."""
        return [loads(line) for line in self.body.split(b"\n") if line]

    @property
    def json(self) -> Json:
        """The JSON value of a body that is one."""
        return loads(self.body)


def collect(steps: Steps) -> Reply:
    """Drive *steps* to their end without waiting.

    Args:
        steps: An exchange, from `StandIn.exchange`.

    Raises:
        RuntimeError: The exchange waits for something that has not happened: a held request, a slot, another load.
    """
    status, content_type, seconds, headers = 0, "", 0.0, dict[str, str]()
    body = bytearray()
    for step in steps:
        match step:
            case Whole():
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
                    raise RuntimeError("the exchange would wait for ever")
            case Break():
                return Reply(status, headers, bytes(body), seconds, cut=True)
    if content_type:
        headers["content-type"] = content_type
    return Reply(status, headers, bytes(body), seconds)
