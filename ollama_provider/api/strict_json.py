"""Strict JSON, which every reader accepts.

Python's ``json`` accepts NaN, reads ``1e400`` as infinity, reads half a surrogate pair as a string that UTF-8 cannot
encode, and nests as deep as its stack. Other tools fail on such data when they read the results. `read_json`, which
reads everything that a server or a model sends, accepts none of it.
"""

import json
import math
import re
from typing import Any, NoReturn

#: Levels of nesting that are accepted. Strict readers have about this limit (serde_json: 128).
DEEPEST = 100

#: Finds whole pairs too, which `mend` leaves alone. Only escapes matter: decoding UTF-8 refuses unescaped surrogates.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str | bytes) -> Any:
    """Return the data of a JSON text.

    Half a surrogate pair (a cut emoji) becomes U+FFFD, which Ollama itself writes for half a character.

    Args:
        text: bytes in UTF-8, or text.

    Raises:
        ValueError: it is no JSON or no UTF-8, a number is not finite or has thousands of digits, or it nests deeper
            than `DEEPEST`.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        data = _DECODER.decode(text)
        # Counting brackets is cheap and done for each token of an answer. Walking through the values is rare.
        if text.count("[") + text.count("{") > DEEPEST and _is_deep(data, DEEPEST):
            raise ValueError(f"it nests deeper than {DEEPEST} levels")
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from None
    except ValueError as error:
        if "digits" in str(error):  # Python's own limit, with advice about Python
            raise ValueError("a number has thousands of digits") from None
        raise
    return mend(data) if "\\u" in text and _SURROGATE.search(text) else data


def mend(data: Any) -> Any:
    """Return JSON data with each half of a surrogate pair replaced by U+FFFD."""
    match data:
        case str():
            # By way of UTF-16, where two halves of a pair are one character.
            return data.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {mend(key): mend(value) for key, value in data.items()}
        case list():
            return [mend(value) for value in data]
    return data


def is_finite(data: Any) -> bool:
    """Return whether all numbers in plain data are finite."""
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
