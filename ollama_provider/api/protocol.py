"""Request to message, message to reply or error, bytes to lines. No network, no clock.

A status of 200 is not success: an inference succeeded when its last object says ``done: true``, a pull when it says
``status: "success"``; an ``error`` may come in any line.

Whatever comes, and of whatever type, the only exception that leaves this module is an `OllamaError`: a field of another
type than Ollama's is a fault of that answer and of no other (`IncompleteReplyError`), or, where no model has answered
(tags, show, version, ps), says that it is not Ollama (`NotOllamaError`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Generic

from pydantic import ValidationError

from ollama_provider.api.classify import object_error, status_error
from ollama_provider.api.errors import (
    IncompleteReplyError,
    InvalidRequestError,
    NotOllamaError,
    OllamaError,
    RejectedReplyError,
)
from ollama_provider.api.quoting import private_texts, quote
from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    EmbedReply,
    EmbedRequest,
    GenerateReply,
    GenerateRequest,
    LegacyEmbedReply,
    ProgressReply,
    Reply,
    ReplyT,
    Request,
)
from ollama_provider.api.schemas.base import explain
from ollama_provider.api.settings import Settings
from ollama_provider.api.thoughts import ThoughtSplitter, split_thought

#: How much of the body of a refusal is kept.
LONGEST_REFUSAL = 64 * 1024

#: Fields that come in pieces.
_TEXTS, _LISTS = ("response", "content", "thinking"), ("tool_calls", "logprobs")


def encode(request: Request[Any]) -> bytes | Iterable[bytes] | None:
    """Return the body of the message, or None where it has none.

    Raises:
        InvalidRequestError: a text holds half a surrogate pair, which no UTF-8 can say.
    """
    try:
        return request.body()
    except (UnicodeEncodeError, ValueError):
        # The exception would quote the text, and with it the prompt.
        raise InvalidRequestError(
            "a text of the request holds a lone surrogate (a broken emoji, or bytes decoded with 'surrogateescape'), "
            "which cannot be sent. Repair it first, as in text.encode('utf-8', 'replace').decode()",
            model=model_of(request),
        ) from None


def model_of(request: Request[Any]) -> str | None:
    """Return the name of the model that a request is about, if it is about one."""
    model: str | None = getattr(request, "model", None)
    return model


class Lines:
    r"""Bytes in, lines out, cut at ``\n`` alone.

    ``str.splitlines`` would also cut at U+0085 and U+2028, which stand unescaped in answers.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the lines that are complete now; blank ones are dropped."""
        *lines, rest = data.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest + lines[0])
            self._rest.clear()
        self._rest += rest
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """Return what stands behind the last line break: an answer that is no stream has none."""
        rest = bytes(self._rest)
        self._rest.clear()
        return [rest] if rest.strip() else []


class Decoder:
    """The bytes of one answer in, its JSON objects out.

    Args:
        request: what is answered.
        status, headers: of the answer; headers are found by lower-case names.
        settings: of the connection: its address for errors, its secrets to be left out of them.
        now: the time (with a zone), for ``Retry-After`` as a date.
    """

    def __init__(
        self, request: Request[Any], status: int, headers: Mapping[str, str], *, settings: Settings, now: datetime
    ) -> None:
        self._request = request
        self._status = status
        self._headers = headers
        self._settings = settings
        self._host = settings.base_url
        self._now = now
        self._lines = Lines()
        self._refused = not 200 <= status < 300
        self._body = bytearray()
        self._last: dict[str, Any] | None = None

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take bytes, give the objects that are complete now.

        Raises:
            OllamaError: one of them is an error, or no JSON object; those before it are given first.
        """
        if self._request.streamed and not self._refused:
            for line in self._lines.feed(data):
                yield self._read(line)
            return
        self._body += data
        # What refuses us need not be Ollama, and its page need not end.
        if self._refused and len(self._body) > LONGEST_REFUSAL:
            yield from self.end()

    @property
    def complete(self) -> bool:
        """The object that proves success has come."""
        # A pull's objects have a status and no done; an inference's the other way round.
        last = self._last
        return last is not None and (last.get("done") is True or last.get("status") == "success")

    def end(self) -> Iterator[dict[str, Any]]:
        """Give the last objects.

        Raises:
            OllamaError: the answer says no, or it is not complete.
        """
        body = bytes(self._body)
        if self._refused:
            raise self._refusal(body)
        if self._request.streamed:
            for line in self._lines.end():
                yield self._read(line)
        elif body.strip():
            yield self._read(body)
        if self._last is None and self._request.answered:
            raise self._error(IncompleteReplyError, "the answer is empty")
        if self._request.streamed and not self.complete:
            raise self._error(IncompleteReplyError, "the answer ended before its last object")

    def _refusal(self, body: bytes) -> OllamaError:
        return status_error(
            self._status,
            self._headers,
            body,
            path=self._request.target,
            host=self._host,
            model=model_of(self._request),
            now=self._now,
            private=private_texts(self._request, self._settings),
        )

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            found = self._request.decode(line)
        except Exception:  # a request may have a decoder of its own, and what comes may be anything
            raise self._not_json(line) from None
        if not isinstance(found, dict):
            if self._last is not None:
                raise self._error(IncompleteReplyError, "the answer holds a line that is no JSON object")
            raise self._error(NotOllamaError, f"{self._request.target} answers with JSON that is not Ollama's")
        if "object" in found or "error" in found:
            self._check_words(found)
        if self._request.reply is ProgressReply:
            validated(self._request, found, host=self._host)  # here, since progress is counted line by line
        self._last = found
        return found

    def _check_words(self, found: dict[str, Any]) -> None:
        error = object_error(
            found,
            path=self._request.target,
            host=self._host,
            model=model_of(self._request),
            private=private_texts(self._request, self._settings),
        )
        if error is not None:
            raise error

    def _not_json(self, line: bytes) -> OllamaError:
        """Tell a cut or damaged answer of Ollama from an answer of something else."""
        if self._last is None and not line.lstrip().startswith(b"{"):
            kind = quote(self._headers.get("content-type", "").partition(";")[0].strip()[:50])
            what = f"{self._request.target} answers with {kind or 'something'} that is not JSON"
            return self._error(NotOllamaError, what)
        return self._error(IncompleteReplyError, "the answer holds a line that is cut, damaged or not JSON")

    def _error(self, kind: type[OllamaError], what: str) -> OllamaError:
        return kind(what, host=self._host, model=model_of(self._request))


