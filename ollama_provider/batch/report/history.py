"""How fast a batch was over time, and when it began, ended and was out of service: ``history.json``.

It goes on with the next run of the same pass over the input, so a crash leaves a gap and nothing else. It stays small
however long a batch takes: where it has too many samples, neighbours become one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import ceil
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from ollama_provider.batch.store.storage import Storage, write

_FORMAT = 1
#: Samples and events that are kept: less than 130 kB.
_SAMPLES, _EVENTS = 1000, 200
#: Shards, and servers of them, that are kept: 40 kB.
_SHARDS = 100
#: Characters of the text of an event, seconds between two samples of different runs, and those of the widest sample.
_TEXT, _GAP, _WIDEST = 300, 0.5, 1e6


What = Literal["began", "ended", "failed", "outage"]


class Sample(NamedTuple):
    """What was done in some seconds.

    Attributes:
        at: when they began, in seconds since 1970.
        seconds: how many.
        rows: that got their outcome, failed ones included.
        tokens: generated for them.
        in_flight: requests in flight, on average.
        out: seconds in which the servers were out of service, on average over the servers.
    """

    at: float
    seconds: float
    rows: int
    tokens: int
    in_flight: float
    out: float

    @property
    def end(self) -> float:
        """When they ended."""
        return self.at + self.seconds


class Event(NamedTuple):
    """A run began, ended or failed with an error, or a server went out of service; the text says why."""

    at: float
    what: What
    text: str


@dataclass(frozen=True)
class ShardShare:
    """What one of the shards of a batch did.

    Attributes:
        name: such as ``0 of 4``.
        state, reason: see `Report`.
        rows, ok, failed, left: see `Summary`; *rows* and *left* are None where they are unknown.
        began, ended: the first and the last moment that is known of it, in seconds since 1970.
        seconds: that it was at work in between.
        rows_per_second, tokens_per_second: over these seconds.
    """

    name: str
    state: str
    reason: str
    rows: int | None
    ok: int
    failed: int
    left: int | None
    began: float
    ended: float
    seconds: float
    rows_per_second: float
    tokens_per_second: float


class _Saved(BaseModel):
    format: int
    pass_number: int
    samples: list[Sample] = Field(max_length=2 * _SAMPLES)
    events: list[Event] = Field(max_length=2 * _EVENTS)
    shards: list[ShardShare] = Field(default=[], max_length=_SHARDS)
    servers: list[dict[str, Any]] = Field(default=[], max_length=_SHARDS)


def merged(one: Sample, other: Sample) -> Sample:
    """Return two neighbours as one sample."""
    seconds = one.seconds + other.seconds
    in_flight = one.in_flight * one.seconds + other.in_flight * other.seconds
    return Sample(
        at=one.at,
        seconds=round(seconds, 2),
        rows=one.rows + other.rows,
        tokens=one.tokens + other.tokens,
        in_flight=in_flight / seconds if seconds else 0.0,
        out=one.out + other.out,
    )


def append(samples: list[Sample], sample: Sample, width: float) -> None:
    """Append a sample, or make it one with the last, if both are of the same run and take at most *width* seconds."""
    if samples and abs(sample.at - samples[-1].end) < _GAP and samples[-1].seconds + sample.seconds <= width:
        samples[-1] = merged(samples[-1], sample)
    else:
        samples.append(sample)


def side_by_side(histories: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Return what several runs did at the same time, or one after the other, as the samples of one run.

    A sample has rows, tokens and requests of all of them, and the sums are exact. The time in which none of them was at
    work is a gap.
    """
    samples = sorted(sample for sample in chain(*histories) if sample.seconds > 0)
    spans: list[tuple[float, float]] = []
    for sample in samples:
        if spans and sample.at - spans[-1][1] < _GAP:
            spans[-1] = spans[-1][0], max(spans[-1][1], sample.end)
        else:
            spans.append((sample.at, sample.end))
    width = max(1.0, sum(end - begin for begin, end in spans) / _SAMPLES)
    found: list[Sample] = []
    given_rows = given_tokens = rows_so_far = tokens_so_far = 0.0
    for begin, end in spans:
        steps = ceil((end - begin) / width)
        step = (end - begin) / steps
        # For each step: rows, tokens, requests times seconds, seconds out of service, seconds of all runs.
        sums = [[0.0] * 5 for _ in range(steps)]
        for sample in samples:
            if not begin <= sample.at <= end:
                continue
            first = min(steps - 1, int((sample.at - begin) / step))
            last = min(steps - 1, int((sample.end - begin) / step))
            for number in range(first, last + 1):
                seconds = min(sample.end, begin + (number + 1) * step) - max(sample.at, begin + number * step)
                share = max(0.0, seconds) / sample.seconds
                parts = (sample.rows, sample.tokens, sample.in_flight * sample.seconds, sample.out, sample.seconds)
                sums[number] = [so_far + share * part for so_far, part in zip(sums[number], parts, strict=True)]
        for number, (rows, tokens, requests, out, busy) in enumerate(sums):
            rows_so_far, tokens_so_far = rows_so_far + rows, tokens_so_far + tokens
            sample = Sample(
                at=round(begin + number * step, 2),
                seconds=round(step, 2),
                rows=round(rows_so_far - given_rows),
                tokens=round(tokens_so_far - given_tokens),
                in_flight=requests / step,
                out=out / busy * step if busy else 0.0,
            )
            given_rows, given_tokens = given_rows + sample.rows, given_tokens + sample.tokens
            found.append(sample)
    return found


