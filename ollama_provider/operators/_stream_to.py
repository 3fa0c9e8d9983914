"""A long answer, shown while it comes: in the task's log every few seconds, or in a file."""

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

#: Seconds between two looks.
EVERY = 5.0

Part = GenerateReply | ChatReply
Show = Callable[[Part], None]


class Throttle:
    """Text that comes in many small pieces, put together to a few larger ones.

    Thinking and answer are kept apart: what begins ends what was before.

    Args:
        every: seconds from one piece to the next.
        now: seconds, of any clock that never goes back.
    """

    def __init__(self, every: float, now: float) -> None:
        self._every = every
        self._since = now
        self._kind = ""
        self._texts: list[str] = []

    def add(self, part: Part, now: float) -> Iterator[tuple[str, str]]:
        """Take a piece; yield kind ("thinking" or "answer") and text of what is to be shown now."""
        for kind, text in (("thinking", part.thinking), ("answer", part.text)):
            if not text:
                continue
            if kind != self._kind:
                yield from self.end()
                self._kind = kind
            self._texts.append(text)
        if now - self._since >= self._every:
            self._since = now
            yield from self.end()

    def end(self) -> Iterator[tuple[str, str]]:
        """Yield what is left."""
        if text := "".join(self._texts).strip("\n"):
            yield self._kind, text
        self._texts.clear()


@contextmanager
def showing(where: Any, log: Logger, *, every: float = EVERY) -> Iterator[Show]:
    """Yield a function that shows a piece of an answer.

    Args:
        where: ``"log"``, or a file on any ``ObjectStoragePath``, which gets the answers without the thinking. A file
            on a disk grows every few seconds, an object appears at the end; either way it is left as it is when the
            answer breaks off.
        log: the task's logger.
        every: seconds between two looks.
    """
    throttle = Throttle(every, monotonic())
    if where == "log":

        def tell(pieces: Iterator[tuple[str, str]]) -> None:
            for kind, text in pieces:
                log.info("%s%s", "(thinking) " if kind == "thinking" else "", text)

        try:
            yield lambda part: tell(throttle.add(part, monotonic()))
        finally:
            tell(throttle.end())
        return
    path = ObjectStoragePath(where)
    if path.protocol in {"", "file"}:
        # Object stores have no folders to make.
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:

        def write(part: Part) -> None:
            file.write(part.text.encode())
            if any(throttle.add(part, monotonic())):
                file.flush()

        yield write


def shown(hook: OllamaHook, show: Show) -> Send:
    """Return what sends a request, shows the pieces of the answer as they come, and returns it whole.

    An answer that breaks off after its first piece is not asked for again: somebody has seen a part of it.
    """

    def send(request: Request[Any]) -> Any:
        collector = Collector(request, host=hook.settings.base_url)
        with hook.stream(request) as parts:
            for part in parts:
                show(part)
                collector.add(part.model_dump(exclude_unset=True))
        return collector.reply()

    return send
