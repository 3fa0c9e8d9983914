"""How far a batch is: counters, pace, and a line that a person can read and a program can parse."""

import json
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TextIO

from ollama_provider.batch.records import Outcome, ServerShare
from ollama_provider.batch.store.journal import State

#: Seconds over which the pace is measured.
_WINDOW = 60.0


@dataclass(frozen=True)
class Progress:
    """How far a batch is at one moment. Rates are those of the last minute.

    Attributes:
        done: rows with an outcome: ``ok + failed``.
        total: rows of the input; None while it is unknown.
        ok: rows with a good result, including reused ones.
        failed: rows that failed, including those that failed in an earlier run of the same pass over the input.
        reused: good rows that were not asked in this run: the result was there, or is that of an equal row.
        rows_per_second: rows that got their outcome in this run, a second.
        tokens_per_second: tokens generated, a second.
        concurrency: requests that may be in flight, at all servers together.
        eta: seconds left at this pace; None while it is unknown.
        state: ``running``, or how the run ended.
        servers: the share of each server so far.
    """

    done: int = 0
    total: int | None = None
    ok: int = 0
    failed: int = 0
    reused: int = 0
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    concurrency: int = 0
    eta: float | None = None
    state: str = "running"
    servers: tuple[ServerShare, ...] = ()

    def line(self) -> str:
        """Return it as text.

        For example ``done=97/500 (19 %) ok=94 failed=3 reused=38 rows/s=2.1 tok/s=400 concurrency=4 eta=1 h 12 min``.
        An unknown number is ``?``, and without a total there is no percentage. ``eta`` is the time left, and stands
        last since there are blanks in it.
        """
        total = "?" if self.total is None else self.total
        # Rounded down, so that 100 % is the end. The total of a shard is an estimate before all rows are read.
        share = f" ({min(100, 100 * self.done // self.total)} %)" if self.total else ""
        return (
            f"done={self.done}/{total}{share} ok={self.ok} failed={self.failed} reused={self.reused} "
            f"rows/s={_rate(self.rows_per_second)} tok/s={self.tokens_per_second:.0f} concurrency={self.concurrency} "
            f"eta={duration(self.eta)}"
        )

    def as_json(self) -> bytes:
        """Return it as the content of ``progress.json``."""
        return (json.dumps(asdict(self)) + "\n").encode()


def _rate(rate: float) -> str:
    """Return a rate with two digits at least: long answers come at a few rows a minute."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float | None) -> str:
    """Return a time as text: ``3.2 s``, ``4 min 10 s``, ``1 h 12 min``, ``2 d 3 h``; ``?`` if it is unknown."""
    if seconds is None:
        return "?"
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {second} s"
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@dataclass
class ProgressMeter:
    """Measures the pace over the last minute. It has no clock of its own: `now` is an argument.

    Attributes:
        began: clock time at which the run began.
        total: rows of the input; None while it is unknown.
    """

    began: float
    total: int | None = None
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._marks.append((self.began, 0, 0))

    def read(
        self,
        now: float,
        *,
        ok: int,
        failed: int,
        reused: int,
        asked: int,
        tokens: int,
        concurrency: int,
        state: str,
        servers: Sequence[ServerShare] = (),
    ) -> Progress:
        """Return the progress now.

        Args:
            now: seconds of a clock that never goes back.
            ok: good rows, including reused ones.
            failed: failed rows, including those of an earlier run.
            reused: good rows that were not asked in this run.
            asked: rows that got their outcome in this run.
            tokens: tokens generated in this run.
            concurrency: requests that may be in flight.
            state: ``running``, or how the run ended.
            servers: the share of each server so far.
        """
        done = ok + failed
        self._marks.append((now, asked, tokens))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()
        then, asked_then, tokens_then = self._marks[0]
        seconds = now - then
        pace = max(0, asked - asked_then) / seconds if seconds > 0 else 0.0
        left = None if self.total is None else max(0, self.total - done)
        eta = 0.0 if left == 0 else left / pace if left is not None and pace > 0 else None
        speed = max(0, tokens - tokens_then) / seconds if seconds > 0 else 0.0
        return Progress(
            done=done,
            total=self.total,
            ok=ok,
            failed=failed,
            reused=reused,
            rows_per_second=round(pace, 3),
            tokens_per_second=round(speed, 1),
            concurrency=concurrency,
            eta=eta,
            state=state,
            servers=tuple(servers),
        )


@dataclass
class Counters:
    """Counts of a run that are not in its plan.

    Attributes:
        reused: rows whose good result was there.
        failed_before: rows that failed in an earlier run of the same pass over the input, or with an equal row.
        shared: key numbers of the rows that wait for the outcome of an equal row.
        skipped: rows that the mode of the run leaves alone.
        revalidated: rows whose stored raw reply fits the new schema.
        tokens, prompt_tokens: of the rows answered in this run.
        repairs: for each repair, the rows that it was ``tried`` for and those that it made ``good``.
        errors: rows that failed in this run, by class of error.
    """

    reused: int = 0
    failed_before: int = 0
    shared: "array[int]" = field(default_factory=lambda: array("I"))
    skipped: int = 0
    revalidated: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    repairs: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome of this run."""
        self.tokens += outcome.tokens or 0
        self.prompt_tokens += outcome.prompt_tokens or 0
        for repair in outcome.rungs:
            self.repairs.setdefault(repair, {"tried": 0, "good": 0})["tried"] += 1
        if outcome.error is not None:
            self.errors[outcome.error["class"]] += 1
        elif outcome.rungs:
            self.repairs[outcome.rungs[-1]]["good"] += 1

    def remove(self, outcome: Outcome) -> None:
        """Count an outcome no more: it is discarded, and its row is asked again."""
        self.tokens -= outcome.tokens or 0
        self.prompt_tokens -= outcome.prompt_tokens or 0
        for repair in outcome.rungs:
            self.repairs[repair]["tried"] -= 1
        if outcome.error is not None:
            self.errors -= Counter((outcome.error["class"],))  # without those that are zero then
        elif outcome.rungs:
            self.repairs[outcome.rungs[-1]]["good"] -= 1

    def resolve(self, state: Callable[[int], State]) -> None:
        """Count the rows that waited for the outcome of an equal row, where it has come.

        Args:
            state: returns what is known of a key's number.
        """
        waiting = array("I")
        for number in self.shared:
            match state(number):
                case State.OK:
                    self.reused += 1
                case State.FAILED:
                    self.failed_before += 1
                case _:
                    waiting.append(number)
        self.shared = waiting

    def reasons(self) -> str:
        """Return the most frequent errors with their counts, for an error text."""
        counted = ", ".join(f"{kind} {count} times" for kind, count in self.errors.most_common(3))
        return counted or "in an earlier run"


class ProgressBar:
    """A progress bar for a terminal.

    Args:
        stream: the terminal.
        width: columns of the bar, without the text.
    """

    def __init__(self, stream: TextIO = sys.stderr, width: int = 24) -> None:
        self._stream = stream
        self._width = width

    def show(self, progress: Progress) -> None:
        """Draw it over the one before. The last one, of a run that has ended, keeps its line."""
        share = progress.done / progress.total if progress.total else 0.0
        filled = round(share * self._width)
        self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (self._width - filled)}] {progress.line()}")
        if progress.state != "running":
            self._stream.write("\n")
        self._stream.flush()
