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
_TRANSFER = {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"}

STRUCTS: dict[str, tuple[str, dict[str, str]]] = {
    "/api/generate": (
        "GenerateRequest",
        {
            **_INFERENCE,
            "prompt": "string",
            "suffix": "string",
            "system": "string",
            "template": "string",
            "context": "[]int",
            "raw": "bool",
            "images": "[]string",
        },
    ),
    "/api/chat": ("ChatRequest", {**_INFERENCE, "messages": "[]api.Message", "tools": "api.Tools"}),
    "/api/embed": (
        "EmbedRequest",
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
        "EmbeddingRequest",
        {"model": "string", "prompt": "string", "keep_alive": "raw", "options": "map[string]interface {}"},
    ),
    "/api/show": (
        "ShowRequest",
        {
            "model": "string",
            "name": "string",
            "system": "string",
            "verbose": "bool",
            "options": "map[string]interface {}",
        },
    ),
    "/api/pull": ("PullRequest", _TRANSFER),
    "/api/push": ("PushRequest", _TRANSFER),
    "/api/create": (
        "CreateRequest",
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
        },
    ),
    "/api/copy": ("CopyRequest", {"source": "string", "destination": "string"}),
    "/api/delete": ("DeleteRequest", {"model": "string", "name": "string"}),
}
"""Path -> Go struct and its fields."""


def read(path: str, value: Json) -> dict[str, Json]:
    """Check the types of a body's fields and keep those the endpoint knows.

    Raises:
        BadRequestError: With Go's text.
    """
    struct, fields = STRUCTS[path]
    return read_struct(value, struct, fields)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat, as far as the stand-in looks at it."""

    role: str
    content: str
    images: int = 0


def read_messages(body: dict[str, Json]) -> list[Message]:
    """The messages of a chat.

    Raises:
        BadRequestError: A message is not one, or an image is not base64.
    """
    messages = []
    for item in body.get("messages", ()):
        found = read_struct(
            item,
            "Alias",
            {
                "role": "string",
                "content": "string",
                "thinking": "string",
                "images": "[]string",
                "tool_calls": "[]api.ToolCall",
                "tool_name": "string",
                "tool_call_id": "string",
            },
        )
        for image in found.get("images", ()):
            check_base64(image)
        for call in found.get("tool_calls", ()):
            if isinstance(call.get("function", {}).get("arguments"), str):
                # The text of the JSON library of ordered maps, since 0.13.
                raise BadRequestError("Value looks like object, but can't find closing '}' symbol")
        messages.append(Message(found.get("role", "").lower(), found.get("content", ""), len(found.get("images", ()))))
    return messages


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
            raise BadRequestError(f"Unsupported type: '{kind(value)}'")
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