def compact(samples: Sequence[Sample], most: int) -> tuple[list[Sample], float]:
    """Return at most so many samples for these, and the seconds that one takes: the same for all, if they can.

    Samples of different runs stay apart. Of very many runs, the oldest are left out.
    """
    found, width = list(samples), max((sample.seconds for sample in samples), default=1.0)
    while len(found) > most and width < _WIDEST:
        width *= 2
        fewer: list[Sample] = []
        for sample in found:
            append(fewer, sample, width)
        found = fewer
    return found[-most:], width


class History:
    """The history of a pass over the input.

    Args:
        pass_number: that pass.
        samples, events: of earlier runs.

    Attributes:
        shards: what each shard did, after a merge.
        servers: what each server did for all of them: `ServerShare`, as plain data.
    """

    def __init__(
        self, pass_number: int, samples: list[Sample] | None = None, events: list[Event] | None = None
    ) -> None:
        self.pass_number = pass_number
        self.samples = samples or []
        self.events = events or []
        self.shards: list[ShardShare] = []
        self.servers: list[dict[str, Any]] = []
        self._last = (0.0, 0, 0, 0.0)
        # A sample of a second or so for each call of `add`, until there are too many.
        self._width = 0.0 if len(self.samples) < _SAMPLES // 2 else max(sample.seconds for sample in self.samples)

    def begin(self, now: float) -> None:
        """Note that a run begins.

        Args:
            now: seconds since 1970, as for the other methods.
        """
        self._last = (now, 0, 0, 0.0)
        self.note(now, "began", "")

    def add(self, now: float, *, rows: int, tokens: int, in_flight: int, out: float) -> None:
        """Add what was done since the last call.

        Args:
            now: the time.
            rows: with an outcome of the run so far.
            tokens: of the run so far.
            in_flight: requests in flight now.
            out: seconds of the run so far in which the servers were out of service, on average.
        """
        at, rows_then, tokens_then, out_then = self._last
        if now <= at:
            return
        sample = Sample(
            at=round(at, 2),
            seconds=round(now - at, 2),
            rows=rows - rows_then,
            tokens=tokens - tokens_then,
            in_flight=in_flight,
            out=min(max(out - out_then, 0.0), now - at),
        )
        append(self.samples, sample, self._width)
        self._last = (now, rows, tokens, out)
        if len(self.samples) > _SAMPLES:
            self.samples, self._width = compact(self.samples, _SAMPLES)

    def note(self, now: float, what: What, text: str) -> None:
        """Add an event. Of very many, the oldest are forgotten."""
        self.events.append(Event(round(now, 2), what, text[:_TEXT]))
        del self.events[:-_EVENTS]

    @property
    def end(self) -> float:
        """The last moment that is known; 0 for an empty history."""
        return max([event.at for event in self.events[-1:]] + [sample.end for sample in self.samples[-1:]], default=0.0)

    def state(self, *, complete: bool) -> tuple[str, str]:
        """Return the state of the runs in a word, and why: see `Report`.

        Args:
            complete: there is a summary, which says so.
        """
        runs = [event for event in self.events if event.what != "outage"]
        if runs and runs[-1].what == "began":
            return "running", ""
        reason = runs[-1].text if runs else ""
        if runs and runs[-1].what == "failed":
            return "failed", reason
        if complete:
            return "complete", ""
        return ("incomplete", reason) if runs else ("unknown", "")

    def as_json(self) -> bytes:
        """Return the content of ``history.json``."""
        # A copy of each list, since this runs in a thread while samples are added.
        samples = [(*sample[:4], round(sample.in_flight, 2), round(sample.out, 2)) for sample in tuple(self.samples)]
        content: dict[str, Any] = {
            "format": _FORMAT,
            "pass_number": self.pass_number,
            "samples": samples,
            "events": tuple(self.events),
        }
        if self.shards:
            content["shards"] = [asdict(share) for share in self.shards[:_SHARDS]]
            content["servers"] = self.servers[:_SHARDS]
        return (json.dumps(content, separators=(",", ":")) + "\n").encode()

    def save(self, storage: Storage, name: str) -> None:
        """Write it.

        Raises:
            StorageError: it cannot be written.
        """
        write(storage, name, self.as_json())


def read_history(storage: Storage, name: str) -> History | None:
    """Return the history in a directory; None if there is none that can be read.

    Raises:
        StorageError: the directory cannot be read.
    """
    content = storage.read(name)
    try:
        saved = None if content is None else _Saved.model_validate_json(content)
    except ValidationError:
        return None
    if saved is None or saved.format > _FORMAT:
        return None
    found = History(saved.pass_number, saved.samples, saved.events)
    found.shards, found.servers = saved.shards, saved.servers
    return found


def as_one(histories: Mapping[str, History]) -> History:
    """Return the histories of all shards, by their names, as one."""
    events = (
        event._replace(text=f"shard {name}{': ' if event.text else ''}{event.text}")
        for name, history in histories.items()
        for event in history.events
    )
    samples = side_by_side([history.samples for history in histories.values()])
    return History(0, samples, sorted(events)[-_EVENTS:])


def history_for(storage: Storage, name: str, pass_number: int) -> History:
    """Return the history that a run goes on with: that of its pass over the input, or a new one.

    Raises:
        StorageError: the directory cannot be read.
    """
    found = read_history(storage, name)
    return found if found is not None and found.pass_number == pass_number else History(pass_number)
