"""Parsing of arguments that come from templates, forms and command lines.

A value with one meaning is converted: a template renders 4 as ``"4"`` and None as ``"None"``. Any other value is
refused with the argument's name. This module imports nothing heavy, since it is loaded whenever a DAG file is parsed.
"""

import ast
import json
import math
import re
from typing import Any

from ollama_provider.api.errors import InvalidRequestError

#: How a template renders None, unless Airflow renders native objects.
_NULL = "None"
_WHOLE = re.compile(r"[+-]?\d{1,18}")
#: With ``render_template_as_native_obj=True`` Jinja evaluates what a template gives as a Python literal.
NATIVE = (
    "If it comes out of a template: with render_template_as_native_obj=True Airflow makes a number, a list or a "
    "boolean of a text that looks like one; the filter tojson keeps it a text: {{ … | tojson }}"
)


def is_null(value: Any) -> bool:
    """Return whether a value is None, or None as a template renders it."""
    return value is None or (isinstance(value, str) and value.strip() == _NULL)


def read_text(name: str, value: Any) -> str:
    """Return a text; an integer, which native rendering makes of digits, becomes text again.

    Raises:
        InvalidRequestError: it is neither. A float is refused, since 0.1 may have been the text "0.10".
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidRequestError(f"{name}: a text is needed, not {_kind(value)}. {NATIVE}")


def read_whole(name: str, value: Any, *, least: int) -> int:
    """Return a whole number.

    Raises:
        InvalidRequestError: it is no whole number, or below *least*.
    """
    number = value
    if (isinstance(value, str) and _WHOLE.fullmatch(value.strip())) or (
        isinstance(value, float) and value.is_integer()
    ):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise InvalidRequestError(f"{name}: {_quoted(value)} is not a whole number from {least} on")
    return number


def read_number(name: str, value: Any, *, least: float = 0.0, most: float | None = None) -> float:
    """Return a finite number.

    Raises:
        InvalidRequestError: it is no finite number, or below *least* or above *most*.
    """
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if (
        not isinstance(number, int | float)
        or isinstance(number, bool)
        or not math.isfinite(number)
        or number < least
        or (most is not None and number > most)
    ):
        bounds = f"from {least:g} on" if most is None else f"from {least:g} to {most:g}"
        raise InvalidRequestError(f"{name}: {_quoted(value)} is not a number {bounds}")
    return number


def read_flag(name: str, value: Any) -> bool:
    """Return a boolean; also from the texts ``"True"`` and ``"false"``.

    Raises:
        InvalidRequestError: it is neither true nor false.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    raise InvalidRequestError(f"{name}: {_quoted(value)} is neither True nor False")


def one_of(name: str, value: Any, *allowed: str) -> str:
    """Return a value that must be one of *allowed*.

    Raises:
        InvalidRequestError: it is none of them.
    """
    if isinstance(value, str) and value.strip() in allowed:
        return value.strip()
    raise InvalidRequestError(f"{name}: {_quoted(value)} is not one of {', '.join(map(repr, allowed))}")


def read_list(text: str) -> list[Any] | None:
    """Return the list (or tuple) that a template rendered as *text*, in JSON or Python; None if it is no list."""
    text = text.strip()
    if text[:1] + text[-1:] not in {"[]", "()"}:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
