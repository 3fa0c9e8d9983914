"""Splits thinking off an answer that has it between ``<think>`` and ``</think>``.

Ollama itself does so for models whose template supports thinking. Other models (many GGUF files from elsewhere) and
servers before 0.9 leave the tags in the answer: a pair, an empty pair, or the closing tag alone if the template ends
with the opening one. A tag that an answer merely mentions must stay, so:

* an answer that begins with ``<think>`` is thinking up to ``</think>`` (or to its end, if there is no closing tag);
* without the opening tag, the text before ``</think>`` is thinking if that tag is a line of its own, outside of a
  code block, with an answer behind it; or, wherever the tag stands, if the prompt ended in ``<think>``, or the answer
  was to be JSON and does not begin like JSON;
* and only if the server has not split off any thinking itself.
"""

import re
from typing import Any

from ollama_provider.api.schemas import ChatRequest, GenerateRequest, Request

_OPENING, _CLOSING = "<think>", "</think>"
_CLOSING_LINE = re.compile(r"^[ \t]*</think>[ \t]*$", re.MULTILINE)
_FENCE = "```"


def split_thinking(text: str, request: Request[Any], *, has_thought: bool) -> tuple[str, str]:
    """Return thinking and answer of a text; the thinking is empty if there is none.

    Args:
        text: of the whole answer.
        request: what was asked.
        has_thought: the server has sent thinking apart from the text.
    """
    if _CLOSING not in text and not text.lstrip().startswith(_OPENING):
        return "", text
    if text.lstrip().startswith(_OPENING):
        thought, _, answer = text.lstrip().removeprefix(_OPENING).partition(_CLOSING)
        return thought.strip(), answer.lstrip()
    place = None if has_thought else _closing(text, request)
    if place is None:
        return "", text
    start, end = place
    return text[:start].strip(), text[end:].lstrip()


def _closing(text: str, request: Request[Any]) -> tuple[int, int] | None:
    """Return start and end of a closing tag without an opening one; None if it is no end of thinking."""
    first = text.index(_CLOSING)
    if _OPENING in text[:first]:
        return None
    if _ends_in_thought(request) or (_wants_json(request) and not text.lstrip().startswith(("{", "[", '"'))):
        return first, first + len(_CLOSING)
    line = _CLOSING_LINE.search(text)
    if line is None or line.start() > first or text[:first].count(_FENCE) % 2 or not text[line.end() :].strip():
        return None
    return line.span()


def _wants_json(request: Request[Any]) -> bool:
    return isinstance(request, GenerateRequest | ChatRequest) and request.format is not None


def _ends_in_thought(request: Request[Any]) -> bool:
    """Return whether the model was given the opening tag: by a raw prompt, a template or the last message."""
    match request:
        case GenerateRequest():
            ends = [request.prompt, request.template or ""]
        case ChatRequest():
            ends = [message.content for message in request.messages[-1:]]
        case _:
            ends = []
    return any(end.rstrip().endswith(_OPENING) for end in ends)


class ThinkingSplitter:
    """Splits thinking off an answer that arrives in pieces, as far as possible.

    Thinking without its opening tag is recognised at its closing tag only, when its pieces have been passed on already.
    In a stream it stays in the answer.
    """

    def __init__(self) -> None:
        self._held = ""
        self._take = self._begin

    def feed(self, piece: str) -> tuple[str, str]:
        """Add a piece of the text; return what it adds to thinking and answer.

        Text that may be a part of a tag is held back until the next piece.
        """
        return self._take(piece)

    def end(self) -> tuple[str, str]:
        """Return what was held back."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._take == self._think else ("", held)

    def _begin(self, piece: str) -> tuple[str, str]:
        text = self._held + piece
        start = text.lstrip()
        if len(start) < len(_OPENING) and _OPENING.startswith(start):
            self._held = text
            return "", ""
        self._held = ""
        if not start.startswith(_OPENING):
            self._take = self._pass_on
            return "", text
        self._take = self._open
        return self._open(start.removeprefix(_OPENING))

    def _open(self, piece: str) -> tuple[str, str]:
        if not piece.lstrip():
            return "", ""
        self._take = self._think
        return self._think(piece.lstrip())

    def _think(self, piece: str) -> tuple[str, str]:
        thought, closing, rest = (self._held + piece).partition(_CLOSING)
        if closing:
            self._held, self._take = "", self._close
            return thought.rstrip(), self._close(rest)[1]
        sure = thought[: len(thought) - _overlap(thought)].rstrip()
        self._held = thought[len(sure) :]
        return sure, ""

    def _close(self, piece: str) -> tuple[str, str]:
        if piece := piece.lstrip():
            self._take = self._pass_on
        return "", piece

    def _pass_on(self, piece: str) -> tuple[str, str]:
        return "", piece


def _overlap(text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of the closing tag."""
    return next((size for size in range(len(_CLOSING) - 1, 0, -1) if text.endswith(_CLOSING[:size])), 0)
