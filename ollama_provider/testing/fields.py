"""The fields of each request, with their Go types, and the three that need more than a type."""

from dataclasses import dataclass

from ollama_provider.testing.go import BadRequestError, Json, check_base64, kind, parse_duration, quoted, read_struct
from ollama_provider.testing.scheduler import FOR_EVER

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

STRUCTS: dict[str, tuple[str, dict[str, str]]] = {
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
"""Path -> Go struct and its fields."""


def read(path: str, value: Json) -> dict[str, Json]:
    """Check the types of a body's fields and keep those the endpoint knows.

    Raises:
        BadRequestError: With Go's text.
    """
    go_type, fields = STRUCTS[path]
    found = read_struct(value, go_type, fields)
    # A type with a reader of its own.
    read_keep_alive(found)
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat, as far as the stand-in looks at it."""

    role: str
    content: str
    images: int = 0


def read_messages(body: dict[str, Json]) -> list[Message]:
    """The messages of a chat.

    Raises:
        BadRequestError: An image is not base64.
    """
    messages = []
    for item in body.get("messages", ()):
        images = item.get("images", ())
        for image in images:
            check_base64(image or "")
        messages.append(Message(item.get("role", "").lower(), item.get("content", ""), len(images)))
    return messages


_ANY = {"array": "[]interface {}", "object": "map[string]interface {}"}


def read_keep_alive(body: dict[str, Json]) -> float | None:
    """Seconds; None if the request does not say. Negative is for ever.

    Raises:
        BadRequestError: It is neither a number nor a duration.
    """
    value = body.get("keep_alive")
    match value:
        case None:
            return None
        case str():
            seconds = parse_duration(value)
        case int() | float() if not isinstance(value, bool):
            seconds = float(value)
        case _:
            go_type = "bool" if isinstance(value, bool) else _ANY[kind(value)]
            raise BadRequestError(f"Unsupported type: '{go_type}'")
    return seconds if seconds >= 0 else FOR_EVER


def read_think(body: dict[str, Json], levels: tuple[str, ...]) -> bool | str | None:
    """A switch or a level; None if the request does not say.

    Args:
        body: The request.
        levels: Those this version knows.

    Raises:
        BadRequestError: It is neither.
    """
    value = body.get("think")
    known = ", ".join(f'"{level}"' for level in levels) + ", true, or false"
    match value:
        case None | bool():
            return value
        case str() if value in levels:
            return value
        case str():
            raise BadRequestError(f"invalid think value: {quoted(value)} (must be {known})")
        case _:
            raise BadRequestError(f"think must be a boolean or string ({known})")
