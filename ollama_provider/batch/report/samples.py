"""What some values say about all: median, percentiles, a histogram."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

#: Bars of a histogram. The last has all values above the 99th percentile, which may lie far out.
_BARS = 30


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
