"""What to send, and what next when a prompt is longer than the context. No network.

A `Conversation` is a generator: it yields requests, is sent their replies (or thrown their errors), and returns its
result. So one text of the rules serves a worker, which blocks, and the triggerer, which must not.
"""

from collections.abc import Callable, Generator, Iterator
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
Conversation = Generator[Request[Any], Any, _T]
Send = Callable[[Request[Any]], Any]

#: Texts a request. The server works on one at a time anyway; larger requests only fail or stop later.
PIECE = 32


def hold(conversation: Conversation[_T], send: Send) -> _T:
    """Hold a conversation to its end, with *send* for each request; return its result.

    Raises:
        OllamaError: what *send* raised and the conversation has no answer to.
    """
    step: Callable[[], Request[Any]] = partial(next, conversation)
    while True:
        try:
            request = step()
        except StopIteration as end:
            result: _T = end.value
            return result
        # Out of reach of that: an iterator that ends in *send* is no end of the conversation.
        try:
            reply = send(request)
        except OllamaError as error:
            step = partial(conversation.throw, error)
        else:
            step = partial(conversation.send, reply)


def conversations(request: Request[Any], *, may_cut: bool) -> Iterator[Conversation[Any]]:
    """Yield the conversations that answer a request of any kind, to be held one after another."""
    match request:
        case GenerateRequest() | ChatRequest():
            yield ask(request, may_cut=may_cut)
        case EmbedRequest():
            yield from embed(request, may_cut=may_cut)
        case _:
            yield _once(request)


def ask(
    request: GenerateRequest | ChatRequest, *, may_cut: bool, trained: int | None = None
) -> Conversation[tuple[GenerateReply | ChatReply, bool]]:
    """Ask a model; return the reply, and whether the server dropped a part of the prompt.

    A server since 0.12.6 refuses a prompt that is too long, and is asked once more, to cut it. Older ones do not say;
    there the count of tokens is compared with the size of the context, as far as that is known.

    Args:
        request: with ``truncate=False``.
        may_cut: whether a part of the prompt will do.
        trained: tokens the model was trained for, where that is known; it bears on no request.

    Raises:
        ContextLengthError: the prompt is too long and may not be cut.
    """
    try:
        reply = yield request
    except ContextLengthError:
        if not may_cut:
            raise
        return (yield request.model_copy(update={"truncate": None})), True
    return reply, prompt_was_cut(request, reply, context_length=trained)


@dataclass(frozen=True)
class Embedded:
    """A reply with the vectors of a few texts.

    Attributes:
        start: place of the first of them among all texts.
        texts: the texts.
        reply: one vector for each, if the server did its work.
        cut: the text (there is one only) was longer than the context.
    """

    start: int
    texts: list[str]
    reply: EmbedReply
    cut: bool


def embed(request: EmbedRequest, *, may_cut: bool) -> Iterator[Conversation[list[Embedded]]]:
    """Yield a conversation for each `PIECE` of the texts, so that none waits long for its first byte.

    Args:
        request: with all texts and ``truncate=False``.
        may_cut: whether the beginning of a text will do.

    Raises:
        ContextLengthError: a text is too long and may not be cut; its place is named.
    """
    texts = list(request.input)
    for start in range(0, len(texts), PIECE):
        yield _embed(request, start, texts[start : start + PIECE], may_cut=may_cut)


def _embed(request: EmbedRequest, start: int, texts: list[str], *, may_cut: bool) -> Conversation[list[Embedded]]:
    request = request.model_copy(update={"input": texts})
    try:
        return [Embedded(start, texts, (yield request), cut=False)]
    except ContextLengthError as error:
        if len(texts) == 1:
            if not may_cut:
                error.what = f"texts.{start}: {error.what}"
                raise
            return [Embedded(start, texts, (yield request.model_copy(update={"truncate": True})), cut=True)]
    # The server does not say which one it was.
    found = []
    for index, text in enumerate(texts, start):
        found += yield from _embed(request, index, [text], may_cut=may_cut)
    return found


def _once(request: Request[Any]) -> Conversation[Reply]:
    reply: Reply = yield request
    return reply
