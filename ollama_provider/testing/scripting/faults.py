"""Faults that a test can script. Each changes the steps of a reply.

`after` always counts lines of the stream: `None` is before the first byte (no status, no headers), 0 is after the
headers, 3 is after three lines. A reply that is not streamed counts as one line. A fault that makes a request fail
never sends the last line, which contains `done` or `success`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ollama_provider.testing.exchange import JSON, Disconnect, Gate, Head, Line, Pause, Response, Steps, Wait
from ollama_provider.testing.go.encoding import Json, dumps

_FINAL_LINE_MARKS = (b'"done":true', b'"status":"success"')
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class EarliestFailure:
    """How early in a reply this version of Ollama can report an error of its own at this endpoint.

    Attributes:
        lines: Lines that are sent before: one for pull, push and create.
        status: The error can still be an HTTP status: generate and chat since 0.12.6.
        llama_server: Models run in llama.cpp's `llama-server`, as since 0.30.
        embedding: HTTP status of an error of the model's process at an embedding endpoint; 0 at other endpoints.
    """

    lines: int
    status: bool
    llama_server: bool
    embedding: int


class Fault(Protocol):
    """Changes the steps of a reply."""

    def apply(self, steps: Steps, earliest: EarliestFailure, /) -> Steps:
        """Yield the changed steps.

        Args:
            steps: The reply without the fault.
            earliest: How early the endpoint can report an error.
        """


def _steps_before(steps: Steps, after: int | None) -> Steps:
    """The steps before the place where a fault happens."""
    if after is None:
        for step in steps:
            if isinstance(step, Response | Head):
                return
            yield step
        return
    lines = 0
    for step in steps:
        if isinstance(step, Response):
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
    return any(mark in data for mark in _FINAL_LINE_MARKS)


@dataclass(frozen=True, slots=True)
class Fail:
    """Ollama reports an error.

    Attributes:
        text: The `error` in the reply.
        status: HTTP status, if no line has been sent before or the reply is not streamed.
        after: Lines before the error, which is then a line in a stream of status 200. By default as early as Ollama
            can report one.
    """

    text: str
    status: int = 500
    after: int | None = None

    def apply(self, steps: Steps, earliest: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        body = dumps({"error": self.text}).encode()
        after = earliest.lines if self.after is None else max(self.after, earliest.lines)
        lines = 0
        for step in steps:
            if isinstance(step, Response) or (isinstance(step, Head) and after == 0 and earliest.status):
                yield Response(
                    self.status, body, step.content_type if isinstance(step, Response) else "application/json"
                )
                return
            if isinstance(step, Line):
                if lines == after or _is_last(step.data):
                    break
                lines += 1
            yield step
        yield Line(body + b"\n")


OTHER_REQUESTS_LOG = (
    "error: task id = 16, error: request (3018 tokens) exceeds the available context size (2048 tokens), "
    "try increasing it\n"
    "error: task id = 275, error: request (12017 tokens) exceeds the available context size (2048 tokens), "
    "try increasing it"
)
"""Error lines from the log of a busy `llama-server`. They are about other requests than the one that fails."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The model's process ends: it was killed, or ran out of memory.

    Attributes:
        after: None: it has ended before. 0: it ends while it reads the prompt. 3: after three lines of the answer.
            An embedding has no lines.
        log: Text that Ollama appends to the error since 0.30: the last error lines in the log of that process, also
            if they are about other requests. May be empty.
    """

    after: int | None = None
    log: str = OTHER_REQUESTS_LOG

    def apply(self, steps: Steps, earliest: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        yield from Fail(self._text(earliest), earliest.embedding or 500, self.after or None).apply(steps, earliest)

    def _text(self, earliest: EarliestFailure) -> str:
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
            return _RUNNER_STOPPED
        return f"an error was encountered while running the model: {log or 'unexpected EOF'}"


_RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


@dataclass(frozen=True, slots=True)
class Respond:
    """A proxy, a login page or another program responds in place of Ollama.

    Attributes:
        status: HTTP status.
        body: Text, bytes, or a value that is sent as JSON.
        content_type: If empty, chosen by the body.
        headers: Further headers, such as `Retry-After` or `Location`.
    """

    status: int
    body: Json = ""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def apply(self, steps: Steps, _: EarliestFailure, /) -> Steps:  # noqa: ARG002 - the usual reply is not used
        """Change the steps, as `Fault` describes."""
        match self.body:
            case bytes():
                data, guess = self.body, "application/octet-stream"
            case str():
                data = self.body.encode()
                guess = "text/html" if self.body.lstrip().startswith("<") else "text/plain"
            case _:
                data, guess = json.dumps(self.body).encode(), JSON
        yield Response(self.status, data, self.content_type or guess, self.headers, foreign=True)


@dataclass(frozen=True, slots=True)
class Stall:
    """The reply stops without an end. It continues when a gate opens; without a gate it never does.

    Attributes:
        after: Lines before it; by default not even the headers are sent.
        until: The reply continues when the test opens this gate.
    """

    after: int | None = None
    until: Gate = field(default_factory=Gate)

    def apply(self, steps: Steps, _: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        lines, waited = 0, False
        for step in steps:
            here = (
                isinstance(step, Response | Head)
                if self.after is None
                else isinstance(step, Response | Line) and lines >= self.after
            )
            if here and not waited:
                waited = True
                yield Wait(self.until)
            lines += isinstance(step, Line)
            yield step


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection closes in the middle of the reply, as when the server is killed or a proxy gives up.

    Attributes:
        after: Lines before it; by default no byte is sent.
        reset: Close it with RST instead of FIN.
    """

    after: int | None = None
    reset: bool = False

    def apply(self, steps: Steps, _: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        yield from _steps_before(steps, self.after)
        yield Disconnect(self.reset)


@dataclass(frozen=True, slots=True)
class CutUpload:
    """The connection closes while the client is still sending its body, of which nothing is kept.

    Attributes:
        after: Bytes of the body that are read before.
        reset: Close it with RST instead of FIN.
    """

    after: int
    reset: bool = True

    def apply(self, _: Steps, earliest: EarliestFailure, /) -> Steps:  # noqa: ARG002 - the usual reply is not used
        """Change the steps, as `Fault` describes."""
        yield Disconnect(self.reset)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The stream ends normally but without its last line.

    So does Ollama when it stops a model that repeats itself, or when the runner exits.
    A reply that is not streamed has status 200, `done: false` and no metrics.

    Attributes:
        after: Lines before the end.
    """

    after: int = _NO_LIMIT

    def apply(self, steps: Steps, _: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        lines = 0
        for step in steps:
            if isinstance(step, Response):
                kept = {
                    k: v
                    for k, v in json.loads(step.body).items()
                    if k in {"model", "created_at", "response", "message", "thinking"}
                }
                yield Response(step.status, dumps(kept | {"done": False}).encode(), step.content_type)
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
        data: Sent unchanged; a line needs its own `\n`. It replaces a reply that is not streamed.
        after: Lines before it.
    """

    data: bytes
    after: int = 0

    def apply(self, steps: Steps, _: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        lines, pending = 0, True
        for step in steps:
            if isinstance(step, Response):
                yield Response(step.status, self.data, step.content_type)
                return
            if isinstance(step, Line):
                if pending and (lines == self.after or _is_last(step.data)):
                    pending = False
                    yield Line(self.data)
                lines += 1
            yield step


@dataclass(frozen=True, slots=True)
class StuckDownload:
    """A pull that repeats the same progress without an end, as Ollama does when the registry stops sending.

    Attributes:
        after: Lines before it. The last of them is repeated.
        every: Seconds between the lines.
    """

    after: int = 2
    every: float = 0.06

    def apply(self, steps: Steps, _: EarliestFailure, /) -> Steps:
        """Change the steps, as `Fault` describes."""
        last = None
        for step in _steps_before(steps, self.after):
            last = step if isinstance(step, Line) else last
            yield step
        while last is not None:
            yield Pause(self.every)
            yield last
