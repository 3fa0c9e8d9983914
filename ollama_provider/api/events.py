"""What listeners are told: failed attempts and servers, progress of pulls, finished calls.

Never prompts, answers and secrets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import random
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import Metrics, Reply, ReplyT, Request, model_of
from ollama_provider.api.tracing import RequestSpan


@dataclass(frozen=True)
class AttemptFailed:
    """An attempt failed and will be retried. The failure of the last attempt is reported by `CallEnded`.

    Attributes:
        path: path of the endpoint, as in ``/api/generate``.
        model: the model of the request; None for an endpoint without one.
        attempt: number of the attempt, from 1 on.
        error: why.
        wait: seconds until the next attempt.
    """

    path: str
    model: str | None
    attempt: int
    error: OllamaError
    wait: float


@dataclass(frozen=True)
class ServerFailed:
    """One of several servers failed, and the request is sent to another one at once.

    Attributes:
        path: path of the endpoint, as in ``/api/generate``.
        model: the model of the request; None for an endpoint without one.
        error: why; it names the server.
        next_host: base URL of the other server.
    """

    path: str
    model: str | None
    error: OllamaError
    next_host: str


@dataclass(frozen=True)
class CallEnded:
    """A call ended, after all its attempts.

    Attributes:
        path: path of the endpoint, as in ``/api/generate``.
        model: the model of the request; None for an endpoint without one.
        seconds: how long the caller waited.
        server: base URL of the server that answered, or that failed last; None if none did, or all of several.
        metrics: the server's durations and counts; None after a failure and for an endpoint without them.
        error: class of the error; None after a success.
    """

    path: str
    model: str | None
    seconds: float
    server: str | None = None
    metrics: Metrics | None = None
    error: type[OllamaError] | None = None


@dataclass(frozen=True)
class PullMoved:
    """Progress of a pull or a push, reported every few seconds and at its end.

    Attributes:
        model: the model that is pulled.
        status: the server's status text.
        done: bytes transferred of the layers known so far.
        total: bytes of the layers known so far; 0 before the first one. It grows as layers appear one after another.
        rate: bytes a second, over the last seconds; None if unknown.
        eta: seconds left at that rate for the layers known so far; None if unknown.
    """

    model: str
    status: str
    done: int
    total: int
    rate: float | None
    eta: float | None

    @property
    def percent(self) -> float | None:
        """Percentage of the layers known so far that is transferred, 0 to 100; None before the first layer."""
        return 100 * self.done / self.total if self.total else None


Event = AttemptFailed | ServerFailed | CallEnded | PullMoved
#: Called with each event, in the thread or task it happens in.
Listener = Callable[[Event], None]


class Call(Generic[ReplyT]):
    """A request with all its attempts. A context manager that reports its end to a listener, and is a span.

    Args:
        request: the request.
        listener: called with the events; None if nothing listens.
        traced: probability that the request gets a span, 0 to 1, where tracing is on.
    """

    def __init__(self, request: Request[ReplyT], listener: Listener | None, traced: float = 0.0) -> None:
        self.request = request
        self.model = model_of(request)
        self._listener = listener
        self._began = monotonic()
        self._server: str | None = None
        self._metrics: Metrics | None = None
        self._traced = traced
        self._span: RequestSpan | None = None

    def __enter__(self) -> Self:
        if self._traced and random() < self._traced:  # noqa: S311  # no secret
            self._span = RequestSpan.start(self.request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._span.end(error)
        if self._listener is None or not (error is None or isinstance(error, OllamaError)):
            return
        seconds = monotonic() - self._began
        path, model = self.request.target, self.model
        if isinstance(error, OllamaError):
            self._listener(CallEnded(path, model, seconds, error.host, error=type(error)))
        else:
            self._listener(CallEnded(path, model, seconds, self._server, self._metrics))

    def note(self, reply: Reply) -> None:
        """Keep the server of a reply, its durations and its counts for `CallEnded`, and the reply for the span."""
        if self._span is not None:
            self._span.add(reply)
        if self._listener is None:
            return
        self._server = reply.server or None
        if isinstance(reply, Metrics):
            known: dict[str, Any] = {name: getattr(reply, name) for name in Metrics.model_fields}
            self._metrics = Metrics.model_construct(**known)

    def failed(self, attempt: int, error: OllamaError, wait: float) -> None:
        """Report an attempt that failed and will be retried."""
        if self._span is not None:
            self._span.failed_attempt(error)
        self.tell(AttemptFailed(self.request.target, self.model, attempt, error, wait))

    def went_on(self, error: OllamaError, next_host: str) -> None:
        """Report a server that failed, and the one that the request is sent to next."""
        if self._span is not None:
            self._span.failed_attempt(error)
        self.tell(ServerFailed(self.request.target, self.model, error, next_host))

    def tell(self, event: Event) -> None:
        """Report an event to the listener, if there is one."""
        if self._listener is not None:
            self._listener(event)
