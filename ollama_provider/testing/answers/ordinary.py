"""What the stand-in says when no script says otherwise: something useful where possible, and honest in any case."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ollama_provider.testing.answers import json_schema
from ollama_provider.testing.answers.summaries import asks_for_summary, summarise
from ollama_provider.testing.go.encoding import Json, dumps

_BEGINNING = re.compile(r"\s*(\S+(?:\s+\S+){0,7})")


@dataclass(frozen=True, slots=True)
class Question:
    """What the model is asked.

    Attributes:
        model: As the request names it.
        prompt: The prompt, or the last user message.
        system: The system message.
        format: None, `"json"` or a JSON schema.
        tools: The tools on offer.
        after_tool: The content of the tool message that came last, None if there was none.
    """

    model: str
    prompt: str
    system: str = ""
    format: Json = None
    tools: Sequence[Mapping[str, Json]] = ()
    after_tool: str | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """What the model says.

    Attributes:
        text: The answer.
        thinking: The thoughts before it, if it thinks.
        tool_calls: Name and arguments of each call.
    """

    text: str
    thinking: str = ""
    tool_calls: tuple[tuple[str, Mapping[str, Json]], ...] = field(default=())


def say(question: Question) -> Speech:
    """The ordinary answer.

    Raises:
        json_schema.InvalidSchemaError: The format is a schema that is none.
    """
    thinking = "The stand-in for Ollama only pretends to think."
    if isinstance(question.format, Mapping):
        return Speech(dumps(json_schema.instance(question.format, question.prompt)), thinking)
    if question.format == "json":
        return Speech(dumps({"stand_in": True, "model": question.model, "answer": _text(question)}), thinking)
    if question.after_tool is None and (call := _tool_call(question)) is not None:
        return Speech("", thinking, (call,))
    return Speech(_text(question), thinking)


def _text(question: Question) -> str:
    if question.after_tool is not None:
        return f"The stand-in for Ollama got this from the tool: {question.after_tool[:500]}"
    if (asks_for_summary(question.prompt) or asks_for_summary(question.system)) and (
        summary := summarise(question.prompt)
    ):
        return summary
    beginning = _BEGINNING.match(question.prompt)
    words = len(question.prompt.split())
    return (
        f"This is the stand-in for Ollama, not {question.model}. "
        f'It read {words} word{"" if words == 1 else "s"}, beginning with "{beginning[1] if beginning else ""}".'
    )


def _tool_call(question: Question) -> tuple[str, Mapping[str, Json]] | None:
    folded = question.prompt.lower()
    for tool in question.tools:
        function = tool.get("function") or {}
        name = function.get("name") or ""
        if name and (name.lower() in folded or name.lower().replace("_", " ") in folded):
            return name, _arguments(function.get("parameters") or {}, question.prompt)
    return None


def _arguments(parameters: Mapping[str, Json], prompt: str) -> Mapping[str, Json]:
    try:
        arguments = json_schema.instance({**parameters, "type": "object"}, prompt)
    except json_schema.InvalidSchemaError:
        # No grammar is made of it, so the server accepts it.
        return {}
    return arguments if isinstance(arguments, Mapping) else {}
