"""Ollama is written in Go, and Go's library shows through: its JSON, its error texts, its durations and times."""

import calendar
import json
import math
import re
import time
from functools import lru_cache
from typing import Any

Json = Any
"""Any JSON value; no recursive union, since the stand-in looks into bodies that may be wrong in every place."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _no_number(name: str) -> Json:
    raise _NoNumberError(name)


class _NoNumberError(ValueError):
    """NaN or Infinity, which Python reads and Go does not."""


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


def _number(text: str) -> float:
    return TooLarge(text) if math.isinf(number := float(text)) else number


_decode = json.JSONDecoder(parse_constant=_no_number, parse_float=_number).raw_decode
_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_TO_ESCAPE = re.compile("[<>&\u2028\u2029]")
_BLANK = " \t\n\r"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/\r\n]")


class BadRequestError(ValueError):
    """What the client sent cannot be read; the text is Go's."""


def dumps(value: Json) -> str:
    r"""JSON as `encoding/json` writes it: no blanks, `<`, `>` and `&` escaped, U+2028 escaped, U+0085 raw."""
    text = _encode(value)
    # A search is many times faster than a translation, and there is seldom something to translate.
    return text.translate(_ESCAPED) if _TO_ESCAPE.search(text) else text


def loads(text: str | bytes) -> Json:
    """Read one JSON value."""
    return json.loads(text)


def decode(body: bytes) -> Json:
    """Read the first JSON value of a request body and ignore what follows, as Ollama does.

    Raises:
        BadRequestError: There is none, with the text Ollama answers.
    """
    text = body.decode("utf-8", "replace").lstrip(_BLANK)
    if not text:
        raise BadRequestError("missing request body")
    try:
        value, _ = _decode(text)
    except json.JSONDecodeError as error:
        raise BadRequestError(_why_not_json(text, error.pos)) from None
    except _NoNumberError as error:
        raise BadRequestError(_why_not_json(text, text.index(str(error)))) from None
    except RecursionError:
        raise BadRequestError("exceeded max depth") from None
    if "\\ud" in text or "\\uD" in text:
        value = _without_lone_surrogates(value)
    return value


def _why_not_json(text: str, position: int) -> str:
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
    """How Go's decoder calls the type of a JSON value."""
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
    """Go's `%q`."""
    return json.dumps(text, ensure_ascii=False)


def parse_duration(text: str) -> float:
    """`time.ParseDuration`, in seconds.

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
    """`base64.StdEncoding`: padded, no `data:` prefix.

    Raises:
        BadRequestError: With Go's text and the offset of the first byte it does not like.
    """
    payload = text.rstrip("=") if len(text) % 4 == 0 and not text.endswith("===") else text
    if wrong := _NOT_BASE64.search(payload):
        raise BadRequestError(f"illegal base64 data at input byte {wrong.start()}")
    if len(text) % 4:
        raise BadRequestError(f"illegal base64 data at input byte {len(text) - len(text) % 4}")


@lru_cache(maxsize=64)
def _to_the_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def timestamp(seconds: float) -> str:
    """RFC 3339 with up to nine digits of a second, trailing zeros dropped, as Go prints a time.

    Args:
        seconds: Unix time. A time past the year 9999 is not needed: infinite keep-alive is 292 years.
    """
    whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
    fraction = f".{part:09d}".rstrip("0").rstrip(".")
    return f"{_to_the_second(whole)}{fraction}Z"


def unix_time(text: str) -> int:
    """The seconds of a `timestamp`."""
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
