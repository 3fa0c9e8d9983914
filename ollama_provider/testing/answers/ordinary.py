"""The answer when no script gives another one. It is useful where possible, and names the stand-in as its author."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ollama_provider.testing.answers import json_schema
from ollama_provider.testing.answers.summaries import asks_for_summary, summarise
from ollama_provider.testing.go.encoding import Json, dumps

_FIRST_WORDS = re.compile(r"\s*(\S+(?:\s+\S+){0,7})")


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The input of the pretended model.

    Attributes:
        model: Its name, as in the request.
        prompt: The prompt, or the last user message.
        system: The system message.
        format: None, `"json"` or a JSON schema.
        tools: The tools that the model may call.
        after_tool: Content of the last message if it is the result of a tool, else None.
    """

    model: str
    prompt: str
    system: str = ""
    format: Json = None
    tools: Sequence[Mapping[str, Json]] = ()
    after_tool: str | None = None


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """The output of the pretended model.

    Attributes:
        text: The answer.
        thinking: The thinking before it, for a model that thinks.
        tool_calls: Name and arguments of each call.
    """

    text: str
    thinking: str = ""
    tool_calls: tuple[tuple[str, Mapping[str, Json]], ...] = field(default=())


def ordinary_answer(model_input: ModelInput) -> ModelOutput:
    """Answer the input: JSON for a format, a call of a tool that the prompt mentions, else text.

    Raises:
        json_schema.InvalidSchemaError: The format is an invalid schema.
    """
    thinking = "The stand-in for Ollama only pretends to think."
    if isinstance(model_input.format, Mapping):
        return ModelOutput(dumps(json_schema.instance(model_input.format, model_input.prompt)), thinking)
    if model_input.format == "json":
        return ModelOutput(
            dumps({"stand_in": True, "model": model_input.model, "answer": _answer_text(model_input)}), thinking
        )
    if model_input.after_tool is None and (call := _tool_call(model_input)) is not None:
        return ModelOutput("", thinking, (call,))
    return ModelOutput(_answer_text(model_input), thinking)


def _answer_text(model_input: ModelInput) -> str:
    if model_input.after_tool is not None:
        return f"The stand-in for Ollama got this from the tool: {model_input.after_tool[:500]}"
    if (asks_for_summary(model_input.prompt) or asks_for_summary(model_input.system)) and (
        summary := summarise(model_input.prompt)
    ):
        return summary
    beginning = _FIRST_WORDS.match(model_input.prompt)
    words = len(model_input.prompt.split())
    return (
        f"This is the stand-in for Ollama, not {model_input.model}. "
        f'It read {words} word{"" if words == 1 else "s"}, beginning with "{beginning[1] if beginning else ""}".'
    )


def _tool_call(model_input: ModelInput) -> tuple[str, Mapping[str, Json]] | None:
    folded = model_input.prompt.lower()
    for tool in model_input.tools:
        function = tool.get("function") or {}
        name = function.get("name") or ""
        if name and (name.lower() in folded or name.lower().replace("_", " ") in folded):
            return name, _arguments(function.get("parameters") or {}, model_input.prompt)
    return None


def _arguments(parameters: Mapping[str, Json], prompt: str) -> Mapping[str, Json]:
    try:
        arguments = json_schema.instance({**parameters, "type": "object"}, prompt)
    except json_schema.InvalidSchemaError:
        # The server makes no grammar of a tool's parameters, so it accepts an invalid schema.
        return {}
    return arguments if isinstance(arguments, Mapping) else {}