class Collector(Generic[ReplyT]):
    """Joins the objects of a streamed answer to one reply, which is validated once, at the end.

    Texts and lists that come in pieces (answer, thinking, tool calls, log-probabilities) are put together; of the rest
    the last value counts. A thought in the answer is split off.
    """

    def __init__(self, request: Request[ReplyT], *, host: str) -> None:
        self._request = request
        self._host = host
        self._merged: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}

    def add(self, part: dict[str, Any]) -> None:
        """Take one object of the answer.

        Raises:
            OllamaError: a field is not what Ollama sends.
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
            OllamaError: its fields are not what Ollama sends, or it holds no answer.
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
            thought, joined[text_key] = split_thought(text, self._request, has_thought=bool(before))
            if thought:
                joined[thought_key] = f"{before}\n{thought}" if before else thought


class Pieces(Generic[ReplyT]):
    """Makes of each object of a streamed answer a reply, for those who read it while it comes.

    The replies, joined, are what `Collector` would have made of the same objects; see `ThoughtSplitter` for the one
    exception.

    Args:
        request: what is answered.
        host: base URL, for errors.
    """

    def __init__(self, request: Request[ReplyT], *, host: str) -> None:
        self._request = request
        self._host = host
        self._splitter = ThoughtSplitter()
        self._answered = False

    def read(self, part: dict[str, Any]) -> ReplyT:
        """Return the reply that an object is.

        Raises:
            OllamaError: its fields are not what Ollama sends, or it is the last one and there was no answer.
        """
        place = part.get("message") if self._request.reply is ChatReply else part
        if isinstance(place, dict):
            for key in (*_TEXTS, *_LISTS):
                if key in place and place[key] is None:  # as good as absent
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
    """Return the reply that a JSON object is.

    Raises:
        OllamaError: its fields are not what Ollama sends.
    """
    kind: type[Reply] = request.reply
    try:
        return kind.model_validate(part)  # type: ignore[return-value]  # a request's reply class is its ReplyT
    except ValidationError as error:
        raise _odd(explain(kind, error), request, host) from None
    except Exception as error:  # the data is another program's, and so may be what it does to a validator
        raise _odd(f"reading it ends in {type(error).__name__}", request, host) from None


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
    """Check that a model has answered what it was asked: there is a text, a thought or a tool call, or a reason to end.

    A server that only loaded or unloaded the model says ``done`` as well. (A request with nothing in it asks for just
    that.)

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
        # An empty text alone is answered as a mere load: nothing is missing then.
        if not reply.embeddings and not any(request.input):
            return
        raise reject(f"{len(reply.embeddings)} vectors came for {len(request.input)} texts")
    sizes = {len(vector) for vector in reply.embeddings}
    if 0 in sizes:
        raise reject("a text got no vector")
    if len(sizes) > 1:
        raise reject("the vectors are not equally long")
    # One sum a vector is ten times as quick as a look at each number, and keeps what is not finite.
    if not all(math.isfinite(sum(vector)) for vector in reply.embeddings):
        raise reject("a vector holds NaN or infinity")


def as_embed_reply(request: EmbedRequest, replies: list[LegacyEmbedReply], *, host: str) -> EmbedReply:
    """Make of the answers of ``/api/embeddings`` what ``/api/embed`` would have said: vectors of length 1.

    Raises:
        RejectedReplyError: a vector is missing or broken.
    """
    vectors = [_to_unit(reply.embedding[: request.dimensions]) for reply in replies]
    joined = EmbedReply(model=request.model, embeddings=vectors if request.input else [])
    _check_vectors(request, joined, host=host)
    return joined


def _to_unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector
