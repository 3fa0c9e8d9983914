"""Lists that arrive as text: a template makes text of everything, unless the DAG renders natively."""

import ast
import json
from typing import Any


def read_list(text: str) -> list[Any] | None:
    """Return the list that *text* is, as JSON or as Python writes it (a tuple too); None if it is no list."""
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
