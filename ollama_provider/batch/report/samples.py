"""A bounded number of items that stand for many, and what they say about all: median, percentiles, a histogram.

The random numbers have a fixed seed, so that a page made again shows the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor, log
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")

#: Bars of a histogram. The last has all values above the 99th percentile, which may lie far out.
_BARS = 30


class Reservoir(Generic[T]):
    """Up to *size* items, each of those offered with the same chance (algorithm L, which draws few random numbers).

    Args:
        size: items that are kept.
        seed: of the random numbers.
    """

    def __init__(self, size: int, seed: int = 1) -> None:
        self.items: list[T] = []
        self._size = size
        self._random = Random(seed)  # noqa: S311  # nothing secret
        self._weight = 1.0
        self._skip = 0

    def offer(self, item: T) -> None:
        """Keep an item, in place of another where it is full, or not."""
        if len(self.items) < self._size:
            self.items.append(item)
            if len(self.items) == self._size:
                self._draw()
        elif self._skip:
            self._skip -= 1
        else:
            self.items[self._random.randrange(self._size)] = item
            self._draw()

    def _draw(self) -> None:
        self._weight *= exp(log(1.0 - self._random.random()) / self._size)
        self._skip = floor(log(1.0 - self._random.random()) / log(1.0 - self._weight))


@dataclass(frozen=True)
class Distribution:
    """How a number is spread over the rows.

    Attributes:
        label: what it is.
        unit: of the values; empty for a count.
        median, p95, p99: of the values.
        edges: of the histogram's bars, one more than bars.
        bars: share of the values in each bar, from 0 to 1.
    """

    label: str
    unit: str
    median: float
    p95: float
    p99: float
    edges: tuple[float, ...]
    bars: tuple[float, ...]


def distribution(label: str, unit: str, values: Sequence[float]) -> Distribution | None:
    """Return how *values*, all or a fair sample of them, are spread; None without values.

    Args:
        label: what they are.
        unit: of the values.
        values: in any order.
    """
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, floor(share * len(ordered)))]

    low, high = ordered[0], at(0.99)
    width = (high - low) / _BARS or 1.0
    counts = [0] * _BARS
    for value in ordered:
        counts[min(_BARS - 1, floor((value - low) / width))] += 1
    return Distribution(
        label=label,
        unit=unit,
        median=at(0.5),
        p95=at(0.95),
        p99=high,
        edges=tuple(low + number * width for number in range(_BARS + 1)),
        bars=tuple(count / len(ordered) for count in counts),
    )
