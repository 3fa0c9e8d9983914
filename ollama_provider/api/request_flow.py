"""Which requests to send, and what to send next when a prompt is longer than the context. No network.

A `RequestFlow` is a generator. It yields requests, receives their replies (or the errors they failed with), and returns
its result. So the same rules serve an operator in a worker, which may block, and a trigger, which must not.
"""

from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ollama_provider.api.errors import ContextLengthError, OllamaError
from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    EmbedReply,
    EmbedRequest,
    GenerateReply,
    GenerateRequest,
    Reply,
    Request,
)
from ollama_provider.api.truncation import prompt_was_cut

_T = TypeVar("_T")
RequestFlow = Generator[Request[Any], Any, _T]
Send = Callable[[Request[Any]], Any]
AsyncSend = Callable[[Request[Any]], Awaitable[Any]]

#: Texts in one request for embeddings. The server works on one text at a time anyway; in a larger request an error or a
#: cancellation only comes later.
TEXTS_PER_REQUEST = 32


def run_flow(flow: RequestFlow[_T], send: Send) -> _T:
    """Run a flow to its end and return its result.

    Args:
        flow: which requests to send.
        send: sends one request and returns its reply.

    Raises:
        OllamaError: *send* raised it, and the flow has no other request to try.
    """
    step: Callable[[], Request[Any]] = partial(next, flow)
    while True:
        try:
            request = step()
        except StopIteration as end:
            result: _T = end.value
            return result
        # Outside of that ``try``: a StopIteration that *send* raises is not the end of the flow.
        try:
            reply = send(request)
        except OllamaError as error:
            step = partial(flow.throw, error)
        else:
            step = partial(flow.send, reply)


async def run_flow_async(flow: RequestFlow[_T], send: AsyncSend) -> _T:
    """Run a flow as `run_flow` does, with a *send* that is awaited."""
    step: Callable[[], Request[Any]] = partial(next, flow)
    while True:
        try:
            request = step()
        except StopIteration as end:
            result: _T = end.value
            return result
        try:
            reply = await send(request)
        except OllamaError as error:
            step = partial(flow.throw, error)
        else:
            step = partial(flow.send, reply)


def flows_for(request: Request[Any], *, may_cut: bool) -> Iterator[RequestFlow[Any]]:
    """Yield the flows that answer a request of any kind, to be run one after another."""
    match request:
        case GenerateRequest() | ChatRequest():
            yield inference_flow(request, may_cut=may_cut)
        case EmbedRequest():
            yield from embedding_flows(request, may_cut=may_cut)
        case _:
            yield _single_request(request)


def inference_flow(
    request: GenerateRequest | ChatRequest, *, may_cut: bool, trained: int | None = None
) -> RequestFlow[tuple[GenerateReply | ChatReply, bool]]:
    """Send a prompt; return the reply, and whether the server dropped a part of the prompt.

    A server since 0.12.6 refuses a prompt that is too long; then a second request lets it truncate the prompt. Older
    servers truncate without saying so; there the count of tokens is compared with the size of the context, if known.

    Args:
        request: with ``truncate=False``.
        may_cut: whether the server may truncate the prompt.
        trained: tokens the model was trained for, if known; it changes no request.

    Raises:
        ContextLengthError: the prompt is too long and may not be truncated.
    """
    try:
        reply = yield request
    except ContextLengthError:
        if not may_cut:
            raise
        return (yield request.model_copy(update={"truncate": None})), True
    return reply, prompt_was_cut(request, reply, context_length=trained)


@dataclass(frozen=True)
class EmbeddedTexts:
    """The reply to one request for embeddings.

    Attributes:
        start: position of the first of its texts among all texts.
        texts: the texts of this request.
        reply: a vector for each text.
        cut: the text was longer than the context and was truncated; then it is the only one.
    """

    start: int
    texts: list[str]
    reply: EmbedReply
    cut: bool


def embedding_flows(request: EmbedRequest, *, may_cut: bool) -> Iterator[RequestFlow[list[EmbeddedTexts]]]:
    """Yield a flow for every `TEXTS_PER_REQUEST` texts, so that no request waits long for its first byte.

    Args:
        request: with all texts and ``truncate=False``.
        may_cut: whether the server may truncate a text.

    Raises:
        ContextLengthError: a text is too long and may not be truncated; the error names its position.
    """
    texts = list(request.input)
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        yield _embedding_flow(request, start, texts[start : start + TEXTS_PER_REQUEST], may_cut=may_cut)


def _embedding_flow(
    request: EmbedRequest, start: int, texts: list[str], *, may_cut: bool
) -> RequestFlow[list[EmbeddedTexts]]:
    request = request.model_copy(update={"input": texts})
    try:
        return [EmbeddedTexts(start, texts, (yield request), cut=False)]
    except ContextLengthError as error:
        if len(texts) == 1:
            if not may_cut:
                error.what = f"texts.{start}: {error.what}"
                raise
            return [EmbeddedTexts(start, texts, (yield request.model_copy(update={"truncate": True})), cut=True)]
    # The server does not say which text was too long.
    found = []
    for index, text in enumerate(texts, start):
        found += yield from _embedding_flow(request, index, [text], may_cut=may_cut)
    return found


def _single_request(request: Request[Any]) -> RequestFlow[Reply]:
    reply: Reply = yield request
    return reply
