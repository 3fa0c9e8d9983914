"""What of a server's words an error may repeat: nothing that is ours, and nothing that a terminal obeys.

A server, or what stands before it, may echo the request: the prompt, the password, a header. Control characters would
colour a log, or hide a part of it.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from ollama_provider.api.headers import headers_for
from ollama_provider.api.schemas import ChatRequest, EmbedRequest, GenerateRequest, LegacyEmbedRequest, Request
from ollama_provider.api.settings import Settings

#: Characters of a quote.
LONGEST = 300
#: So many characters that the quote and the prompt have in common are the prompt's.
_ECHO = 16
#: A shorter prompt is cut out as a whole, if it is not so short that it may be part of any sentence.
_SHORTEST = 4
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.?)")
_LINK = re.compile(r"https?://\S*\?\S*")
_CUT = "(cut)"
_PUBLIC_HEADERS = {"accept", "accept-encoding", "content-type", "user-agent"}


def quote(text: str, private: Sequence[str] = ()) -> str:
    """Return a server's text for an error: on one line, shortened, without links that carry keys (``signin_url``).

    Args:
        text: what the server says.
        private: texts of ours that it must not repeat, see `private_texts`.
    """
    plain = _ANSI.sub(" ", text[: 4 * LONGEST])
    plain = "".join(" " if unicodedata.category(mark)[0] in "CZ" else mark for mark in plain)
    plain = _LINK.sub("(link)", " ".join(plain.split()))
    plain = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"
    return _without(plain, [spelling for ours in private for spelling in _spellings(ours)])


def private_texts(request: Request[Any], settings: Settings) -> list[str]:
    """Return what no error may repeat: credentials and headers of the connection, and the texts of a request."""
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


def _spellings(text: str) -> set[str]:
    """Return a text as it may come back: its blanks collapsed, or as it stood in the JSON."""
    plain = " ".join(text.split())
    return {plain, " ".join(json.dumps(text, ensure_ascii=False)[1:-1].split())}


def _without(quoted: str, private: Sequence[str]) -> str:
    """Cut texts, or long pieces of them, out of a quote."""
    for ours in private:
        if _SHORTEST <= len(ours) < _ECHO and ours in quoted:
            quoted = re.sub(rf"(?<!\w){re.escape(ours)}(?!\w)", _CUT, quoted)
    # Joined, since a request may have a thousand texts; by what no quote holds.
    joined = "\0".join(ours for ours in private if len(ours) >= _ECHO)
    found, place = [], 0
    while place < len(quoted):
        size = _shared(quoted, place, joined)
        found.append(_CUT if size else quoted[place])
        place += size or 1
    return "".join(found)


def _shared(quoted: str, place: int, ours: str) -> int:
    """Return how many characters from a place on are also ours; 0 if they are few."""
    size = _ECHO
    if place + size > len(quoted) or quoted[place : place + size] not in ours:
        return 0
    while place + size < len(quoted) and quoted[place : place + size + 1] in ours:
        size += 1
    return size
