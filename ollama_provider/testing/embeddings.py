"""Vectors without a model: hashed words and character trigrams, so that similar texts are near each other."""

import math
import re
import zlib
from functools import lru_cache

_WORD = re.compile(r"\w+")
_PLACES = 8


@lru_cache(maxsize=4096)
def embed(text: str, width: int) -> tuple[float, ...]:
    """An L2-normalised vector of *text*, the same on every machine.

    Args:
        text: Any text; one without words has a vector, too.
        width: Number of values.
    """
    # Nowhere zero, and the same for all texts: a text without words has a direction, and a cut vector a length.
    values = [0.01 + 0.01 * (position % 3) for position in range(width)]
    for word in _WORD.findall(text.lower()):
        _add(values, word, 1.0)
        padded = f"^{word}$"
        for start in range(len(padded) - 2):
            _add(values, padded[start : start + 3], 0.4)
    return normalise(values)


def _add(values: list[float], feature: str, weight: float) -> None:
    # Several places a feature, so that a vector cut to its first values still tells texts apart.
    number, width = zlib.crc32(feature.encode("utf-8", "replace")), len(values)
    for place in range(_PLACES):
        number = (number * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        values[(number >> 8) % width] += weight if number & 0x4000_0000 else -weight * (place + 1) / _PLACES


def normalise(values: "list[float] | tuple[float, ...]") -> tuple[float, ...]:
    """Scale to length 1, in the precision of a float32."""
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return tuple(round(value / length, 8) for value in values)
