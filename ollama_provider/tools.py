"""Tools that a model may call: sent to it as JSON schemas, and called with validated arguments. No network.

The server passes only some keywords of a tool's schema on to the model (``anyOf``, ``type``, ``items``,
``description``, ``enum``, ``properties``, ``required``). It drops all others, ``$ref`` among them (0.33). So the schema
that pydantic generates for a function is reduced to these keywords before it is sent. The arguments of a call are
validated against the full schema.
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

#: The keywords of a property's schema that the server passes on to the model.
KEYWORDS = ("anyOf", "type", "items", "description", "enum", "properties", "required")

_NAME = re.compile(r"[\w.-]{1,64}")
_SECTION = re.compile(
    r"^\s*(Args|Arguments|Parameters|Returns|Yields|Raises|Example|Examples|Note|Notes):\s*$", re.MULTILINE
)
_ARGUMENT = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s+(.*)$")
_FIELD = re.compile(r"^\s*:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$", re.MULTILINE)


def shown_name(call: ToolCall) -> str:
    """Return the name of a called tool for logs and errors. The model chose it, so it may be any text."""
    name = call.function.name
    return name if _NAME.fullmatch(name) else "(no name of a tool)"


class ToolError(Exception):
    """A call that could not be made. Its text is sent to the model."""


class FunctionTool:
    """A Python function that a model may call.

    Args:
        function: a plain function or bound method with annotated arguments. The text of its docstring before the first
            section describes it to the model. The docstring may also describe the arguments, in the style of Google or
            Sphinx.

    Attributes:
        definition: the tool as it is sent to the model.

    Raises:
        InvalidRequestError: the function cannot be a tool: it has no name, is ``async`` or has ``*args``, or pydantic
            cannot read one of its annotations, or an annotation contains itself.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = getattr(function, "__name__", "")
        if not name.isidentifier():
            raise InvalidRequestError(f"tools: {function!r} has no name that a model can call; define it with def")
        if inspect.iscoroutinefunction(function):
            raise InvalidRequestError(f"tools: {name} is async; use a plain function")
        description, meanings = _read_docstring(inspect.getdoc(function) or "")
        self._function = function
        self._arguments = _arguments_of(name, function, meanings)
        schema = self._arguments.model_json_schema(by_alias=True)
        plain = _plain(schema, schema.get("$defs", {}), name, ())
        parameters = {"type": "object", "properties": plain.get("properties", {})}
        parameters |= {"required": plain["required"]} if "required" in plain else {}
        self.definition = Tool(function=ToolFunction(name=name, description=description, parameters=parameters))

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """Call the function with the arguments that the model sent.

        Raises:
            ToolError: the arguments are not valid.
            Exception: what the function raises.
        """
        try:
            read = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            raise ToolError(f"the arguments are not valid: {self._explain(error)}") from None
        # Arguments that the model left out get the defaults of the function.
        given = {str(self._arguments.model_fields[key].alias): getattr(read, key) for key in read.model_fields_set}
        return self._function(**given)

    def _explain(self, error: ValidationError) -> str:
        known = ", ".join(self.definition.function.parameters["properties"]) or "none"
        findings = []
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            unknown = fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
            text = f"there is no such argument; the arguments are {known}" if unknown else fault["msg"]
            findings.append(f"{'.'.join(map(str, fault['loc']))}: {text}")
        return "; ".join(findings)


