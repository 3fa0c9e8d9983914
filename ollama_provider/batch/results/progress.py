"""Where a running batch stands: one line that a person can read and a program can parse."""

import json
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TextIO

from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.journal import State

#: Seconds over which rates are measured.
_WINDOW = 60.0


@dataclass(frozen=True)
class Progress:
    """A moment of a batch.

    Attributes:
        done: rows with an outcome: ``ok + failed``.
        total: rows of the input; None while it is unknown.
        ok: rows with a good result, reused ones among them.
        failed: rows without one, those among them that failed in an earlier try of the same round.
        reused: of the good ones, those not asked in this run: the result was there, or is that of another row.
        tokens_per_second: generated lately.
        concurrency: requests that may be in flight.
        eta: seconds to go at the pace of late; None while it is unknown.
        state: ``running``, or what the run came to.
    """

    done: int = 0
    total: int | None = None
    ok: int = 0
    failed: int = 0
    reused: int = 0
    tokens_per_second: float = 0.0
    concurrency: int = 0
    eta: float | None = None
    state: str = "running"

    def line(self) -> str:
        """Return it as ``done=4120/10000 ok=4117 failed=3 reused=19 tok/s=212 concurrency=4 eta=01:42``.

        An unknown number is ``?``; ``eta`` is minutes and seconds, with hours in front from one hour on.
        """
        total = "?" if self.total is None else self.total
        return (
            f"done={self.done}/{total} ok={self.ok} failed={self.failed} reused={self.reused} "
            f"tok/s={self.tokens_per_second:.0f} concurrency={self.concurrency} eta={_clock(self.eta)}"
        )

    def as_json(self) -> bytes:
        """Return it as the content of ``progress.json``."""
        return (json.dumps(asdict(self)) + "\n").encode()


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


@dataclass
class ProgressMeter:
    """Measures pace over the last minute. No clock: `now` is an argument.

    Attributes:
        began: when the run began.
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
    ) -> Progress:
        """Return the progress now.

        Args:
            now: seconds of a clock that never goes back.
            ok: see `Progress`, as for the others.
            failed: rows.
            reused: rows.
            asked: rows that got their outcome in this run.
            tokens: generated in this run.
            concurrency: requests.
            state: a word.
        """
        done = ok + failed
        self._marks.append((now, asked, tokens))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()
        then, asked_then, tokens_then = self._marks[0]
        seconds = now - then
        pace = (asked - asked_then) / seconds if seconds > 0 else 0.0
        left = None if self.total is None else max(0, self.total - done)
        eta = 0.0 if left == 0 else left / pace if left is not None and pace > 0 else None
        speed = (tokens - tokens_then) / seconds if seconds > 0 else 0.0
        return Progress(done, self.total, ok, failed, reused, round(speed, 1), concurrency, eta, state)


@dataclass
class Counters:
    """What came of the rows so far.

    Attributes:
        reused: rows whose good result was there.
        failed_before: rows that failed in an earlier try of the same round.
        shared: numbers of rows that wait for the outcome of another row.
        skipped: rows left alone.
        revalidated: rows whose kept raw reply fits a new schema.
        tokens, prompt_tokens: of the rows answered in this run.
        ladder: by rung, the rows that it was tried for and those that it made good.
        errors: rows failed in this run, by class of error.
    """

    reused: int = 0
    failed_before: int = 0
    shared: "array[int]" = field(default_factory=lambda: array("I"))
    skipped: int = 0
    revalidated: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    ladder: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome of this run."""
        self.tokens += outcome.tokens or 0
        self.prompt_tokens += outcome.prompt_tokens or 0
        for rung in outcome.rungs:
            self.ladder.setdefault(rung, {"tried": 0, "good": 0})["tried"] += 1
        if outcome.error is not None:
            self.errors[outcome.error["class"]] += 1
        elif outcome.rungs:
            self.ladder[outcome.rungs[-1]]["good"] += 1

    def resolve(self, state: Callable[[int], State]) -> None:
        """Count those rows whose outcome is another row's and has come.

        Args:
            state: what is known of a number.
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
        """Return the commonest errors, for a sentence."""
        counted = ", ".join(f"{kind} {count} times" for kind, count in self.errors.most_common(3))
        return counted or "in an earlier try"


class Bar:
    """A progress bar for a terminal.

    Args:
        stream: the terminal.
        width: columns of the bar itself.
    """

    def __init__(self, stream: TextIO = sys.stderr, width: int = 24) -> None:
        self._stream = stream
        self._width = width

    def show(self, progress: Progress) -> None:
        """Draw it over what was drawn before."""
        share = progress.done / progress.total if progress.total else 0.0
        filled = round(share * self._width)
        self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (self._width - filled)}] {progress.line()}")
        if progress.state != "running":
            self._stream.write("\n")
        self._stream.flush()
