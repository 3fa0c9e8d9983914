"""What can go wrong on the way: each fault turns the steps of an ordinary exchange into those of a broken one.

`after` always counts lines of the stream: `None` is before the first byte (no status, no headers), 0 is after the
headers, 3 is after three lines. A reply that is not streamed is one line. The last line, the one that says `done` or
`success`, is never let through by a fault that promises a failure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ollama_provider.testing.exchange import JSON, Break, Gate, Head, Line, Pause, Steps, Wait, Whole
from ollama_provider.testing.go.encoding import Json, dumps

_LAST = (b'"done":true', b'"status":"success"')
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Earliest:
    """How early an endpoint can fail on its own.

    Attributes:
        lines: Lines that have gone out by then: pull, push and create have sent their first one.
        status: It can still answer with a status: generate and chat since 0.12.6.
        llama_server: Models run in llama.cpp's `llama-server`: since 0.30.
        embedding: Status of what a model's process says to an embedding; 0 at the other endpoints.
    """

    lines: int
    status: bool
    llama_server: bool
    embedding: int


class Fault(Protocol):
    """Turns the steps of an exchange into others."""

    def apply(self, steps: Steps, earliest: Earliest, /) -> Steps:
        """Pass on, change, hold back or add steps.

        Args:
            steps: The exchange as it would be.
            earliest: How early the endpoint can fail on its own.
        """


def _pass(steps: Steps, after: int | None) -> Steps:
    """The steps up to the place where a fault strikes."""
    if after is None:
        for step in steps:
            if isinstance(step, Whole | Head):
                return
            yield step
        return
    lines = 0
    for step in steps:
        if isinstance(step, Whole):
            if after == 0:
                yield Head(step.status, step.content_type or JSON)
            elif not _is_last(step.body):
                yield step
            return
        if isinstance(step, Line):
            if lines == after or _is_last(step.data):
                return
            lines += 1
        yield step
        if lines == after and lines:
            return
        if isinstance(step, Head) and after == 0:
            return


def _is_last(data: bytes) -> bool:
    return any(mark in data for mark in _LAST)


@dataclass(frozen=True, slots=True)
class Fail:
    """Ollama itself fails, with a text of its own.

    Attributes:
        text: The `error`.
        status: Status if no line has gone out, or if the reply is not streamed.
        after: Lines before it; then the error is a line in a 200 stream. By default as early as Ollama could.
    """

    text: str
    status: int = 500
    after: int | None = None

    def apply(self, steps: Steps, earliest: Earliest, /) -> Steps:
        """See `Fault`."""
        body = dumps({"error": self.text}).encode()
        after = earliest.lines if self.after is None else max(self.after, earliest.lines)
        lines = 0
        for step in steps:
            if isinstance(step, Whole) or (isinstance(step, Head) and after == 0 and earliest.status):
                yield Whole(self.status, body, step.content_type if isinstance(step, Whole) else "application/json")
                return
            if isinstance(step, Line):
                if lines == after or _is_last(step.data):
                    break
                lines += 1
            yield step
        yield Line(body + b"\n")


OTHERS = (
    "error: task id = 16, error: request (3018 tokens) exceeds the available context size (2048 tokens), "
    "try increasing it\n"
    "error: task id = 275, error: request (12017 tokens) exceeds the available context size (2048 tokens), "
    "try increasing it"
)
"""The last error lines in the log of a busy `llama-server`: they are about other requests than the one that fails."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The process of the model dies: killed, out of memory.

    Attributes:
        after: None: it is found dead. 0: it dies while it reads the prompt, 3: after three lines of the answer.
            An embedding has no lines.
        log: What Ollama quotes behind its own text since 0.30: the last error lines of that process, about whatever
            request they are. Empty if there were none.
    """

    after: int | None = None
    log: str = OTHERS

    def apply(self, steps: Steps, earliest: Earliest, /) -> Steps:
        """See `Fault`."""
        yield from Fail(self._text(earliest), earliest.embedding or 500, self.after or None).apply(steps, earliest)

    def _text(self, earliest: Earliest) -> str:
        log = self.log if earliest.llama_server else ""
        if self.after is None:
            return (
                f"llama-server process no longer running: unknown {log}"
                if earliest.llama_server
                else ("llama runner process no longer running: -1 ")
            )
        if earliest.embedding:
            path = "v1/embeddings" if earliest.llama_server else "embedding"
            return f'do embedding request: Post "http://127.0.0.1:40001/{path}": EOF'
        if self.after == 0 and not earliest.llama_server:
            return _STOPPED
        return f"an error was encountered while running the model: {log or 'unexpected EOF'}"


_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


@dataclass(frozen=True, slots=True)
class Respond:
    """Something answers in place of Ollama: a proxy, a login page, another program.

    Attributes:
        status: HTTP status.
        body: Text, bytes, or a value sent as JSON.
        content_type: Guessed from the body if empty.
        headers: Further headers, such as `Retry-After` or `Location`.
    """

    status: int
    body: Json = ""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def apply(self, steps: Steps, _: Earliest, /) -> Steps:  # noqa: ARG002 - Ollama is not asked
        """See `Fault`."""
        match self.body:
            case bytes():
                data, guess = self.body, "application/octet-stream"
            case str():
                data = self.body.encode()
                guess = "text/html" if self.body.lstrip().startswith("<") else "text/plain"
            case _:
                data, guess = json.dumps(self.body).encode(), JSON
        yield Whole(self.status, data, self.content_type or guess, self.headers, foreign=True)


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence, until a gate opens or, without one, for ever.

    Attributes:
        after: Lines before it; by default not even headers.
        until: Opened by the test: the exchange goes on where it stopped.
    """

    after: int | None = None
    until: Gate = field(default_factory=Gate)

    def apply(self, steps: Steps, _: Earliest, /) -> Steps:
        """See `Fault`."""
        lines, waited = 0, False
        for step in steps:
            here = (
                isinstance(step, Whole | Head)
                if self.after is None
                else isinstance(step, Whole | Line) and lines >= self.after
            )
            if here and not waited:
                waited = True
                yield Wait(self.until)
            lines += isinstance(step, Line)
            yield step


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks: the server was killed, a proxy gave up.

    Attributes:
        after: Lines before it; by default not a byte is sent.
        reset: With RST instead of FIN.
    """

    after: int | None = None
    reset: bool = False

    def apply(self, steps: Steps, _: Earliest, /) -> Steps:
        """See `Fault`."""
        yield from _pass(steps, self.after)
        yield Break(self.reset)


@dataclass(frozen=True, slots=True)
class CutUpload:
    """The connection breaks while the client still sends its body, and nothing of it is kept.

    Attributes:
        after: Bytes of the body that are read before.
        reset: With RST instead of FIN.
    """

    after: int
    reset: bool = True

    def apply(self, _: Steps, earliest: Earliest, /) -> Steps:  # noqa: ARG002 - Ollama is not asked
        """See `Fault`."""
        yield Break(self.reset)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The stream ends cleanly without its last line: the repeat guard, or a runner that went away.

    Not streamed: status 200 with `done: false` and no metrics.

    Attributes:
        after: Lines before the end.
    """

    after: int = _NEVER

    def apply(self, steps: Steps, _: Earliest, /) -> Steps:
        """See `Fault`."""
        lines = 0
        for step in steps:
            if isinstance(step, Whole):
                kept = {
                    k: v
                    for k, v in json.loads(step.body).items()
                    if k in {"model", "created_at", "response", "message", "thinking"}
                }
                yield Whole(step.status, dumps(kept | {"done": False}).encode(), step.content_type)
                return
            if isinstance(step, Line):
                if lines == self.after or _is_last(step.data):
                    return
                lines += 1
            yield step


