"""Redaction of server texts that are quoted in errors: without our prompts and secrets, without control characters.

A server, or a proxy before it, may echo the request: the prompt, the password, a header. Control characters could
colour a log, or hide a part of it.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from ollama_provider.api.headers import headers_for
from ollama_provider.api.schemas import (
    ChatRequest,
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    LegacyEmbedRequest,
    Request,
)
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
    plain = "".join(" " if unicodedata.category(mark)[0] in "CZ" else mark for mark in plain)
    plain = _LINK.sub("(link)", " ".join(plain.split()))
    plain = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"
    return _redact(plain, [spelling for ours in private for spelling in _spellings(ours)])


def private_texts(request: Request[Any], settings: Settings) -> list[str]:
    """Return what no error may quote: credentials and headers of the connection, and the texts of a request."""
    secrets = [settings.password.get_secret_value() if settings.password else ""]
    for name, value in headers_for(settings):
        if name not in _PUBLIC_HEADERS:
            secrets += [value, value.partition(" ")[2]]
    return [text for text in (*secrets, *_texts(request)) if text.strip()]


def _texts(request: Request[Any]) -> Iterator[str]:
    match request:
        case GenerateRequest():
            yield from (request.prompt, request.system or "", request.suffix or "", request.template or "")
        case ChatRequest():
            for message in request.messages:
                yield from (message.content, message.thinking or "")
        case EmbedRequest():
            yield from request.input
        case LegacyEmbedRequest():
            yield request.prompt
        case CreateRequest():
            yield from (request.system or "", request.template or "")
            for message in request.messages or ():
                yield from (message.content, message.thinking or "")


def _spellings(text: str) -> set[str]:
    """Return the forms in which a server may echo a text: with its blanks collapsed, or escaped as in JSON."""
    plain = " ".join(text.split())
    return {plain, " ".join(json.dumps(text, ensure_ascii=False)[1:-1].split())}


def _redact(quoted: str, private: Sequence[str]) -> str:
    """Redact private texts, and long pieces of them."""
    for ours in private:
        if _SHORTEST <= len(ours) < _ECHO and ours in quoted:
            quoted = re.sub(rf"(?<!\w){re.escape(ours)}(?!\w)", _CUT, quoted)
    # Joined, since a request may have a thousand texts; by a character that no quoted text has.
    joined = "\0".join(ours for ours in private if len(ours) >= _ECHO)
    found, place = [], 0
    while place < len(quoted):
        size = _shared(quoted, place, joined)
        found.append(_CUT if size else quoted[place])
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
