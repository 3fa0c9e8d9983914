"""JSON as every reader takes it. What Python alone reads or writes ends other people's tools, a night later.

Python's ``json`` takes NaN, turns ``1e400`` into infinity, gives half a surrogate pair as a string that no UTF-8 can
say, and nests as deep as its stack. None of this gets past `read_json`, which reads all that a server or a model says.
"""

import json
import math
import re
from typing import Any, NoReturn

#: Levels of nesting that are read. Strict readers bound it at about this (serde_json: 128).
DEEPEST = 100

#: Whole pairs are found too, and are left alone. As it is, and not as an escape, no half gets past the UTF-8.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str | bytes) -> Any:
    """Return the data in a JSON text, fit for any strict reader.

    Args:
        text: bytes as they came, or text that was read here before.

    Half a surrogate pair (a cut emoji) becomes U+FFFD, as Ollama itself writes half a character.

    Raises:
        ValueError: it is no JSON or no UTF-8, a number is not finite or has thousands of digits, or it nests deeper
            than `DEEPEST`.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        data = _DECODER.decode(text)
        # Counting is cheap and done for each token of an answer; the look at each value is rare.
        if text.count("[") + text.count("{") > DEEPEST and _is_deep(data, DEEPEST):
            raise ValueError(f"it nests deeper than {DEEPEST} levels")
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from None
    except ValueError as error:
        if "digits" in str(error):  # Python's own bound, told with advice about Python
            raise ValueError("a number has thousands of digits") from None
        raise
    return mend(data) if "\\u" in text and _SURROGATE.search(text) else data


def mend(data: Any) -> Any:
    """Return JSON data with U+FFFD for each half of a surrogate pair in its texts."""
    match data:
        case str():
            # By way of UTF-16, where two halves that belong together are one character.
            return data.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {mend(key): mend(value) for key, value in data.items()}
        case list():
            return [mend(value) for value in data]
    return data


def is_finite(data: Any) -> bool:
    """Tell whether all numbers in plain data are finite."""
    match data:
        case float():
            return math.isfinite(data)
        case dict():
            return all(map(is_finite, data.values()))
        case list() | tuple() | set() | frozenset():
            return all(map(is_finite, data))
    return True


def _is_deep(data: Any, levels: int) -> bool:
    if not isinstance(data, dict | list):
        return False
    values = data.values() if isinstance(data, dict) else data
    return levels == 0 or any(_is_deep(value, levels - 1) for value in values)


def _read_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_read_float, parse_constant=_refuse_constant)