def _arguments_of(name: str, function: Callable[..., Any], meanings: Mapping[str, str]) -> type[BaseModel]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for number, parameter in enumerate(inspect.signature(function).parameters.values()):
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
                raise InvalidRequestError(
                    f"tools: {name} takes {parameter}, which a model cannot pass; declare each argument by name"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            # Fields get generated names, because pydantic refuses some names, such as "schema", "copy" and "_x".
            described: Any = {"description": meanings[parameter.name]} if parameter.name in meanings else {}
            field = Field(default, alias=parameter.name, **described)
            fields[f"p{number}"] = (hints.get(parameter.name, Any), field)
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except (NameError, TypeError, PydanticSchemaGenerationError, PydanticUserError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRequestError(
            f"tools: the annotations of {name} cannot be turned into a JSON schema: {reason}"
        ) from None
    return model


def _plain(schema: Any, definitions: Mapping[str, Any], name: str, inside: tuple[str, ...]) -> dict[str, Any]:
    """Reduce a schema to `KEYWORDS`, with references replaced by what they refer to."""
    if reference := schema.get("$ref"):
        target = reference.rpartition("/")[2]
        if target in inside:
            raise InvalidRequestError(
                f"tools: {name} takes a {target} that contains itself, which the server does not support"
            )
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
    plain = {word: words[word] for word in KEYWORDS if word in words}
    if "format" in words:
        # "date", for instance, tells the model how to write the string. The server would drop the keyword "format".
        plain["description"] = f"{words.get('description', '')} (format: {words['format']})".strip()
    if "anyOf" in plain:
        plain["anyOf"] = [_plain(one, definitions, name, inside) for one in plain["anyOf"]]
    if isinstance(plain.get("items"), dict):
        plain["items"] = _plain(plain["items"], definitions, name, inside)
    if "properties" in plain:
        plain["properties"] = {key: _plain(one, definitions, name, inside) for key, one in plain["properties"].items()}
    return plain


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description of a function, and those of its arguments."""
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
        tools: either Python functions, or schemas (``{"type": "function", "function": {"name": …}}``, or only the
            value of ``function``). Functions are called by `call`; calls of schemas are left to the user of the result.

    Attributes:
        definitions: the tools as they are sent to the model.
        callable: whether the tools are functions.

    Raises:
        InvalidRequestError: a tool is neither a function nor a schema, two have the same name, or one cannot be sent.
    """

    def __init__(self, tools: Iterable[Callable[..., Any] | Mapping[str, Any]]) -> None:
        given = list(tools)
        functions = [FunctionTool(tool) for tool in given if callable(tool)]
        self.callable = bool(functions)
        if functions and len(functions) < len(given):
            raise InvalidRequestError(
                "tools: use functions or schemas, not both: calls of schemas are the result of the task"
            )
        self.definitions = [function.definition for function in functions]
        if not functions:
            self.definitions = [_read_schema(place, tool) for place, tool in enumerate(given)]
        self._functions = {function.definition.function.name: function for function in functions}
        names = Counter(tool.function.name for tool in self.definitions)
        if doubled := [name for name, count in names.items() if count > 1]:
            raise InvalidRequestError(f"tools: several tools have the name {doubled[0]!r}")

    def call(self, call: ToolCall) -> str:
        """Call a function, and return the result as a text for the model.

        Raises:
            ToolError: there is no such tool, or the arguments are not valid.
            Exception: what the function raises.
        """
        tool = self._functions.get(call.function.name)
        if tool is None:
            raise ToolError(f"there is no tool {call.function.name!r}; the tools are {', '.join(self._functions)}")
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
    """The messages of a chat in which a model calls tools until it answers.

    Args:
        messages: the chat so far.
        max_rounds: how many replies with calls the model may send.

    Attributes:
        messages: the messages of the next request.
        rounds: how many replies with calls the model has sent.
        calls: number of calls of each tool.
    """

    def __init__(self, messages: Sequence[Message], *, max_rounds: int) -> None:
        self.messages = list(messages)
        self.rounds = 0
        self.calls: Counter[str] = Counter()
        self._max_rounds = max_rounds

    def add_reply(self, reply: ChatReply) -> list[ToolCall]:
        """Add the model's message to the chat.

        Returns:
            The calls, in their order. Pass the result of each to `add_result`. Empty if the message is the answer.

        Raises:
            ToolLoopError: the model still calls tools after *max_rounds* rounds.
        """
        calls = reply.tool_calls or []
        if not calls:
            return []
        self.calls.update(map(shown_name, calls))
        if self.rounds == self._max_rounds:
            counts = ", ".join(f"{name} {count} time{'s' * (count > 1)}" for name, count in self.calls.items())
            raise ToolLoopError(f"the model still calls tools after {self.rounds} rounds ({counts})", model=reply.model)
        self.rounds += 1
        self.messages.append(reply.message)
        return calls

    def add_result(self, call: ToolCall, content: str) -> None:
        """Add the result of a call to the chat."""
        self.messages.append(Message(role="tool", content=content, tool_name=call.function.name, tool_call_id=call.id))
