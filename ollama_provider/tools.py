"""Tools that a model may call: offered as JSON schemas, called with checked arguments. Decided without waiting.

The server keeps few words of a tool's schema (``anyOf``, ``type``, ``items``, ``description``, ``enum``,
``properties``, ``required``; others, ``$ref`` among them, are dropped on the way to the model, 0.33). So what pydantic
says about a function is rewritten in these words before it is offered, and checked in full when the model calls.
"""

import inspect
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import PydanticSerializationError

from ollama_provider.api.errors import InvalidRequestError, ToolLoopError
from ollama_provider.api.schemas import ChatReply, Message, Tool, ToolCall, ToolFunction
from ollama_provider.api.schemas.base import explain

#: What the server keeps of a property's schema.
KEPT = ("anyOf", "type", "items", "description", "enum", "properties", "required")

_SECTION = re.compile(
    r"^\s*(Args|Arguments|Parameters|Returns|Yields|Raises|Example|Examples|Note|Notes):\s*$", re.MULTILINE
)
_ARGUMENT = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s+(.*)$")
_FIELD = re.compile(r"^\s*:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$", re.MULTILINE)


class ToolError(Exception):
    """A call that did not work, in words for the model."""


class FunctionTool:
    """A Python function that a model may call.

    Args:
        function: a plain function or bound method with annotated arguments. Its docstring tells the model what it does
            (all before the first section) and, in Google's or Sphinx' style, what each argument means.

    Attributes:
        offer: what is sent to the model.

    Raises:
        InvalidRequestError: it cannot be offered: no name, ``async``, ``*args``, an annotation that pydantic cannot
            read or that contains itself.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = getattr(function, "__name__", "")
        if not name.isidentifier():
            raise InvalidRequestError(f"tools: {function!r} has no name that a model could call; use a def")
        if inspect.iscoroutinefunction(function):
            raise InvalidRequestError(f"tools: {name} is async; give a plain function")
        about, meanings = _read_docstring(inspect.getdoc(function) or "")
        self._function = function
        self._arguments = _arguments_of(name, function, meanings)
        schema = self._arguments.model_json_schema(by_alias=True)
        plain = _plain(schema, schema.get("$defs", {}), name, ())
        parameters = {"type": "object", "properties": plain.get("properties", {})}
        parameters |= {"required": plain["required"]} if "required" in plain else {}
        self.offer = Tool(function=ToolFunction(name=name, description=about, parameters=parameters))

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """Call the function with what a model gave.

        Raises:
            ToolError: the arguments do not fit.
            Exception: what the function raises.
        """
        try:
            read = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            raise ToolError(f"the arguments do not fit: {self._explain(error)}") from None
        # What the model left out is left to the function's own defaults.
        given = {str(self._arguments.model_fields[key].alias): getattr(read, key) for key in read.model_fields_set}
        return self._function(**given)

    def _explain(self, error: ValidationError) -> str:
        known = ", ".join(self.offer.function.parameters["properties"]) or "none"
        findings = []
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            unknown = fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
            told = f"there is no such argument; there are {known}" if unknown else fault["msg"]
            findings.append(f"{'.'.join(map(str, fault['loc']))}: {told}")
        return "; ".join(findings)


def _arguments_of(name: str, function: Callable[..., Any], meanings: Mapping[str, str]) -> type[BaseModel]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for number, parameter in enumerate(inspect.signature(function).parameters.values()):
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
                raise InvalidRequestError(
                    f"tools: {name} takes {parameter}, which a model cannot give; name each argument"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            # Under a name of our own: "schema", "copy" and "_x" are taken or refused as names of fields.
            described: Any = {"description": meanings[parameter.name]} if parameter.name in meanings else {}
            field = Field(default, alias=parameter.name, **described)
            fields[f"p{number}"] = (hints.get(parameter.name, Any), field)
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except (NameError, TypeError, PydanticSchemaGenerationError, PydanticUserError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRequestError(f"tools: the annotations of {name} cannot be offered to a model: {reason}") from None
    return model


def _plain(schema: Any, definitions: Mapping[str, Any], name: str, inside: tuple[str, ...]) -> dict[str, Any]:
    """Say a schema in the words that the server keeps, with references written out."""
    if reference := schema.get("$ref"):
        target = reference.rpartition("/")[2]
        if target in inside:
            raise InvalidRequestError(f"tools: {name} takes a {target} that contains itself, which cannot be offered")
        return _plain(
            {**definitions[target], **{k: v for k, v in schema.items() if k != "$ref"}},
            definitions,
            name,
            (*inside, target),
        )
    if len(schema.get("allOf", ())) == 1:
        return _plain(
            {**schema["allOf"][0], **{k: v for k, v in schema.items() if k != "allOf"}}, definitions, name, inside
        )
    words = dict(schema)
    if "const" in words:
        words["enum"] = [words["const"]]
    if "oneOf" in words:
        words["anyOf"] = words["oneOf"]
    plain = {word: words[word] for word in KEPT if word in words}
    if "format" in words:
        # "date" says how to write the string; as a word of its own it would be dropped.
        plain["description"] = f"{words.get('description', '')} (format: {words['format']})".strip()
    if "anyOf" in plain:
        plain["anyOf"] = [_plain(one, definitions, name, inside) for one in plain["anyOf"]]
    if isinstance(plain.get("items"), dict):
        plain["items"] = _plain(plain["items"], definitions, name, inside)
    if "properties" in plain:
        plain["properties"] = {key: _plain(one, definitions, name, inside) for key, one in plain["properties"].items()}
    return plain


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return what a function does, and what its arguments mean."""
    first = _SECTION.search(text)
    about = text[: first.start()] if first else text
    meanings = {field[1]: field[2].strip() for field in _FIELD.finditer(about)}
    about = _FIELD.sub("", about).strip()
    current = ""
    for line in _arguments_section(text).splitlines():
        if match := _ARGUMENT.match(line):
            current = match[1]
            meanings[current] = match[2].strip()
        elif current and line.strip():
            meanings[current] += " " + line.strip()
    return about, meanings


