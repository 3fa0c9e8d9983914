"""Embedding vectors without a model: words and character trigrams are hashed, so similar texts get near vectors."""

import math
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

_WORD = re.compile(r"\w+")
_POSITIONS_PER_FEATURE = 4


# A vector is 25 kB of Python floats: enough texts for a pack that is sent again, and no more.
@lru_cache(maxsize=256)
def text_vector(text: str, width: int) -> tuple[float, ...]:
    """Compute the L2-normalised vector of *text*, the same on every machine.

    Args:
        text: Any text, also one without words.
        width: Number of values.
    """
    # Every vector starts with the same small values, none of them zero: then the vector of a text without words has a
    # direction, and a vector cut by `dimensions` a length.
    values = [0.01 + 0.01 * (position % 3) for position in range(width)]
    for word in _WORD.findall(text.lower()):
        for position, weight in _contributions(word, width):
            values[position] += weight
    return normalise(values)


# Up to 10 kB for a word of twenty characters.
@lru_cache(maxsize=1024)
def _contributions(word: str, width: int) -> tuple[tuple[int, float], ...]:
    """Position and value that a word adds to a vector: from the word itself and, with less weight, its trigrams."""
    padded = f"^{word}$"
    features = [(word, 1.0)] + [(padded[start : start + 3], 0.4) for start in range(len(padded) - 2)]
    found: dict[int, float] = {}
    for feature, weight in features:
        number = zlib.crc32(feature.encode("utf-8", "replace"))
        # Each feature has several positions, so that vectors cut by `dimensions` still tell texts apart.
        for _ in range(_POSITIONS_PER_FEATURE):
            number = (number * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
            position = (number >> 8) % width
            found[position] = found.get(position, 0.0) + (weight if number & 0x4000_0000 else -weight)
    return tuple(found.items())


def normalise(values: Sequence[float]) -> tuple[float, ...]:
    """Scale to length 1, with the precision of a float32."""
    scale = 1.0 / (math.hypot(*values) or 1.0)
    return tuple([round(value * scale, 8) for value in values])
