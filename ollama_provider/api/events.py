"""Facts worth observing, and who listens. None of them holds a prompt, an answer, a header or a secret."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import Metrics, Reply, ReplyT, Request, model_of


@dataclass(frozen=True)
class AttemptFailed:
    """An attempt failed and another one follows; the failure of the last one is told by `CallEnded`.

    Attributes:
        path: path of the endpoint, as in ``/api/generate``.
        model: the model asked for; None where the endpoint has none.
        attempt: which attempt it was; the first is 1.
        error: why.
        wait: seconds until the next attempt.
    """

    path: str
    model: str | None
    attempt: int
    error: OllamaError
    wait: float


@dataclass(frozen=True)
class CallEnded:
    """A call is over, all its attempts included.

    Attributes:
        path: path of the endpoint, as in ``/api/generate``.
        model: the model asked for; None where the endpoint has none.
        seconds: how long the caller waited.
        metrics: the server's durations and counts; None after a failure, and where the endpoint has none.
        error: class of the error it ended with; None after a success.
    """

    path: str
    model: str | None
    seconds: float
    metrics: Metrics | None = None
    error: type[OllamaError] | None = None


@dataclass(frozen=True)
class PullMoved:
    """A pull (or a push) went on; told every few seconds, and at its end.

    Attributes:
        model: the model that is pulled.
        status: the server's word for what it does.
        done: bytes that are there, over the layers known so far.
        total: bytes of the layers known so far; 0 before the first one. It grows as layers appear one after another.
        rate: bytes a second lately; None while that is unknown.
        eta: seconds to go at that rate for the layers known so far; None while that is unknown.
    """

    model: str
    status: str
    done: int
    total: int
    rate: float | None
    eta: float | None

    @property
    def percent(self) -> float | None:
        """How much of the layers known so far is there, 0 to 100; None before the first one."""
        return 100 * self.done / self.total if self.total else None


Event = AttemptFailed | CallEnded | PullMoved
#: Called with each event, in the thread or task it happens in.
Listener = Callable[[Event], None]


class Call(Generic[ReplyT]):
    """A request on its way, all its attempts included; a context manager that tells how it ended.

    Args:
        request: what is asked.
        listener: who is told.
    """

    def __init__(self, request: Request[ReplyT], listener: Listener | None) -> None:
        self.request = request
        self.model = model_of(request)
        self._listener = listener
        self._began = monotonic()
        self._metrics: Metrics | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is None or not (error is None or isinstance(error, OllamaError)):
            return
        seconds = monotonic() - self._began
        failure = type(error) if isinstance(error, OllamaError) else None
        metrics = None if failure else self._metrics
        self._listener(CallEnded(self.request.target, self.model, seconds, metrics, failure))

    def note(self, reply: Reply) -> None:
        """Keep the durations and counts of a reply, and nothing else of it."""
        if self._listener is not None and isinstance(reply, Metrics):
            known: dict[str, Any] = {name: getattr(reply, name) for name in Metrics.model_fields}
            self._metrics = Metrics.model_construct(**known)

    def failed(self, attempt: int, error: OllamaError, wait: float) -> None:
        """Tell of an attempt that failed and is followed by another."""
        self.tell(AttemptFailed(self.request.target, self.model, attempt, error, wait))

    def tell(self, event: Event | None) -> None:
        """Tell of an event, if there is one and somebody listens."""
        if event is not None and self._listener is not None:
            self._listener(event)
