"""How long a whole input takes, from some of its rows. No network, no clock.

A row takes a fixed time, and time in proportion to the length of its prompt: a line of least squares through the rows
that were asked, read at the mean length of all prompts. So the longest row, which is always in the sample, makes no
mean too large. The range holds nineteen of twenty such lines through rows that are drawn again out of the sample
(bootstrap), with a fixed seed. Twenty rows know little of rare long ones, so in truth it is right nine times of ten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, linear_regression, quantiles

_DRAWS = 400


@dataclass(frozen=True)
class Duration:
    """Seconds that something takes, and the range that they are expected in."""

    seconds: float
    low: float
    high: float

    def times(self, factor: float, *, least: float = 0.0) -> "Duration":
        """Return so many times as much, and no less than *least* seconds."""
        return Duration(*(max(least, factor * each) for each in (self.seconds, self.low, self.high)))


def mean_seconds(lengths: Sequence[float], seconds: Sequence[float], mean_length: float) -> Duration:
    """Return how long a row takes on average.

    Args:
        lengths: of the prompts of some rows, one at least, in any unit.
        seconds: that each of these took.
        mean_length: of the prompts of all rows, in the same unit.
    """
    random, rows = Random(1), list(zip(lengths, seconds, strict=True))  # noqa: S311  # nothing secret
    drawn = [_read_line(random.choices(rows, k=len(rows)), mean_length) for _ in range(_DRAWS)]
    cuts = quantiles(drawn, n=40)
    found = _read_line(rows, mean_length)
    return Duration(found, min(found, cuts[0]), max(found, cuts[-1]))


def _read_line(rows: Sequence[tuple[float, float]], length: float) -> float:
    """Return where the line of least squares through the rows is at that length, within the times of the rows."""
    # `statistics.linear_regression` takes ten times as long, and the range needs hundreds of lines.
    count = len(rows)
    mean_length, mean = sum(each for each, _ in rows) / count, sum(each for _, each in rows) / count
    spread = sum((each - mean_length) ** 2 for each, _ in rows)
    slope = sum((each - mean_length) * seconds for each, seconds in rows) / spread if spread else 0.0
    # Of few rows some lines are so steep that they end below zero.
    seconds = [each for _, each in rows]
    return min(max(min(seconds), mean + slope * (length - mean_length)), max(seconds))


def tokens_by_length(lengths: Sequence[float], tokens: Sequence[float]) -> tuple[float, float]:
    """Return the tokens of an empty prompt, and those of each further unit of length, from some rows."""
    if len(set(lengths)) == 1:
        return 0.0, fmean(tokens) / lengths[0] if lengths[0] else 0.0
    slope, level = linear_regression(lengths, tokens)
    return level, slope
