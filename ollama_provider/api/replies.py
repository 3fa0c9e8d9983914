"""JSON objects of an answer to replies: joined or one by one, validated, and checked for an answer.

A field of another type than Ollama's is a fault of that answer and of no other (`IncompleteReplyError`), or, where no
model has answered (tags, show, version, ps), says that it is not Ollama (`NotOllamaError`). No network, no clock.
"""

import math
from typing import Any, Generic

from pydantic import ValidationError

from ollama_provider.api.errors import (
    IncompleteReplyError,
    NotOllamaError,
    OllamaError,
    RejectedReplyError,
)
from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    EmbedReply,
    EmbedRequest,
    GenerateReply,
    GenerateRequest,
    LegacyEmbedReply,
    Reply,
    ReplyT,
    Request,
    model_of,
)
from ollama_provider.api.schemas.base import explain
from ollama_provider.api.thinking import ThinkingSplitter, split_thinking

#: Fields that come in pieces.
_TEXTS, _LISTS = ("response", "content", "thinking"), ("tool_calls", "logprobs")


class Collector(Generic[ReplyT]):
    """Joins the objects of a streamed answer to one reply, which is validated once, at the end.

    Texts and lists that arrive in pieces (answer, thinking, tool calls, log-probabilities) are joined; of all other
    fields the last value counts. Thinking inside the answer is split off.
    """

    def __init__(self, request: Request[ReplyT], *, host: str) -> None:
        self._request = request
        self._host = host
        self._merged: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}

    def add(self, part: dict[str, Any]) -> None:
        """Add one object of the answer.

        Raises:
            OllamaError: a field has a type that Ollama does not send.
        """
        message = part.pop("message", None)
        if message is not None:
            if not isinstance(message, dict):
                raise _odd_field("message", self._request, self._host)
            self._gather(message, "message.")
            self._merged.setdefault("message", {}).update(message)
        self._gather(part, "")
        self._merged.update(part)

    def _gather(self, part: dict[str, Any], prefix: str) -> None:
        for key in _TEXTS:
            text = part.pop(key, None)
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise _odd_field(prefix + key, self._request, self._host)
            self._texts.setdefault(prefix + key, []).append(text)
        for key in _LISTS:
            items = part.pop(key, None)
            if items is None:
                continue
            if not isinstance(items, list):
                raise _odd_field(prefix + key, self._request, self._host)
            if items:
                self._lists.setdefault(prefix + key, []).extend(items)

    def reply(self) -> ReplyT:
        """Return the whole reply.

        Raises:
            OllamaError: a field has a type that Ollama does not send, or there is no answer.
            RejectedReplyError: vectors are missing or broken.
        """
        joined: dict[str, Any] = {key: "".join(texts) for key, texts in self._texts.items()}
        self._split(joined)
        for key, value in (joined | self._lists).items():
            front, dot, name = key.partition(".")
            if dot:
                self._merged[front][name] = value
            else:
                self._merged[key] = value
        reply = validated(self._request, self._merged, host=self._host)
        if isinstance(reply, GenerateReply | ChatReply):
            check_answered(self._request, reply, host=self._host)
        elif isinstance(self._request, EmbedRequest) and isinstance(reply, EmbedReply):
            _check_vectors(self._request, reply, host=self._host)
        return reply

    def _split(self, joined: dict[str, str]) -> None:
        for text_key, thought_key in (("response", "thinking"), ("message.content", "message.thinking")):
            text = joined.get(text_key)
            if text is None:
                continue
            before = joined.get(thought_key, "")
            thought, joined[text_key] = split_thinking(text, self._request, has_thought=bool(before))
            if thought:
                joined[thought_key] = f"{before}\n{thought}" if before else thought


class StreamedReplies(Generic[ReplyT]):
    """Turns each object of a streamed answer into a reply, for a caller that reads the answer while it arrives.

    Joined, the replies equal what `Collector` returns for the same objects, with the exception that `ThinkingSplitter`
    describes.

    Args:
        request: what is answered.
        host: base URL, for errors.
    """

    def __init__(self, request: Request[ReplyT], *, host: str) -> None:
        self._request = request
        self._host = host
        self._splitter = ThinkingSplitter()
        self._answered = False

    def read(self, part: dict[str, Any]) -> ReplyT:
        """Validate an object as a reply.

        Raises:
            OllamaError: a field has a type that Ollama does not send, or it is the last object and there was no answer.
        """
        place = part.get("message") if self._request.reply is ChatReply else part
        if isinstance(place, dict):
            for key in (*_TEXTS, *_LISTS):
                if key in place and place[key] is None:  # null counts as absent
                    del place[key]
            if self._request.reply in {GenerateReply, ChatReply}:
                self._split(place, last=part.get("done") is True)
        reply = validated(self._request, part, host=self._host)
        if isinstance(reply, GenerateReply | ChatReply):
            self._answered = self._answered or _is_answer(reply)
            if reply.done and not self._answered:
                check_answered(self._request, reply, host=self._host)
        return reply

    def _split(self, place: dict[str, Any], *, last: bool) -> None:
        key = "content" if self._request.reply is ChatReply else "response"
        text = place.get(key, "")
        if not isinstance(text, str):
            raise _odd_field(key, self._request, self._host)
        thought, answer = self._splitter.feed(text)
        if last:
            held_thought, held_answer = self._splitter.end()
            thought, answer = thought + held_thought, answer + held_answer
        if answer != text:
            place[key] = answer
        if thought:
            before = place.get("thinking", "")
            if not isinstance(before, str):
                raise _odd_field("thinking", self._request, self._host)
            place["thinking"] = before + thought


