"""How each argument of a batch is read, as an operator or a command has it; `BatchSpec.read` makes a batch of all.

A DAG file reads them when it is parsed, as far as they are no templates, so nothing heavy is imported here.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ollama_provider.api.arguments import is_null, one_of, read_flag, read_list, read_number, read_text, read_whole
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch.window import read_stop_at, read_timezone, timezone_name


def _auto(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.strip() == "auto":
        return "auto"
    try:
        return read_whole(name, value, least=1)
    except InvalidRequestError:
        raise InvalidRequestError(f"{name}: {value!r} is neither 'auto' nor a number from 1 on") from None


def _stop_at(_: str, value: Any) -> Any:
    return read_stop_at(value)


def _timezone(_: str, value: Any) -> str | None:
    zone = read_timezone(value)
    return None if zone is None else timezone_name(zone)


def _think(name: str, value: Any) -> Any:
    try:
        return read_flag(name, value)
    except InvalidRequestError:
        return one_of(name, value, "low", "medium", "high", "max")


def _messages(name: str, value: Any) -> Any:
    value = (read_list(value) or value) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise InvalidRequestError(f"{name}: a list of turns, each with 'role' and 'content', is needed")
    return [
        {key: read_text(f"{name}.{number}.{key}", text) for key, text in turn.items()}
        for number, turn in enumerate(value)
    ]


def _path(name: str, value: Any) -> Any:
    return value if hasattr(value, "__fspath__") or hasattr(value, "read_text") else read_text(name, value)


Reader = Callable[[str, Any], Any]

#: How each argument is read. What is not here has no form but its own: rows, options, classes and the like.
_READERS: dict[str, Reader] = {
    "prompt": _path,
    "task": lambda name, value: one_of(name, value, "generate", "chat", "embed"),
    "on_long_text": lambda name, value: one_of(name, value, "dead_letter", "truncate", "split"),
    "pack": _auto,
    "think": _think,
    "mode": lambda name, value: one_of(name, value, "all", "failed_only", "merge"),
    "concurrency": _auto,
    "max_attempts": partial(read_whole, least=1),
    "max_outage": read_number,
    "on_truncation": lambda name, value: one_of(name, value, "dead_letter", "fail", "flag"),
    "allow_cut": read_flag,
    "on_broken_row": lambda name, value: one_of(name, value, "fail", "dead_letter"),
    "on_digest_change": lambda name, value: one_of(name, value, "stop", "continue"),
    "load_timeout": read_number,
    "checkpoint_every": read_number,
    "report_every": read_number,
    "unload_after": read_flag,
}
#: The same for those that may be None.
_OPTIONAL: dict[str, Reader] = {
    "messages": _messages,
    "images": read_text,
    "images_from": _path,
    "system": read_text,
    "fallback_model": read_text,
    "dimensions": partial(read_whole, least=1),
    "id_column": read_text,
    "requests_per_minute": read_number,
    "max_failed_rows": partial(read_whole, least=0),
    "max_failed_ratio": partial(read_number, most=1.0),
    "results": lambda name, value: one_of(name, value, "jsonl", "parquet"),
    "stop_at": _stop_at,
    "timezone": _timezone,
}


def read_argument(name: str, value: Any) -> Any:
    """Return the value of an argument in the type that `BatchSpec` or `Limits` has for it.

    Raises:
        InvalidRequestError: it has no meaning there; the text names the argument.
    """
    if name in _OPTIONAL:
        return None if is_null(value) else _OPTIONAL[name](name, value)
    return _READERS[name](name, value) if name in _READERS else value