def _arguments_section(text: str) -> str:
    for section in _SECTION.finditer(text):
        if section[1] in {"Args", "Arguments", "Parameters"}:
            following = _SECTION.search(text, section.end())
            return inspect.cleandoc(text[section.end() : following.start() if following else None])
    return ""


class Toolbox:
    """The tools of one chat.

    Args:
        tools: Python functions, to be called here; or schemas (``{"type": "function", "function": {"name": …}}``, or
            only what stands in ``function``), whose calls are for somebody else to carry out. Not both.

    Attributes:
        offered: what is sent to the model.
        callable: they are functions.

    Raises:
        InvalidRequestError: a tool is neither, has the name of another, or cannot be offered.
    """

    def __init__(self, tools: Iterable[Callable[..., Any] | Mapping[str, Any]]) -> None:
        given = list(tools)
        functions = [FunctionTool(tool) for tool in given if callable(tool)]
        self.callable = bool(functions)
        if functions and len(functions) < len(given):
            raise InvalidRequestError(
                "tools: give functions or schemas, not both: calls of a schema are the task's result"
            )
        self.offered = [function.offer for function in functions]
        if not functions:
            self.offered = [_read_schema(place, tool) for place, tool in enumerate(given)]
        self._functions = {function.offer.function.name: function for function in functions}
        names = Counter(tool.function.name for tool in self.offered)
        if doubled := [name for name, count in names.items() if count > 1]:
            raise InvalidRequestError(f"tools: there are several of the name {doubled[0]!r}")

    def call(self, call: ToolCall) -> str:
        """Carry out one call; return what the model is told.

        Raises:
            ToolError: the tool was not offered, or the arguments do not fit.
            Exception: what the function raises.
        """
        tool = self._functions.get(call.function.name)
        if tool is None:
            raise ToolError(f"there is no tool {call.function.name!r}; there are {', '.join(self._functions)}")
        return _as_text(tool(call.function.arguments))


def _read_schema(place: int, tool: Any) -> Tool:
    if not isinstance(tool, Mapping):
        raise InvalidRequestError(
            f"tools.{place}: a function or a schema (a dict) is needed, not {type(tool).__name__}"
        )
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not function.get("name"):
        raise InvalidRequestError(f"tools.{place}: the schema has no name")
    try:
        return Tool(function=ToolFunction(**function))
    except ValidationError as error:
        raise InvalidRequestError(f"tools.{place}: {explain(ToolFunction, error)}") from None


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return TypeAdapter(Any).dump_json(value).decode()
    except (PydanticSerializationError, UnicodeDecodeError):
        return str(value)


class ToolChat:
    """A chat in which a model calls tools until it has an answer.

    Args:
        messages: the chat so far.
        max_rounds: how often the model may answer with calls.

    Attributes:
        messages: to be sent next.
        rounds: how often the model has answered with calls.
        calls: how often each tool was called.
    """

    def __init__(self, messages: Sequence[Message], *, max_rounds: int) -> None:
        self.messages = list(messages)
        self.rounds = 0
        self.calls: Counter[str] = Counter()
        self._max_rounds = max_rounds

    def hear(self, reply: ChatReply) -> list[ToolCall]:
        """Take the model's message.

        Returns:
            The calls to carry out and to `tell` about, in their order; none: the message is the answer.

        Raises:
            ToolLoopError: it still calls tools after the last round.
        """
        calls = reply.tool_calls or []
        if not calls:
            return []
        self.calls.update(call.function.name for call in calls)
        if self.rounds == self._max_rounds:
            told = ", ".join(f"{name} {count} time{'s' * (count > 1)}" for name, count in self.calls.items())
            raise ToolLoopError(f"the model still calls tools after {self.rounds} rounds ({told})", model=reply.model)
        self.rounds += 1
        self.messages.append(reply.message)
        return calls

    def tell(self, call: ToolCall, content: str) -> None:
        """Give the model the outcome of a call."""
        self.messages.append(Message(role="tool", content=content, tool_name=call.function.name, tool_call_id=call.id))
