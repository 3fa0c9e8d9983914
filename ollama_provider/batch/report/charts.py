"""Shapes of the report's charts, in the units of their SVG: the template draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ollama_provider.batch.report.history import Event, Sample, ShardShare, compact
from ollama_provider.batch.report.samples import Distribution

#: Size of a chart over time and of a histogram. The space on the left is for the numbers of the axis.
WIDTH, HEIGHT, LEFT = 900, 120, 56
BARS_WIDTH, BARS_HEIGHT = 400, 120
#: Steps of a chart over time at most, and its share that a gap between two runs takes.
_STEPS, _GAP = 220, 0.012
_TICKS = 6
#: Seconds between two samples from which on they belong to different runs.
_PAUSE = 0.5


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what stands there."""

    place: float
    text: str


@dataclass(frozen=True)
class Series:
    """One number over time: the outline of its area, and its axis."""

    label: str
    path: str
    ticks: tuple[Tick, ...]
    mean: float


@dataclass(frozen=True)
class Band:
    """A time in which servers were out of service; *share* of them, from 0 to 1."""

    x: float
    width: float
    share: float


@dataclass(frozen=True)
class Timeline:
    """Charts over the same time: the time in which no run was at work is left out."""

    series: tuple[Series, ...]
    outages: tuple[Band, ...]
    restarts: tuple[Tick, ...]
    times: tuple[Tick, ...]


def timeline(samples: Sequence[Sample], events: Sequence[Event]) -> Timeline | None:
    """Return the charts of a history; None where nothing was measured.

    Args:
        samples: in their order.
        events: the beginnings of runs become lines, but for the first, and the first of each shard.
    """
    steps, _ = compact(samples, _STEPS)
    total = sum(step.seconds for step in steps)
    if not total:
        return None
    breaks = [place for place in range(1, len(steps)) if abs(steps[place].at - steps[place - 1].end) >= _PAUSE]
    gap = _GAP * (WIDTH - LEFT) if len(breaks) < 20 else 0.0
    scale = (WIDTH - LEFT - gap * len(breaks)) / total
    spans: list[tuple[float, float]] = []
    x = float(LEFT)
    for place, step in enumerate(steps):
        x += gap if place in breaks else 0.0
        spans.append((x, x + step.seconds * scale))
        x = spans[-1][1]
    return Timeline(
        series=tuple(
            _series(label, steps, spans, value)
            for label, value in (  # discarded answers are taken off where that was noticed, so a step may be below 0
                ("Rows a second", lambda step: max(0, step.rows) / step.seconds if step.seconds else 0.0),
                ("Tokens a second", lambda step: max(0, step.tokens) / step.seconds if step.seconds else 0.0),
                ("Requests in flight", lambda step: step.in_flight),
            )
        ),
        outages=tuple(
            Band(round(left, 1), round(max(right - left, 1.0), 1), min(1.0, step.out / step.seconds))
            for step, (left, right) in zip(steps, spans, strict=True)
            if step.out > 0
        ),
        restarts=tuple(
            Tick(_x(at, steps, spans) - (gap / 2 if breaks else 0.0), clock(at, seconds=True))
            for at in _restarts(events)
        ),
        times=tuple(_times(steps, spans)),
    )


def _restarts(events: Sequence[Event]) -> list[float]:
    """Return when runs began, but for the first of each shard, whose name is the text of the event."""
    began: dict[str, list[float]] = {}
    for event in events:
        if event.what == "began":
            began.setdefault(event.text, []).append(event.at)
    return sorted(at for times in began.values() for at in times[1:])


def _x(at: float, steps: Sequence[Sample], spans: Sequence[tuple[float, float]]) -> float:
    """Return where a moment is: where it lies between two runs, the beginning of the later one."""
    for step, (left, right) in zip(steps, spans, strict=True):
        if at < step.end:
            share = max(0.0, at - step.at) / step.seconds
            return round(left + share * (right - left), 1)
    return WIDTH


