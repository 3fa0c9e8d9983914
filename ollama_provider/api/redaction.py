"""Redaction of server texts that are quoted in errors: without our prompts and secrets, without control characters.

A server, or a proxy before it, may echo the request: the prompt, the password, a header. Control characters could
colour a log, or hide a part of it.
"""

import base64
import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote_plus

from ollama_provider.api.headers import headers_for
from ollama_provider.api.proxies import proxy_for
from ollama_provider.api.schemas import (
    ChatRequest,
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    LegacyEmbedRequest,
    Message,
    Request,
)
from ollama_provider.api.schemas.base import printable
from ollama_provider.api.settings import Settings

#: Characters of a quoted text.
LONGEST = 300
#: So many consecutive characters of a private text are redacted.
_ECHO = 16
#: A private text shorter than `_ECHO` is redacted as a whole word, unless it is shorter than this.
_SHORTEST = 4
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.?)")
_LINK = re.compile(r"https?://\S*\?\S*")
_CUT = "(cut)"
_PUBLIC_HEADERS = {"accept", "accept-encoding", "content-type", "user-agent"}


def quote(text: str, private: Sequence[str] = ()) -> str:
    """Return a server's text for an error: redacted, on one line, shortened, without links with keys (``signin_url``).

    Args:
        text: what the server sent.
        private: texts to redact, from `private_texts`.
    """
    plain = _ANSI.sub(" ", text[: 4 * LONGEST])
    plain = _LINK.sub("(link)", " ".join(printable(plain).split()))
    redacted = _redact(plain, [spelling for ours in private for spelling in _spellings(ours)])
    return redacted if len(plain) <= LONGEST else f"{redacted}…"


def private_texts(request: Request[Any], settings: Settings) -> list[str]:
    """Return what no error may quote: credentials and headers of the connection, and the texts of a request."""
    secrets = [settings.password.get_secret_value() if settings.password else ""]
    proxy = proxy_for(settings)
    for name, value in (*headers_for(settings), *(proxy.headers.items() if proxy else ())):
        if name not in _PUBLIC_HEADERS:
            secrets += [value, value.partition(" ")[2]]
        if name == "proxy-authorization":
            secrets += [base64.b64decode(value.partition(" ")[2]).decode().partition(":")[2]]
    return [text for text in (*secrets, *_texts(request)) if text.strip()]


def _texts(request: Request[Any]) -> Iterator[str]:
    match request:
        case GenerateRequest():
            yield from (request.prompt, request.system or "", request.suffix or "", request.template or "")
        case ChatRequest():
            yield from _message_texts(request.messages)
        case CreateRequest():
            yield from (request.system or "", request.template or "")
            yield from _message_texts(request.messages or [])
        case EmbedRequest():
            yield from request.input
        case LegacyEmbedRequest():
            yield request.prompt


def _message_texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        yield from (message.content, message.thinking or "")
        for call in message.tool_calls or ():
            yield json.dumps(call.function.arguments, ensure_ascii=False)
            yield from (value for value in call.function.arguments.values() if isinstance(value, str))


def _spellings(text: str) -> set[str]:
    """Return the forms in which a server may echo a text: its blanks collapsed, escaped for JSON, a page or a URL."""
    escaped = (
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        html.escape(text),
        quote_plus(text, errors="replace"),
    )
    return {" ".join(spelling.split()) for spelling in (text, *escaped)}


def _redact(text: str, private: Sequence[str]) -> str:
    """Return the first `LONGEST` characters of a text, without private texts and long pieces of them.

    What is behind those characters is needed to recognise a private text that begins among them.
    """
    words = {
        found.start(): len(ours)
        for ours in private
        if _SHORTEST <= len(ours) < _ECHO and ours in text
        for found in re.finditer(rf"(?<!\w){re.escape(ours)}(?!\w)", text)
    }
    # Joined, since a request may have a thousand texts; by a character that no quoted text has.
    joined = "\0".join(ours for ours in private if len(ours) >= _ECHO)
    found, place = [], 0
    while place < min(len(text), LONGEST):
        size = words.get(place) or _shared(text, place, joined)
        found.append(_CUT if size else text[place])
        place += size or 1
    return "".join(found)


def _shared(quoted: str, place: int, ours: str) -> int:
    """Return how many characters from *place* on stand in *ours*; 0 if they are fewer than `_ECHO`."""
    size = _ECHO
    if place + size > len(quoted) or quoted[place : place + size] not in ours:
        return 0
    while place + size < len(quoted) and quoted[place : place + size + 1] in ours:
        size += 1
    return size
