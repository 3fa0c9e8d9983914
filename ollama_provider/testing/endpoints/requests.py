"""Read request bodies: check the types, and read messages, `keep_alive`, `think` and options."""

from collections.abc import Mapping
from dataclasses import dataclass

from ollama_provider.testing.endpoints.structs import REQUEST_STRUCTS, read_struct
from ollama_provider.testing.go.encoding import BadRequestError, Json, check_base64, kind, parse_duration, quoted
from ollama_provider.testing.state.scheduler import INFINITE_KEEP_ALIVE

_GO_TYPES = {"array": "[]interface {}", "object": "map[string]interface {}"}
_INTEGERS = frozenset(
    {
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "draft_num_predict",
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
    }
)
_FLOATS = frozenset(
    {"min_p", "top_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_RELOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")


def read(path: str, value: Json) -> dict[str, Json]:
    """Check the types of a body's fields and keep the fields that the endpoint knows.

    Raises:
        BadRequestError: With Go's text.
    """
    go_type, fields = REQUEST_STRUCTS[path]
    found = read_struct(value, go_type, fields)
    # It has its own decoder in Go, which refuses values that the struct allows.
    read_keep_alive(found)
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat: the parts that the stand-in uses."""

    role: str
    content: str
    images: int = 0


def read_messages(body: dict[str, Json]) -> list[Message]:
    """Read the messages of a chat.

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


def read_keep_alive(body: dict[str, Json]) -> float | None:
    """Read `keep_alive` in seconds; None if the request has none. A negative value is infinite.

    Raises:
        BadRequestError: The value is neither a number nor a duration.
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
            go_type = "bool" if isinstance(value, bool) else _GO_TYPES[kind(value)]
            raise BadRequestError(f"Unsupported type: '{go_type}'")
    return seconds if seconds >= 0 else INFINITE_KEEP_ALIVE


def read_think(body: dict[str, Json], levels: tuple[str, ...]) -> bool | str | None:
    """Read `think`, which is a boolean or a level; None if the request has none.

    Args:
        body: The fields of the request.
        levels: The levels that this version knows.

    Raises:
        BadRequestError: The value is neither.
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


class WrongTypeError(ValueError):
    """An option has the wrong type. The text is the server's, which answers with status 500."""


def read_options(given: Mapping[str, Json]) -> dict[str, Json]:
    """Read options as `api.Options.FromMap` does: unknown ones are dropped, and so are those with the value `null`.

    Raises:
        WrongTypeError: An option has the wrong type.
    """
    known: dict[str, Json] = {}
    for name, value in given.items():
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS:
            if not is_number:
                raise WrongTypeError(f'option "{name}" must be of type integer')
            known[name] = int(value)
        elif name in _FLOATS:
            if not is_number:
                raise WrongTypeError(f'option "{name}" must be of type float32')
            known[name] = float(value)
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise WrongTypeError(f'option "{name}" must be of type boolean')
            known[name] = value
        elif name == "stop":
            if not isinstance(value, list):
                raise WrongTypeError(f'option "{name}" must be of type array')
            if not all(isinstance(item, str) for item in value):
                raise WrongTypeError(f'option "{name}" must be of an array of strings')
            known[name] = value
    return known


def reload_settings(options: Mapping[str, Json], num_ctx: int) -> dict[str, Json]:
    """Select the options that need a reload to change.

    Args:
        options: The options of the model and the request together.
        num_ctx: The server's default context, in tokens.
    """
    settings = {
        name: options[name] for name in _RELOADING if name in options and not (name == "num_gpu" and options[name] < 0)
    }
    return {"num_ctx": num_ctx, **settings}