def _series(
    label: str, steps: Sequence[Sample], spans: Sequence[tuple[float, float]], value: Callable[[Sample], float]
) -> Series:
    values = [value(step) for step in steps]
    top = _round_up(max(values))
    path, end = "", -1.0
    for (left, right), height in zip(spans, values, strict=True):
        y = HEIGHT * (1 - height / top)
        if left - end > 0.01:  # of another run: a shape of its own
            path += f"{'V' + str(HEIGHT) if path else ''}M{left:.1f},{HEIGHT}"
        path += f"V{y:.1f}H{right:.1f}"
        end = right
    seconds = sum(step.seconds for step in steps)
    mean = sum(number * step.seconds for number, step in zip(values, steps, strict=True)) / seconds
    ticks = tuple(Tick(HEIGHT * (1 - share), short(top * share)) for share in (0.0, 0.5, 1.0))
    return Series(label, f"{path}V{HEIGHT}", ticks, mean)


def _round_up(value: float) -> float:
    """Return the next number from *value* on that reads well at the end of an axis."""
    if value <= 0:
        return 1.0
    unit: float = 10.0 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 2, 4, 5, 6, 8, 10) if unit * step >= value * 0.999)


def _times(steps: Sequence[Sample], spans: Sequence[tuple[float, float]]) -> list[Tick]:
    """Return where on the axis which time of day is, as far apart as the texts need."""
    first, last = steps[0].at, steps[-1].end
    found: list[Tick] = []
    for number in range(_TICKS):
        wanted = LEFT + (WIDTH - LEFT) * number / (_TICKS - 1)
        place = min(range(len(spans)), key=lambda each: max(spans[each][0] - wanted, wanted - spans[each][1], 0.0))
        left, right = spans[place]
        share = (min(max(wanted, left), right) - left) / (right - left) if right > left else 0.0
        at = steps[place].at + share * steps[place].seconds
        found.append(Tick(round(wanted, 1), clock(at, seconds=last - first < 600)))
    return found


def clock(at: float, *, seconds: bool = False) -> str:
    """Return a time of day in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S" if seconds else "%H:%M")


def spans(shards: Sequence[ShardShare]) -> list[tuple[float, float]]:
    """Return where each shard begins and how wide it is, in percent of the time of all."""
    first = min((shard.began for shard in shards if shard.began), default=0.0)
    last = max(shard.ended for shard in shards)
    scale = 100 / (last - first) if last > first else 0.0
    return [
        (round((shard.began - first) * scale, 1), round(max((shard.ended - shard.began) * scale, 1.0), 1))
        if shard.began
        else (0.0, 0.0)  # its history cannot be read
        for shard in shards
    ]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """The bars of a distribution, where its median and its 95th percentile are, and its axis."""

    bars: tuple[Bar, ...]
    median: float
    p95: float
    ticks: tuple[Tick, ...]


def histogram(shown: Distribution) -> Histogram:
    """Return the shape of a distribution."""
    low, high = shown.edges[0], shown.edges[-1]
    most, width = max(shown.bars), BARS_WIDTH / len(shown.bars)

    def x(value: float) -> float:
        return round(BARS_WIDTH * min(1.0, max(0.0, (value - low) / (high - low))), 1)

    return Histogram(
        bars=tuple(
            Bar(
                round(number * width + 0.5, 1), round(BARS_HEIGHT * (1 - share / most), 1), round(width - 1, 1),
                round(BARS_HEIGHT * share / most, 1),
            )
            for number, share in enumerate(shown.bars)
            if share
        ),
        median=x(shown.median),
        p95=x(shown.p95),
        ticks=tuple(Tick(BARS_WIDTH * share, short(low + share * (high - low))) for share in (0.0, 0.5, 1.0)),
    )  # fmt: skip


def short(value: float) -> str:
    """Return a number in few characters: ``0.25``, ``3.5``, ``120``, ``3,400``, ``25k``."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"
