"""Request to HTTP body, HTTP answer to JSON objects or an error. No network, no clock.

A status of 200 is not success: an inference succeeded when its last object says ``done: true``, a pull when it says
``status: "success"``; an ``error`` may come in any line.

Whatever the server sends, the only exception that leaves this module and `replies` is an `OllamaError`.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from ollama_provider.api.error_mapping import object_error, status_error
from ollama_provider.api.errors import (
    IncompleteReplyError,
    InvalidRequestError,
    NotOllamaError,
    OllamaError,
)
from ollama_provider.api.pieces import join_pieces
from ollama_provider.api.redaction import private_texts, quote
from ollama_provider.api.replies import validated
from ollama_provider.api.schemas import ProgressReply, Request, model_of
from ollama_provider.api.settings import Settings
from ollama_provider.api.strict_json import read_json

#: How much of the body of a refusal is kept.
LONGEST_REFUSAL = 64 * 1024


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


def _is_object(body: bytes | bytearray) -> bool:
    """Return whether these bytes are a whole JSON object. It says itself where it ends."""
    try:
        return isinstance(read_json(bytes(body)), dict)
    except ValueError:
        return False


class Decoder:
    """The bytes of one answer in, its JSON objects out.

    Args:
        request: what is answered.
        status, headers: of the answer; headers are found by lower-case names.
        settings: of the connection: its address for errors, its secrets to be left out of them.
        now: the time (with a zone), for ``Retry-After`` as a date.
        join: the objects will be joined to one reply anyway, so pieces of text that arrive together may come as one.

    Attributes:
        refused: the status says no.
    """

    def __init__(
        self,
        request: Request[Any],
        status: int,
        headers: Mapping[str, str],
        *,
        settings: Settings,
        now: datetime,
        join: bool = False,
    ) -> None:
        self._request = request
        self._status = status
        self._headers = headers
        self._settings = settings
        self._host = settings.base_url
        self._now = now
        self._join = join
        self._lines = Lines()
        self.refused = not 200 <= status < 300
        self._body = bytearray()
        self._last: dict[str, Any] | None = None

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take bytes, give the objects that are complete now.

        Raises:
            OllamaError: one of them is an error, or no JSON object; those before it are given first.
        """
        if self._request.streamed and not self.refused:
            lines = self._lines.feed(data)
            if self._join:
                joined, lines = join_pieces(self._request.reply, lines)
                if joined is not None:
                    self._last = joined
                    yield joined
            for line in lines:
                yield self._read(line)
            return
        self._body += data
        # What refuses us need not be Ollama, and its page need not end.
        if self.refused and len(self._body) > LONGEST_REFUSAL:
            yield from self.end()

    @property
    def complete(self) -> bool:
        """Whether what has come is enough: the object that proves success, or a status that needs no body."""
        if self.refused:
            return self._status == 429 or self._status > 500  # a proxy's, or Ollama's queue is full
        if not self._request.streamed:
            return not self._request.answered or _is_object(self._body)
        # A pull's objects have a status and no done; an inference's the other way round.
        last = self._last
        return last is not None and (last.get("done") is True or last.get("status") == "success")

    def end(self) -> Iterator[dict[str, Any]]:
        """Give the last objects.

        Raises:
            OllamaError: the answer says no, or it is not complete.
        """
        body = bytes(self._body)
        if self.refused:
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
            private = private_texts(self._request, self._settings)
            kind = quote(self._headers.get("content-type", "").partition(";")[0].strip(), private)[:50]
            what = f"{self._request.target} answers with {kind or 'something'} that is not JSON"
            return self._error(NotOllamaError, what)
        return self._error(IncompleteReplyError, "the answer holds a line that is cut, damaged or not JSON")

    def _error(self, kind: type[OllamaError], what: str) -> OllamaError:
        return kind(what, host=self._host, model=model_of(self._request))
