"""How Go reads and writes JSON, durations, times and base64, with its error texts.

Ollama is written in Go, so clients see these texts.
"""

import calendar
import json
import math
import re
import time
from functools import lru_cache
from typing import Any

Json = Any
"""Any JSON value. Not a recursive union: a body may have a value of any type in any place."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _reject_nan(name: str) -> Json:
    raise _NanError(name)


class _NanError(ValueError):
    """The JSON contains NaN or Infinity. Python reads them, Go does not."""


class TooLarge(float):
    """An infinite float that keeps the JSON text of the number, for the error message.

    Attributes:
        text: The number as the client wrote it, such as `1e400`.
    """

    text: str

    def __new__(cls, text: str) -> "TooLarge":
        """Read the number."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def _read_float(text: str) -> float:
    return TooLarge(text) if math.isinf(number := float(text)) else number


_decode = json.JSONDecoder(parse_constant=_reject_nan, parse_float=_read_float).raw_decode
_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_TO_ESCAPE = re.compile("[<>&\u2028\u2029]")
_BLANK = " \t\n\r"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/\r\n]")


class BadRequestError(ValueError):
    """The request cannot be parsed. The text is Go's."""


def dumps(value: Json) -> str:
    r"""Write JSON as `encoding/json` does: no blanks, `<`, `>` and `&` escaped, U+2028 escaped, U+0085 raw."""
    text = _encode(value)
    # Searching is many times faster than translating, and most texts have nothing to escape.
    return text.translate(_ESCAPED) if _TO_ESCAPE.search(text) else text


def loads(text: str | bytes) -> Json:
    """Read one JSON value."""
    return json.loads(text)


def decode(body: bytes) -> Json:
    """Read the first JSON value of a request body and ignore what follows, as Ollama does.

    Raises:
        BadRequestError: The body is empty or no JSON; the text is Ollama's.
    """
    text = body.decode("utf-8", "replace").lstrip(_BLANK)
    if not text:
        raise BadRequestError("missing request body")
    try:
        value, _ = _decode(text)
    except json.JSONDecodeError as error:
        raise BadRequestError(_json_error(text, error.pos)) from None
    except _NanError as error:
        raise BadRequestError(_json_error(text, text.index(str(error)))) from None
    except RecursionError:
        raise BadRequestError("exceeded max depth") from None
    if "\\ud" in text or "\\uD" in text:
        value = _without_lone_surrogates(value)
    return value


def _json_error(text: str, position: int) -> str:
    if position >= len(text.rstrip(_BLANK)) or ('"' not in text[position + 1 :] and text[position] == '"'):
        return "unexpected EOF"
    character = text[position]
    shown = f"\\x{ord(character):02x}" if ord(character) < 0x20 else character
    return f"invalid character '{shown}' looking for beginning of value"


def _without_lone_surrogates(value: Json) -> Json:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_lone_surrogates(item) for item in value]
        case dict():
            return {_without_lone_surrogates(key): _without_lone_surrogates(item) for key, item in value.items()}
        case _:
            return value


def kind(value: Json) -> str:
    """Go's name for the type of a JSON value."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def quoted(text: str) -> str:
    """Quote *text* as Go's `%q` does."""
    return json.dumps(text, ensure_ascii=False)


def parse_duration(text: str) -> float:
    """Read a duration such as `1h30m`, as `time.ParseDuration` does; in seconds.

    Raises:
        BadRequestError: With Go's text.
    """
    rest = text[1:] if text[:1] in {"+", "-"} else text
    if rest == "0":
        return 0.0
    if not rest:
        raise BadRequestError(f"time: invalid duration {quoted(text)}")
    seconds, position = 0.0, 0
    while position < len(rest):
        part = _DURATION_PART.match(rest, position)
        if part is None:
            raise BadRequestError(f"time: invalid duration {quoted(text)}")
        number, unit = part.groups()
        if not unit:
            raise BadRequestError(f"time: missing unit in duration {quoted(text)}")
        if unit not in _UNITS:
            raise BadRequestError(f"time: unknown unit {quoted(unit)} in duration {quoted(text)}")
        seconds += float(number) * _UNITS[unit]
        position = part.end()
    return -seconds if text.startswith("-") else seconds


def check_base64(text: str) -> None:
    """Refuse what `base64.StdEncoding` refuses: missing padding, a `data:` prefix.

    Raises:
        BadRequestError: With Go's text and the offset of the first invalid byte.
    """
    payload = text.rstrip("=") if len(text) % 4 == 0 and not text.endswith("===") else text
    if wrong := _NOT_BASE64.search(payload):
        raise BadRequestError(f"illegal base64 data at input byte {wrong.start()}")
    if len(text) % 4:
        raise BadRequestError(f"illegal base64 data at input byte {len(text) - len(text) % 4}")


@lru_cache(maxsize=64)
def _format_seconds(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def timestamp(seconds: float) -> str:
    """Format a time as Go does: RFC 3339 with up to nine digits of a second, without trailing zeros.

    Args:
        seconds: Unix time, up to the year 9999. An infinite keep-alive ends before: it is 292 years.
    """
    whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
    fraction = f".{part:09d}".rstrip("0").rstrip(".")
    return f"{_format_seconds(whole)}{fraction}Z"


def unix_time(text: str) -> int:
    """Unix time of a `timestamp`, in whole seconds."""
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