@dataclass(frozen=True, slots=True)
class Insert:
    r"""Raw bytes between two lines: malformed JSON, a blank line, U+2028 unescaped.

    Attributes:
        data: Sent as it is; a line needs its own `\n`. In place of a reply that is not streamed.
        after: Lines before it.
    """

    data: bytes
    after: int = 0

    def apply(self, steps: Steps, _: Earliest, /) -> Steps:
        """See `Fault`."""
        lines, pending = 0, True
        for step in steps:
            if isinstance(step, Whole):
                yield Whole(step.status, self.data, step.content_type)
                return
            if isinstance(step, Line):
                if pending and (lines == self.after or _is_last(step.data)):
                    pending = False
                    yield Line(self.data)
                lines += 1
            yield step


@dataclass(frozen=True, slots=True)
class StuckDownload:
    """A pull that keeps sending its progress and makes none, as Ollama does for ever when the registry stops sending.

    Attributes:
        after: Lines before it; the last of them is repeated.
        every: Seconds between the lines.
    """

    after: int = 2
    every: float = 0.06

    def apply(self, steps: Steps, _: Earliest, /) -> Steps:
        """See `Fault`."""
        last = None
        for step in _pass(steps, self.after):
            last = step if isinstance(step, Line) else last
            yield step
        while last is not None:
            yield Pause(self.every)
            yield last
