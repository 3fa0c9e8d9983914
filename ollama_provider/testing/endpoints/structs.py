"""The Go structs of request bodies: their fields with types, and the check of a body against them.

A value of the wrong type gives Go's error text.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ollama_provider.testing.go.encoding import BadRequestError, Json, TooLarge, kind

_INFERENCE = {
    "model": "string",
    "stream": "bool",
    "format": "raw",
    "keep_alive": "raw",
    "options": "map[string]interface {}",
    "think": "raw",
    "truncate": "bool",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
    "_debug_render_only": "bool",
}

_TRANSFER = {
    "model": "string",
    "name": "string",
    "insecure": "bool",
    "username": "string",
    "password": "string",
    "stream": "bool",
}

_OPENAI = {
    "model": "string",
    "stream": "bool",
    "stream_options": "openai.StreamOptions",
    "max_tokens": "int",
    "seed": "int",
    "stop": "raw",
    "_debug_render_only": "bool",
}

REQUEST_STRUCTS: dict[str, tuple[str, dict[str, str]]] = {
    "/api/generate": (
        "api.GenerateRequest",
        {
            **_INFERENCE,
            "prompt": "string",
            "suffix": "string",
            "system": "string",
            "template": "string",
            "context": "[]int",
            "raw": "bool",
            "images": "[]api.ImageData",
        },
    ),
    "/api/chat": ("api.ChatRequest", {**_INFERENCE, "messages": "[]api.Message", "tools": "api.Tools"}),
    "/api/embed": (
        "api.EmbedRequest",
        {
            "model": "string",
            "input": "raw",
            "keep_alive": "raw",
            "truncate": "bool",
            "dimensions": "int",
            "options": "map[string]interface {}",
        },
    ),
    "/api/embeddings": (
        "api.EmbeddingRequest",
        {"model": "string", "prompt": "string", "keep_alive": "raw", "options": "map[string]interface {}"},
    ),
    "/api/show": (
        "api.ShowRequest",
        {
            "model": "string",
            "name": "string",
            "system": "string",
            "template": "string",
            "verbose": "bool",
            "options": "map[string]interface {}",
        },
    ),
    "/api/pull": ("api.PullRequest", _TRANSFER),
    "/api/push": ("api.PushRequest", _TRANSFER),
    "/api/create": (
        "api.CreateRequest",
        {
            "model": "string",
            "name": "string",
            "stream": "bool",
            "quantize": "string",
            "from": "string",
            "files": "map[string]string",
            "adapters": "map[string]string",
            "template": "string",
            "license": "raw",
            "system": "string",
            "parameters": "map[string]interface {}",
            "messages": "[]api.Message",
            "renderer": "string",
            "parser": "string",
            "requires": "string",
            "remote_host": "string",
            "info": "map[string]interface {}",
        },
    ),
    "/api/copy": ("api.CopyRequest", {"source": "string", "destination": "string"}),
    "/api/delete": ("api.DeleteRequest", {"model": "string", "name": "string"}),
    "/v1/chat/completions": (
        "openai.ChatCompletionRequest",
        {
            **_OPENAI,
            "messages": "[]openai.Message",
            "temperature": "float64",
            "frequency_penalty": "float64",
            "presence_penalty": "float64",
            "top_p": "float64",
            "response_format": "openai.ResponseFormat",
            "tools": "[]api.Tool",
            "reasoning": "openai.Reasoning",
            "reasoning_effort": "string",
            "logprobs": "bool",
            "top_logprobs": "int",
        },
    ),
    "/v1/completions": (
        "openai.CompletionRequest",
        {
            **_OPENAI,
            "prompt": "string",
            "suffix": "string",
            "temperature": "float32",
            "frequency_penalty": "float32",
            "presence_penalty": "float32",
            "top_p": "float32",
            "logprobs": "int",
        },
    ),
    "/v1/embeddings": (
        "openai.EmbedRequest",
        {"input": "raw", "model": "string", "dimensions": "int", "encoding_format": "string"},
    ),
}
"""Path -> name of the Go struct, and the Go type of each of its fields."""


_KINDS = {
    "string": "string",
    "bool": "bool",
    "int": "number",
    "float32": "number",
    "float64": "number",
    "map[string]interface {}": "object",
    "api.ImageData": "string",
    "raw": "",
}

_PYTHON_TYPES = {"string": str, "bool": bool}

_ZERO_VALUES: dict[str, Json] = {"string": "", "bool": False, "number": 0, "object": {}}

_LISTS = {"api.Tools": "api.Tool"}


@dataclass(frozen=True, slots=True)
class _Struct:
    """A Go struct inside another one.

    Attributes:
        fields: JSON key -> Go type.
        shown: The type's name in errors, if it is another one there.
        unmarshals: The type has its own decoder. Errors inside it then name the outer struct.
    """

    fields: Mapping[str, str]
    shown: str = ""
    unmarshals: bool = False


_ORDERED_MAP_ERROR = "Value looks like object, but can't find closing '}' symbol"
"""Error text of the library of ordered maps that Ollama uses since 0.13."""

_NESTED = {
    "api.Tool": _Struct({"type": "string", "items": "raw", "function": "api.ToolFunction"}),
    "api.ToolFunction": _Struct(
        {"name": "string", "description": "string", "parameters": "api.ToolFunctionParameters"}
    ),
    "api.ToolFunctionParameters": _Struct(
        {"type": "string", "$defs": "raw", "required": "[]string", "properties": "ordered api.ToolProperty"}
    ),
    "api.ToolProperty": _Struct(
        {"type": "api.PropertyType", "description": "string", "enum": "[]interface {}"}, unmarshals=True
    ),
    # Part of a message, which has its own decoder.
    "api.ToolCall": _Struct({"id": "string", "function": "api.ToolCallFunction"}, unmarshals=True),
    "api.ToolCallFunction": _Struct({"name": "string", "index": "int", "arguments": "ordered raw"}, unmarshals=True),
    "api.Message": _Struct(
        {
            "role": "string",
            "content": "string",
            "thinking": "string",
            "images": "[]api.ImageData",
            "tool_calls": "[]api.ToolCall",
            "tool_name": "string",
            "tool_call_id": "string",
        },
        "api.Alias",
        unmarshals=True,
    ),
    "openai.Message": _Struct(
        {
            "role": "string",
            "content": "raw",
            "reasoning": "string",
            "tool_calls": "[]openai.ToolCall",
            "name": "string",
            "tool_call_id": "string",
        }
    ),
    "openai.ToolCall": _Struct(
        {
            "id": "string",
            "index": "int",
            "type": "string",
            "function": 'struct { Name string "json:\\"name\\""; Arguments string "json:\\"arguments\\"" }',
        }
    ),
    'struct { Name string "json:\\"name\\""; Arguments string "json:\\"arguments\\"" }': _Struct(
        {"name": "string", "arguments": "string"}
    ),
    "openai.StreamOptions": _Struct({"include_usage": "bool"}),
    "openai.ResponseFormat": _Struct({"type": "string", "json_schema": "openai.JsonSchema"}),
    "openai.JsonSchema": _Struct({"schema": "raw"}),
    "openai.Reasoning": _Struct({"effort": "string"}),
}


def read_struct(value: Json, go_type: str, fields: Mapping[str, str]) -> dict[str, Json]:
    """Check *value* against a Go struct. Unknown keys are dropped, and so are keys whose value is `null`.

    Args:
        value: The decoded body.
        go_type: The Go struct with its package, for the error text.
        fields: JSON key -> Go type. `raw` takes anything.

    Raises:
        BadRequestError: A value has the wrong type.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"json: cannot unmarshal {kind(value)} into Go value of type {go_type}")
    return _read_fields(value, fields, go_type.rpartition(".")[2], "")


