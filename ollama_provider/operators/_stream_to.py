"""The argument ``stream_to``: shows an answer while it is generated, in the task's log or in a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.replies import Collector
from ollama_provider.api.request_flow import Send
from ollama_provider.api.schemas import ChatReply, GenerateReply, Request
from ollama_provider.hooks import OllamaHook
from ollama_provider.observability import Logger

#: Seconds between two log lines, or two flushes of the file.
INTERVAL = 5.0

Part = GenerateReply | ChatReply
Display = Callable[[Part], None]


class TextBuffer:
    """Joins the many small parts of an answer to a few larger texts.

    Reasoning and answer are kept apart: when one begins, the text of the other is complete.

    Args:
        interval: seconds between two texts.
        now: current time in seconds, of a monotonic clock.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._since = now
        self._kind = ""
        self._texts: list[str] = []

    def add(self, part: Part, now: float) -> Iterator[tuple[str, str]]:
        """Add a part. Yield kind ("thinking" or "answer") and text of what is to be shown now."""
        for kind, text in (("thinking", part.thinking), ("answer", part.text)):
            if not text:
                continue
            if kind != self._kind:
                yield from self.flush()
                self._kind = kind
            self._texts.append(text)
        if now - self._since >= self._interval:
            self._since = now
            yield from self.flush()

    def flush(self) -> Iterator[tuple[str, str]]:
        """Yield the text that was not shown yet."""
        if text := "".join(self._texts).strip("\n"):
            yield self._kind, text
        self._texts.clear()


@contextmanager
def open_display(where: Any, log: Logger, *, interval: float = INTERVAL) -> Iterator[Display]:
    """Yield a function that shows a part of an answer.

    Args:
        where: ``"log"``, or a file on any ``ObjectStoragePath``, which gets the answer without the reasoning. A file on
            a disk grows every few seconds; an object in a store appears at the end. An interrupted answer is kept.
        log: the task's logger.
        interval: seconds between two log lines, or two flushes of the file.
    """
    buffer = TextBuffer(interval, monotonic())
    if where == "log":

        def log_texts(texts: Iterator[tuple[str, str]]) -> None:
            for kind, text in texts:
                log.info("%s%s", "(thinking) " if kind == "thinking" else "", text)

        try:
            yield lambda part: log_texts(buffer.add(part, monotonic()))
        finally:
            log_texts(buffer.flush())
        return
    path = ObjectStoragePath(where)
    if path.protocol in {"", "file"}:
        # Object stores need no folders.
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:

        def write(part: Part) -> None:
            file.write(part.text.encode())
            if any(buffer.add(part, monotonic())):
                file.flush()

        yield write


def send_with_display(hook: OllamaHook, display: Display) -> Send:
    """Return a function that sends a request, displays the parts of its reply, and returns the whole reply.

    An interrupted reply is not requested again, because a part of it was shown already.
    """

    def send(request: Request[Any]) -> Any:
        collector: Collector[Any] | None = None
        with hook.stream(request) as parts:
            for part in parts:
                display(part)
                collector = collector or Collector(request, host=part.server)
                collector.add(part.model_dump(exclude_unset=True))
        return (collector or Collector(request, host=hook.settings.base_url)).reply()

    return send