def validated(request: Request[ReplyT], part: dict[str, Any], *, host: str) -> ReplyT:
    """Validate a JSON object as a reply.

    Raises:
        OllamaError: a field has a type that Ollama does not send.
    """
    kind: type[Reply] = request.reply
    try:
        reply = kind.model_validate(part)
    except ValidationError as error:
        raise _odd(explain(kind, error), request, host) from None
    except Exception as error:  # other programs send anything, and a validator may fail in any way
        raise _odd(f"reading it ends in {type(error).__name__}", request, host) from None
    return reply.from_server(host)  # type: ignore[return-value]  # a request's reply class is its ReplyT


def _odd_field(name: str, request: Request[Any], host: str) -> OllamaError:
    return _odd(f"{name} is of another type", request, host)


def _odd(why: str, request: Request[Any], host: str) -> OllamaError:
    """Return the error for a JSON object that Ollama would not send."""
    if request.streamed or request.needs_model:
        return IncompleteReplyError(f"the answer holds what Ollama does not send: {why}", **_about(request, host))
    return NotOllamaError(f"{request.target} answers with JSON that is not Ollama's: {why}", **_about(request, host))


def _about(request: Request[Any], host: str) -> dict[str, Any]:
    return {"host": host, "model": model_of(request)}


def check_answered(request: Request[Any], reply: GenerateReply | ChatReply, *, host: str) -> None:
    """Check that a model has answered: with a text, thinking, a tool call, or a reason to end.

    A server that only loaded or unloaded the model replies ``done`` as well, which is what an empty request is for.

    Raises:
        IncompleteReplyError: there is no answer.
    """
    asked = request.messages if isinstance(request, ChatRequest) else _question(request)
    if not asked or _is_answer(reply) or reply.done_reason in {"stop", "length"}:
        return
    why = f"done_reason is {reply.done_reason!r}" if reply.done_reason in {"load", "unload"} else "it gives no reason"
    raise IncompleteReplyError(
        f"the server is done, and the model has answered nothing ({why})", **_about(request, host)
    )


def _question(request: Request[Any]) -> object:
    return isinstance(request, GenerateRequest) and (request.prompt or request.suffix or request.images)


def _is_answer(reply: GenerateReply | ChatReply) -> bool:
    return bool(reply.text or reply.thinking or reply.tool_calls)


def _check_vectors(request: EmbedRequest, reply: EmbedReply, *, host: str) -> None:
    def reject(what: str) -> RejectedReplyError:
        return RejectedReplyError(what, host=host, model=request.model)

    if len(reply.embeddings) != len(request.input):
        # The server answers a single empty text as a request to load the model: no vector is missing then.
        if not reply.embeddings and not any(request.input):
            return
        raise reject(f"{len(reply.embeddings)} vectors came for {len(request.input)} texts")
    sizes = {len(vector) for vector in reply.embeddings}
    if 0 in sizes:
        raise reject("a text got no vector")
    if len(sizes) > 1:
        raise reject("the vectors are not equally long")
    # A sum of each vector is ten times as fast as a check of each number, and is not finite if one of them is not.
    if not all(math.isfinite(sum(vector)) for vector in reply.embeddings):
        raise reject("a vector holds NaN or infinity")


def as_embed_reply(request: EmbedRequest, replies: list[LegacyEmbedReply], *, host: str) -> EmbedReply:
    """Convert the replies of ``/api/embeddings`` to one of ``/api/embed``, with vectors of length 1.

    Raises:
        RejectedReplyError: a vector is missing or broken.
    """
    vectors = [_to_unit(reply.embedding[: request.dimensions]) for reply in replies]
    joined = EmbedReply(model=request.model, embeddings=vectors if request.input else []).from_server(host)
    _check_vectors(request, joined, host=host)
    return joined


def _to_unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector
