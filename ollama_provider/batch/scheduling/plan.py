"""What to do next: run, reuse, try later, pause everybody, stop. No network, no clock: `now` is an argument.

Three kinds of failure, told apart by `Blame`, and three answers:

* *The request's own*: the row goes to the end of the queue, and after its attempts to the failed ones. When the model's
  process crashes, all rows that it was at work on fail: so the next attempt of each goes alone, and only that counts.
* *The server's*, for a while (busy, down, restarting): one pause for everybody, however many requests report it, and a
  slow start afterwards. No row loses an attempt. The row that met it goes again soon, but not first: if the server
  fails with that row and with no other, the row is to blame after all.
* *The setup's* (no such path, no such model): every row would fail alike, so the batch stops at once. Not so when a row
  was answered before: the setup was right a moment ago, so this is an outage in other clothes (a proxy's page, a volume
  that is not mounted yet). Only credentials (401, 407) and quotas stop it at any time: they do not come back by
  waiting, and who tries wrong ones again and again is locked out.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from ollama_provider.api.errors import (
    AuthenticationError,
    Blame,
    BrokenModelError,
    OllamaError,
    OutOfMemoryError,
    OverloadedError,
    QuotaError,
    RunnerError,
    TransportError,
    UnreachableError,
)
from ollama_provider.batch.records import Mode
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.spec import Limits
from ollama_provider.batch.store.journal import State

#: Seconds of the first pause; each one without a success in between is twice as long as the one before.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
#: A row during which the server keeps failing although it answers otherwise is to blame itself after so many times; and
#: only if so many are less probable than this, at the share of the other rows that the server ever failed with.
_SERVER_FAILURES, _CHANCE = 5, 1e-6
#: So many failed rows that were asked, and not one good: the rest will be no better.
_HOPELESS = 20
#: Rows that wait for another attempt; more of them, and the first of them goes before new rows.
_WAITING = 1000
#: A reply that broke off so many seconds before the server was found gone broke off because of that.
_SAME_OUTAGE = 5.0


class Do(Enum):
    """What a worker does now."""

    SEND = auto()
    #: Nothing can be sent before `Step.until` or before something happens.
    WAIT = auto()
    #: There is nothing to send; more may come from the input or back from a worker.
    IDLE = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """The plan's word to a worker."""

    do: Do
    item: WorkItem | None = None
    until: float = 0.0


class Verdict(Enum):
    """What became of a failed attempt."""

    #: The item is in the queue again.
    AGAIN = auto()
    #: The row failed for good.
    FAILED = auto()
    #: The batch stops.
    STOP = auto()


@dataclass
class Plan:
    """The queue of items and the rules that order it.

    Attributes:
        limits: when to give up.
        interval: seconds between two sends at least (60 / requests_per_minute).
        closed: nothing more is sent; what is in flight may come back.
        ok, failed: items that came to an end.
        unasked: of the failed ones, those that never became a request.
        reused: rows with a good result of an earlier run: such rows can be answered.
        generation: counts the pauses; a failure that was sent before the last pause began causes none of its own.
        in_flight: items sent and not yet back.
        sends: requests sent in all.
        pause: seconds of the last pause, as long as it really is; 0 when the server has answered since.
    """

    limits: Limits
    interval: float = 0.0
    closed: bool = False
    ok: int = 0
    failed: int = 0
    unasked: int = 0
    reused: int = 0
    generation: int = 0
    in_flight: int = 0
    sends: int = 0
    pause: float = 0.0
    _fresh: deque[WorkItem] = field(default_factory=deque)
    _later: deque[WorkItem] = field(default_factory=deque)
    _last: deque[WorkItem] = field(default_factory=deque)
    _clearing: bool = False
    _paused_until: float = 0.0
    _pauses: int = 0
    _answers: int = 0
    _rows_asked: int = 0
    _rows_hit: int = 0
    _outage_since: float | None = None
    _cap: int | None = None
    _next_send: float = 0.0
    _alone: bool = False
    _broken: deque[tuple[float, WorkItem]] = field(default_factory=lambda: deque(maxlen=256))

    @property
    def waiting(self) -> int:
        """Tickets that are not sent yet, or to be sent again."""
        return len(self._fresh) + len(self._later) + len(self._last)

    @property
    def fresh(self) -> int:
        """Tickets that were never sent, or only into an outage."""
        return len(self._fresh)

    @property
    def unfinished(self) -> int:
        """Tickets without an outcome."""
        return self.waiting + self.in_flight

    def bound(self, concurrency: int) -> int:
        """Return how many requests may be in flight: *concurrency*, or fewer just after a pause."""
        return concurrency if self._cap is None else min(self._cap, concurrency)

    def admit(self, item: WorkItem) -> None:
        """Put a new item at the end of the queue."""
        self._fresh.append(item)

    def next(self, now: float, concurrency: int, *, more: bool) -> Step:
        """Say what a worker does now.

        Args:
            now: seconds of a clock that never goes back.
            concurrency: requests that may be in flight.
            more: the input has more rows to come.
        """
        if now < self._paused_until and not self.closed:
            return Step(Do.WAIT, until=self._paused_until)
        if self.closed or not self.waiting or self.in_flight >= self.bound(concurrency):
            return Step(Do.IDLE)
        if now < self._next_send:
            return Step(Do.WAIT, until=self._next_send)
        queue = self._queue(now, more=more)
        if queue is None:
            return Step(Do.WAIT, until=self._later[0].not_before) if self._later and not more else Step(Do.IDLE)
        if self.in_flight and (queue[0].exclusive or self._alone):
            return Step(Do.IDLE)
        item = queue.popleft()
        self.sends += 1
        self._rows_asked += not item.send_number
        self._alone = item.exclusive
        item.sent_alone, item.send_number = not self.in_flight, self.sends
        item.generation = self.generation
        self.in_flight += 1
        if self.interval:
            self._next_send = max(now, self._next_send) + self.interval
        return Step(Do.SEND, item)

    def _queue(self, now: float, *, more: bool) -> "deque[WorkItem] | None":
        if self._postponed_are_due(more=more):
            return self._last
        enough = _WAITING if self.ok else _HOPELESS
        if self._fresh and len(self._later) < enough:
            return self._fresh
        if self._later and self._later[0].not_before <= now and (not more or len(self._later) >= enough):
            return self._later
        return self._fresh or None

    def _postponed_are_due(self, *, more: bool) -> bool:
        """Tell whether it is the turn of those that wait for the end: then, or when they are many, all of them."""
        if not self._last:
            self._clearing = False
        elif len(self._last) >= _WAITING or not (more or self._fresh or self._later or self.in_flight):
            self._clearing = True
        return self._clearing

    def fill(self, item: WorkItem, size: int, weight: int) -> None:
        """Let fresh items join the one that is about to be sent.

        Args:
            item: from `next`.
            size: items of the pack at most.
            weight: characters of their prompts at most, unless an item has more alone.
        """
        if item.rest or item.pack_closed or item.exclusive:
            return
        rest: list[WorkItem] = []
        weight -= len(item.prompt)
        while self._fresh and len(rest) < size - 1:
            other = self._fresh[0]
            weight -= len(other.prompt)
            if other.pack_closed or other.rest or other.exclusive or weight < 0:
                break
            rest.append(self._fresh.popleft())
        item.rest = tuple(rest)

    def _halve(self, item: WorkItem) -> None:
        """Send a pack again as two: what is bad in it is found in a few steps, and costs nobody else an attempt."""
        pack = (item, *item.rest)
        middle = (len(pack) + 1) // 2
        for first, *rest in (pack[middle:], pack[:middle]):
            first.rest, first.pack_closed = tuple(rest), True
            self._fresh.appendleft(first)

    def succeeded(self, item: WorkItem, *, failed: int = 0) -> None:
        """Note an answer that was good, but for *failed* rows of the item's whose result cannot be written."""
        self.in_flight -= 1
        self.ok += 1 + len(item.rest) - failed
        self._rows_asked += len(item.rest)
        self.failed += failed
        self._answered(item)

    def _answered(self, item: WorkItem) -> None:
        """The server is at work: an outage is over, and after a pause twice as many may go."""
        self._answers += 1
        if item.generation == self.generation:
            self._outage_since = None
            self._pauses = 0
            self.pause = 0.0
            if self._cap is not None:
                self._cap = 2 * self._cap if self._cap < 1 << 16 else None

    def again(self, item: WorkItem) -> None:
        """Send at once again, in another variant: no attempt is used up."""
        self.in_flight -= 1
        self._answered(item)
        self._fresh.appendleft(item)

    def postpone(self, item: WorkItem) -> None:
        """Send another variant when nothing else is left: a second model may push the first one out of memory."""
        self.in_flight -= 1
        self._answered(item)
        self._last.append(item)

    def unaskable(self) -> None:
        """Note a row that failed before it became a request."""
        self.failed += 1
        self.unasked += 1

    def in_doubt(self, item: WorkItem) -> bool:
        """Tell whether the server failed with this item and has answered nothing since.

        Then a request that is no row's must go before it: else nobody knows which of the two is at fault.
        """
        return item.answers_seen == self._answers

    def is_well(self) -> None:
        """Note that the server answers a request that is no row's: an outage is over only when a row is answered."""
        self._answers += 1

    def is_not_well(self, item: WorkItem, error: OllamaError, now: float) -> Verdict:
        """Note that the server does not answer a request that is no row's; see `failure`."""
        self.in_flight -= 1
        return Verdict.STOP if _lasts(error) else self._outage(item, error, now)

    def failure(self, item: WorkItem, error: OllamaError, now: float, *, final: bool = False) -> Verdict:
        """Judge a failed attempt.

        Args:
            item: that was sent.
            error: what came of it.
            now: seconds of a clock that never goes back.
            final: another attempt is no help.
        """
        self.in_flight -= 1
        if item.variant.fallback and isinstance(error, BrokenModelError):
            # Only the rows that the first model could not do need the second one.
            return self._own_failure(item, error, now, final=True)
        if error.blame is Blame.SETUP and (not self.ok or _lasts(error)):
            return Verdict.STOP
        if error.blame is not Blame.REQUEST and not self._is_the_rows(item, error):
            known = item.server_failures and not isinstance(error, OverloadedError | UnreachableError)
            if known and self._outage_since is None:
                # It failed before, and other rows were answered since: nobody needs to wait for this one.
                self._put_back(item)
                return Verdict.AGAIN
            return self._outage(item, error, now)
        if isinstance(error, TransportError) and item.generation != self.generation:
            # Sent before the outage that everybody is waiting for: it broke because of that.
            self._fresh.appendleft(item)
            return Verdict.AGAIN
        if error.blame is Blame.REQUEST and not isinstance(error, TransportError):
            self._answered(item)
        return self._own_failure(item, error, now, final=final)

    def _own_failure(self, item: WorkItem, error: OllamaError, now: float, *, final: bool) -> Verdict:
        if item.rest:
            self._halve(item)
            return Verdict.AGAIN
        had_company = not item.sent_alone or item.send_number != self.sends
        if had_company and isinstance(error, RunnerError | OutOfMemoryError):
            item.exclusive = True
            self._later.append(item)
            return Verdict.AGAIN
        item.attempts += 1
        allowed = min(self.limits.max_attempts, error.max_attempts or self.limits.max_attempts)
        if error.retryable and item.attempts < allowed and not final:
            item.not_before = now + self.limits.retry_delay
            self._later.append(item)
            if isinstance(error, TransportError):
                self._broken.append((now, item))
            return Verdict.AGAIN
        self.failed += 1
        return Verdict.FAILED

    def _is_the_rows(self, item: WorkItem, error: OllamaError) -> bool:
        """Tell whether the server fails because of this row: again and again with it, and far more than otherwise."""
        if isinstance(error, OverloadedError):  # to be busy is nobody's fault
            return False
        self._rows_hit += item.answers_seen < 0 and not item.rest
        if self._answers > item.answers_seen >= 0:
            item.server_failures += 1
        item.answers_seen = self._answers
        if item.rest:  # to halve a pack costs nobody anything
            return item.server_failures > 0
        share = (self._rows_hit - 1) / max(self._rows_asked - 1, 1)
        return item.server_failures >= _SERVER_FAILURES and share**item.server_failures < _CHANCE

    def _put_back(self, item: WorkItem) -> None:
        """Put an item behind some others, and behind more of them with each pause in vain.

        Among several rows that the server fails with, a good one must have its turn.
        """
        item.pack_closed = True
        self._fresh.insert(min(2 * max(self._pauses, 1), len(self._fresh)), item)

    def _outage(self, item: WorkItem, error: OllamaError, now: float) -> Verdict:
        noticed = item.generation == self.generation
        self._pauses += noticed
        self._put_back(item)
        if not noticed:
            return Verdict.AGAIN
        self.generation += 1
        self._outage_since = now if self._outage_since is None else self._outage_since
        last = self._outage_since + self.limits.max_outage
        if now >= last:
            return Verdict.STOP
        pause = min(_PAUSE * 2.0 ** min(self._pauses - 1, 9), _LONGEST_PAUSE)
        # However long a proxy or the user's own pace would have us wait: at the end of our patience we ask once more.
        self._paused_until = min(now + max(pause, error.retry_after or 0.0), last)
        self._next_send = min(self._next_send, last)
        self.pause = self._paused_until - now
        self._cap = 1
        while self._broken:
            when, broken = self._broken.pop()
            if now - when <= _SAME_OUTAGE and broken.attempts:
                broken.attempts -= 1
        return Verdict.AGAIN

    def hopeless(self) -> bool:
        """Tell whether so many rows that were asked failed, and none succeeded, that going on makes no sense."""
        asked = self.failed - self.unasked
        return not (self.ok or self.reused) and asked >= _HOPELESS and self.limits.too_many(asked, asked)


def _lasts(error: OllamaError) -> bool:
    """Tell whether the setup is at fault although it was right a moment ago: 403 may be a proxy's rule for one text."""
    return isinstance(error, QuotaError) or (isinstance(error, AuthenticationError) and error.status != 403)


# FROM batch.choice: Which rows are asked: what the journal knows of them decides, and what the user wants of this run.


class Choice(Enum):
    """What to do with a row that was just read."""

    RUN = auto()
    #: Its outcome is there, or on its way.
    REUSE = auto()
    #: Leave it alone: it has no outcome, and only failed rows were asked for.
    SKIP = auto()


def choose(state: State, mode: Mode) -> Choice:
    """Decide from what the journal knows of the row's key."""
    match state:
        case State.NEW:
            return Choice.RUN if mode == "all" else Choice.SKIP
        case State.FAILED_BEFORE:
            return Choice.REUSE if mode == "merge" else Choice.RUN
        case _:
            return Choice.REUSE
