"""One call, as those see it who listen."""

from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import AttemptFailed, CallEnded, Event, Listener
from ollama_provider.api.protocol import model_of
from ollama_provider.api.schemas import Metrics, Reply, ReplyT, Request


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