def _read_fields(value: dict[str, Json], fields: Mapping[str, str], struct: str, path: str) -> dict[str, Json]:
    found = {}
    for key, go_type in fields.items():
        item = value.get(key)
        if item is not None:
            found[key] = _read(item, go_type, struct, f"{path}.{key}")
    return found


def _read(value: Json, go_type: str, struct: str, path: str) -> Json:  # noqa: C901, PLR0911 - one branch a kind of type
    if type(value) is _PYTHON_TYPES.get(go_type):
        # The fast path, for most values: benchmarks run against the stand-in.
        return value
    if value is None:
        return _ZERO_VALUES.get(_KINDS.get(go_type, "object"))
    if go_type in _LISTS or go_type.startswith("[]"):
        _check_kind("array", value, struct, path, go_type)
        element = _LISTS.get(go_type, go_type.removeprefix("[]"))
        return value if element == "interface {}" else [_read(item, element, struct, path) for item in value]
    if go_type == "map[string]string":
        _check_kind("object", value, struct, path, go_type)
        return {key: _read(item, "string", struct, path) for key, item in value.items()}
    if go_type.startswith("ordered "):
        if not isinstance(value, dict):
            raise BadRequestError(_ORDERED_MAP_ERROR)
        return {key: _read(item, go_type.removeprefix("ordered "), struct, path) for key, item in value.items()}
    if (inner := _NESTED.get(go_type)) is not None:
        _check_kind("object", value, struct, path, inner.shown or go_type)
        within = struct if inner.unmarshals else go_type.rpartition(".")[2]
        given = {key: item for key, item in value.items() if item is not None}
        return given | _read_fields(given, inner.fields, within, path)
    if go_type == "api.PropertyType":
        # One type or a list of types.
        return value if isinstance(value, str) else _read(value, "[]string", struct, path)
    if wanted := _KINDS[go_type]:
        _check_kind(wanted, value, struct, path, go_type)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    for item in inside:
        if isinstance(item, TooLarge):
            raise BadRequestError(
                _mismatch(f"number {item.text}", struct, path, "float64" if wanted in ("", "object") else go_type)
            )
    if go_type == "int" and (abs(value) >= 2**63 or value != int(value)):
        raise BadRequestError(_mismatch(f"number {value}", struct, path, go_type))
    return value


def _check_kind(wanted: str, value: Json, struct: str, path: str, go_type: str) -> None:
    if kind(value) != wanted:
        raise BadRequestError(_mismatch(kind(value), struct, path, go_type))


def _mismatch(found: str, struct: str, path: str, go_type: str) -> str:
    # An anonymous struct has no name in the text.
    where = (struct if not struct.startswith("struct ") else "") + path
    return f"json: cannot unmarshal {found} into Go struct field {where} of type {go_type}"
