"""Decisions only: which rows need a request, which request is sent next, and what follows from a failure.

No network and no clock: `now` is an argument. The workers carry the decisions out.

There are three kinds of failure, told apart by `Blame`:

* *The request's own.* The row goes to the end of the queue; after its last attempt it is a failed row. A crash of the
  model's process fails all requests that it was working on, so each of these rows is sent again with no other request
  in flight, and only that attempt counts.
* *The server's*, for a while: it is busy, down or restarting. All requests pause once, however many of them report it,
  and a slow start follows. No row loses an attempt. The row that met the failure is sent again soon, but not first: if
  the server fails with this row and with no other, the row is to blame after all.
* *The setup's*, such as a wrong path or model. Every row would fail alike, so the batch stops at once. Once a row was
  answered, the setup was right a moment ago: then it is an outage as well (the error page of a proxy, a volume that is
  not mounted yet). Only refused credentials (401, 407) and quotas stop the batch at any time: waiting does not bring
  them back, and an account may be locked after several wrong attempts.
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
from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.records import Mode
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.store.journal import State

#: Seconds of the first pause. Each one without an answer in between is twice as long as the one before.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
#: A row is to blame itself after so many failures of the server with it, if the server answers other rows in between;
#: and only if so many in a row are less probable than this, given the share of other rows that the server failed with.
_SERVER_FAILURES, _CHANCE = 5, 1e-6
#: With so many failed rows that were requested, and not one good row, the batch stops early.
_HOPELESS = 20
#: With so many rows waiting for another attempt, the first of them is sent before new rows.
_MANY = 1000
#: A reply that was cut so many seconds before an outage was noticed was cut by that outage.
_SAME_OUTAGE = 5.0


class Choice(Enum):
    """What to do with a row that was just read."""

    RUN = auto()
    #: Its outcome is known, or its request is queued already.
    REUSE = auto()
    #: Leave it alone: it has no outcome, and only failed rows are to be requested.
    SKIP = auto()


def choose(state: State, mode: Mode) -> Choice:
    """Return what to do with a row, from what the journal knows of its key."""
    match state:
        case State.NEW:
            return Choice.RUN if mode == "all" else Choice.SKIP
        case State.FAILED_BEFORE:
            return Choice.REUSE if mode == "merge" else Choice.RUN
        case _:
            return Choice.REUSE


class Do(Enum):
    """What a worker does now."""

    SEND = auto()
    #: Wait until `Step.until`, or for a change.
    WAIT = auto()
    #: Wait for a change: more rows from the input, or the end of a request.
    IDLE = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """What a worker does now.

    Attributes:
        do: the kind of step.
        item: to be sent.
        until: time to wait for, of the clock that `Plan.next` was given; 0 is no such time.
    """

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
    """The queue of a batch and the rules that order it.

    Attributes:
        failures: what is tried again, and what is tolerated.
        interval: seconds between two requests at least (60 / requests_per_minute).
        closed: nothing more is sent; what is in flight may come back.
        ok, failed: rows with an outcome of this run.
        unrequested: of the failed ones, those that never became a request.
        reused: rows with a good result of an earlier run.
        pause_count: pauses so far. A failure that was sent before the last pause began causes none of its own.
        in_flight: requests sent and not yet back.
        sends: requests sent in all.
        pause: seconds of the last pause, as long as it really is; 0 once the server has answered since.
    """

    failures: FailurePolicy
    interval: float = 0.0
    closed: bool = False
    ok: int = 0
    failed: int = 0
    unrequested: int = 0
    reused: int = 0
    pause_count: int = 0
    in_flight: int = 0
    sends: int = 0
    pause: float = 0.0
    #: Never sent, or only into an outage.
    _new: deque[WorkItem] = field(default_factory=deque)
    #: Failed by themselves, and to be sent once more.
    _retries: deque[WorkItem] = field(default_factory=deque)
    #: For the fallback model, which is used last.
    _postponed: deque[WorkItem] = field(default_factory=deque)
    _sending_postponed: bool = False
    _paused_until: float = 0.0
    _pauses_in_a_row: int = 0
    _answers: int = 0
    _rows_sent: int = 0
    _rows_hit: int = 0
    _outage_since: float | None = None
    #: Requests that may be in flight after a pause; None without a limit.
    _slow_start: int | None = None
    _next_send: float = 0.0
    _exclusive_in_flight: bool = False
    _recently_cut: deque[tuple[float, WorkItem]] = field(default_factory=lambda: deque(maxlen=256))

    @property
    def queued(self) -> int:
        """Items that wait to be sent, for the first time or again."""
        return len(self._new) + len(self._retries) + len(self._postponed)

    @property
    def queued_new(self) -> int:
        """Items that were never sent, or only into an outage."""
        return len(self._new)

    @property
    def unfinished(self) -> int:
        """Items without an outcome."""
        return self.queued + self.in_flight

    def in_flight_limit(self, concurrency: int) -> int:
        """Return how many requests may be in flight: *concurrency*, or fewer just after a pause."""
        return concurrency if self._slow_start is None else min(self._slow_start, concurrency)

    def add(self, item: WorkItem) -> None:
        """Put a new item at the end of the queue."""
        self._new.append(item)

    def add_failed(self) -> None:
        """Count a row that failed before it could become a request."""
        self.failed += 1
        self.unrequested += 1

    def next(self, now: float, concurrency: int, *, more: bool) -> Step:
        """Return what a worker does now.

        Args:
            now: seconds of a clock that never goes back.
            concurrency: requests that may be in flight.
            more: the input has more rows to come.
        """
        if now < self._paused_until and not self.closed:
            return Step(Do.WAIT, until=self._paused_until)
        if self.closed or not self.queued or self.in_flight >= self.in_flight_limit(concurrency):
            return Step(Do.IDLE)
        if now < self._next_send:
            return Step(Do.WAIT, until=self._next_send)
        queue = self._queue(now, more=more)
        if queue is None:
            return Step(Do.WAIT, until=self._retries[0].not_before) if self._retries and not more else Step(Do.IDLE)
        if self.in_flight and (queue[0].exclusive or self._exclusive_in_flight):
            return Step(Do.IDLE)
        item = queue.popleft()
        self.sends += 1
        self._rows_sent += not item.send_number
        self._exclusive_in_flight = item.exclusive
        item.sent_alone, item.send_number = not self.in_flight, self.sends
        item.pause_count = self.pause_count
        self.in_flight += 1
        if self.interval:
            self._next_send = max(now, self._next_send) + self.interval
        return Step(Do.SEND, item)

    def _queue(self, now: float, *, more: bool) -> "deque[WorkItem] | None":
        if self._postponed_are_due(more=more):
            return self._postponed
        enough = _MANY if self.ok else _HOPELESS
        if self._new and len(self._retries) < enough:
            return self._new
        if self._retries and self._retries[0].not_before <= now and (not more or len(self._retries) >= enough):
            return self._retries
        return self._new or None

    def _postponed_are_due(self, *, more: bool) -> bool:
        """Return whether postponed items are sent now: all of them, once nothing else is left or they are many."""
        if not self._postponed:
            self._sending_postponed = False
        elif len(self._postponed) >= _MANY or not (more or self._new or self._retries or self.in_flight):
            self._sending_postponed = True
        return self._sending_postponed

    def fill(self, item: WorkItem, size: int, characters: int) -> None:
        """Make a pack of the item that is about to be sent and new ones behind it.

        Args:
            item: from `next`.
            size: items of the pack at most.
            characters: of their prompts at most; one item may have more.
        """
        if item.rest or item.pack_closed or item.exclusive:
            return
        rest: list[WorkItem] = []
        characters -= len(item.prompt)
        while self._new and len(rest) < size - 1:
            other = self._new[0]
            characters -= len(other.prompt)
            if other.pack_closed or other.rest or other.exclusive or characters < 0:
                break
            rest.append(self._new.popleft())
        item.rest = tuple(rest)

    def _halve(self, item: WorkItem) -> None:
        """Send a pack again as two. So a bad row is found in a few steps, and no other row loses an attempt."""
        pack = (item, *item.rest)
        middle = (len(pack) + 1) // 2
        for first, *rest in (pack[middle:], pack[:middle]):
            first.rest, first.pack_closed = tuple(rest), True
            self._new.appendleft(first)

    def succeeded(self, item: WorkItem, *, failed: int = 0) -> None:
        """Note a good reply.

        Args:
            item: that was sent.
            failed: rows of its pack that failed all the same, since their result cannot be stored.
        """
        self.in_flight -= 1
        self.ok += 1 + len(item.rest) - failed
        self._rows_sent += len(item.rest)
        self.failed += failed
        self._answered(item)

    def _answered(self, item: WorkItem) -> None:
        """Note that the server answers: an outage is over, and twice as many requests may be in flight."""
        self._answers += 1
        if item.pause_count == self.pause_count:
            self._outage_since = None
            self._pauses_in_a_row = 0
            self.pause = 0.0
            if self._slow_start is not None:
                self._slow_start = 2 * self._slow_start if self._slow_start < 1 << 16 else None

    def send_again(self, item: WorkItem) -> None:
        """Send another variant at once. That does not count as an attempt."""
        self.in_flight -= 1
        self._answered(item)
        self._new.appendleft(item)

    def postpone(self, item: WorkItem) -> None:
        """Send another variant when nothing else is left: a second model may push the first one out of memory."""
        self.in_flight -= 1
        self._answered(item)
        self._postponed.append(item)

    def needs_probe(self, item: WorkItem) -> bool:
        """Return whether the server failed with this item and has answered nothing since.

        Then a request that belongs to no row is sent first. It tells a row that is to blame from a server that is down.
        """
        return item.answers_seen == self._answers

    def probe_succeeded(self) -> None:
        """Note the answer to a request that belongs to no row. Only the answer to a row ends an outage."""
        self._answers += 1

    def probe_failed(self, item: WorkItem, error: OllamaError, now: float) -> Verdict:
        """Decide what follows when a request that belongs to no row fails before *item* is sent; see `failure`."""
        self.in_flight -= 1
        return Verdict.STOP if _is_permanent(error) else self._outage(item, error, now)

    def failure(self, item: WorkItem, error: OllamaError, now: float, *, final: bool = False) -> Verdict:
        """Decide what follows from a failed attempt.

        Args:
            item: that was sent.
            error: of the attempt.
            now: seconds of a clock that never goes back.
            final: another attempt would not help.
        """
        self.in_flight -= 1
        if item.variant.fallback and isinstance(error, BrokenModelError):
            # Only this row needs the fallback model, so a broken one does not stop the batch.
            return self._own_failure(item, error, now, final=True)
        if error.blame is Blame.SETUP and (not self.ok or _is_permanent(error)):
            return Verdict.STOP
        if error.blame is not Blame.REQUEST and not self._row_is_to_blame(item, error):
            known = item.server_failures and not isinstance(error, OverloadedError | UnreachableError)
            if known and self._outage_since is None:
                # It failed before, and other rows were answered since: no pause for this one.
                self._put_back(item)
                return Verdict.AGAIN
            return self._outage(item, error, now)
        if isinstance(error, TransportError) and item.pause_count != self.pause_count:
            # It was sent before the outage that is paused for, and was cut by it.
            self._new.appendleft(item)
            return Verdict.AGAIN
        if error.blame is Blame.REQUEST and not isinstance(error, TransportError):
            self._answered(item)
        return self._own_failure(item, error, now, final=final)

    def _own_failure(self, item: WorkItem, error: OllamaError, now: float, *, final: bool) -> Verdict:
        if item.rest:
            self._halve(item)
            return Verdict.AGAIN
        others_in_flight = not item.sent_alone or item.send_number != self.sends
        if others_in_flight and isinstance(error, RunnerError | OutOfMemoryError):
            item.exclusive = True
            self._retries.append(item)
            return Verdict.AGAIN
        item.attempts += 1
        allowed = min(self.failures.max_attempts, error.max_attempts or self.failures.max_attempts)
        if error.retryable and item.attempts < allowed and not final:
            item.not_before = now + self.failures.retry_delay
            self._retries.append(item)
            if isinstance(error, TransportError):
                self._recently_cut.append((now, item))
            return Verdict.AGAIN
        self.failed += 1
        return Verdict.FAILED

    def _row_is_to_blame(self, item: WorkItem, error: OllamaError) -> bool:
        """Return whether the server fails because of this row: again and again with it, far more than with others."""
        if isinstance(error, OverloadedError):  # no row makes a server busy
            return False
        self._rows_hit += item.answers_seen < 0 and not item.rest
        if self._answers > item.answers_seen >= 0:
            item.server_failures += 1
        item.answers_seen = self._answers
        if item.rest:  # a pack is only halved, which costs no attempt
            return item.server_failures > 0
        share = (self._rows_hit - 1) / max(self._rows_sent - 1, 1)
        return item.server_failures >= _SERVER_FAILURES and share**item.server_failures < _CHANCE

    def _put_back(self, item: WorkItem) -> None:
        """Put an item behind some others, and behind more of them with each pause that did not help.

        If the server fails with several rows, a good one among them must be sent, too.
        """
        item.pack_closed = True
        self._new.insert(min(2 * max(self._pauses_in_a_row, 1), len(self._new)), item)

    def _outage(self, item: WorkItem, error: OllamaError, now: float) -> Verdict:
        noticed = item.pause_count == self.pause_count
        self._pauses_in_a_row += noticed
        self._put_back(item)
        if not noticed:
            return Verdict.AGAIN
        self.pause_count += 1
        self._outage_since = now if self._outage_since is None else self._outage_since
        last = self._outage_since + self.failures.max_outage
        if now >= last:
            return Verdict.STOP
        pause = min(_PAUSE * 2.0 ** min(self._pauses_in_a_row - 1, 9), _LONGEST_PAUSE)
        # Neither Retry-After nor the user's own pace delays the last request beyond max_outage.
        self._paused_until = min(now + max(pause, error.retry_after or 0.0), last)
        self._next_send = min(self._next_send, last)
        self.pause = self._paused_until - now
        self._slow_start = 1
        while self._recently_cut:
            when, cut = self._recently_cut.pop()
            if now - when <= _SAME_OUTAGE and cut.attempts:
                cut.attempts -= 1
        return Verdict.AGAIN

    def hopeless(self) -> bool:
        """Return whether the batch should stop early: many requested rows failed, and no row has ever been good."""
        requested = self.failed - self.unrequested
        return not (self.ok or self.reused) and requested >= _HOPELESS and self.failures.too_many(requested, requested)


def _is_permanent(error: OllamaError) -> bool:
    """Return whether waiting does not help. A 403 may be a proxy's rule for one text, so it does not count."""
    return isinstance(error, QuotaError) or (isinstance(error, AuthenticationError) and error.status != 403)
