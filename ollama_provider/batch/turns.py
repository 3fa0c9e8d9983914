"""From a row to the turns of a chat: a Jinja template for each, rendered in the same sandbox as a prompt."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.prompts import EmptyTextError, Prompts

_ROLES = ("system", "user", "assistant")


class Turns:
    """Renders the messages of a chat for many rows, with the methods of `Prompts`.

    Args:
        messages: turns with ``role`` and ``content``; ``content`` is a template as in `Prompts`.

    Raises:
        InputError: a turn has another role or other fields, the last is no user's, or a template is wrong.
    """

    def __init__(self, messages: Sequence[Mapping[str, str]]) -> None:
        for number, message in enumerate(messages):
            if set(message) != {"role", "content"} or message["role"] not in _ROLES:
                raise InputError(
                    f"messages.{number}: a turn has a 'role' ({', '.join(_ROLES)}) and a 'content', nothing else."
                )
        if not messages or messages[-1]["role"] != "user":
            raise InputError("messages: the last turn must be the user's, for the model to answer it.")
        self._turns = [(message["role"], Prompts(message["content"])) for message in messages]

    def check(self, columns: Iterable[str]) -> None:
        """See `Prompts.check`."""
        known = set(columns)
        for _, prompts in self._turns:
            prompts.check(known)

    def render(self, columns: Mapping[str, Any]) -> str:
        """Return the turns of a row, as JSON.

        Raises:
            RenderError: see `Prompts.render`.
            EmptyTextError: the last turn is empty.
        """
        turns = [{"role": role, "content": prompts.render(columns)} for role, prompts in self._turns]
        if not turns[-1]["content"].strip():
            raise EmptyTextError("an empty prompt has no answer")
        return json.dumps(turns, ensure_ascii=False)
