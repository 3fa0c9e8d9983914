"""One server as the plan sees it: what is in flight there, whether it is out of service, and how fast it answers.

No network and no clock: `now` is an argument, seconds of a clock that never goes back.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ollama_provider.batch.records import ServerShare
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize

#: Seconds of the first pause. Each one without an answer in between is twice as long as the one before.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
#: The longest pause while others are in service: no row is sent to find out that the server is back.
_LONGEST_WITH_OTHERS = 5.0
#: A reply that was cut so many seconds before an outage was noticed was cut by that outage.
_SAME_OUTAGE = 5.0
#: Answers over which the time of a request is averaged.
_ANSWERS = 32


@dataclass(slots=True, eq=False, repr=False)
class InFlight:
    """A request in flight. It has no text of its own, since that would hold the prompt.

    Attributes:
        item: what was sent.
        server: where it was sent.
        sent_at: when.
        alone: no other request was in flight at the server when it was sent.
        number: the server's count of requests when it was sent.
        pause_count: pauses of the server when it was sent.
        target: the server's concurrency when it was sent.
        answers: the server's count of answers when it was sent.
        discarded: another server answered first: whatever comes of this request is ignored.
    """

    item: WorkItem
    server: "ServerState"
    sent_at: float
    alone: bool
    number: int
    pause_count: int
    target: int
    answers: int
    discarded: bool = False


@dataclass(eq=False)
class ServerState:
    """What is known of a server during a run.

    Attributes:
        index: its place in the connection's list, from 0.
        name: base URL, without credentials.
        concurrency: how many requests may be in flight.
        pack: how many texts share a request.
        ready: it was checked and has the model in memory, so rows may be sent.
        left_out: no row is sent to it for the rest of the run.
        reason: why it is left out or out of service; empty if it is not.
        in_flight: requests sent and not yet back, oldest first.
        probing: a request that is no row's is in flight, which tells whether the server works.
        probed_for: the item that waits for that answer; None if the request is only about the server.
        probed: it was answered since the last pause.
        exclusive_in_flight: the item in flight must be the only one.
        asks_fallback: it is being asked for answers of the fallback model.
        sends: requests sent for rows.
        ok, failed: rows with an outcome from here.
        tokens: generated for them.
        discarded: requests whose row was answered by another server first.
        answers: replies that show that it works.
        crashes: of the model with different rows, since the last good reply.
        crashed_at: the count of requests at the last crash.
        crashed_with: the row of the last crash.
        pause_count: pauses so far. A failure that was sent before the last pause began causes none of its own.
        pauses_in_a_row: pauses since the last answer.
        paused_until: when the pause ends.
        pause: seconds of the last pause, as long as it really is; 0 once it has answered since.
        outage_since: when the outage began that goes on now; None if there is none.
        declined: how many rows waited when it left them to faster servers.
        declined_until: when it decides anew.
        idle_until: when the first request of another server may be overdue, if nothing else happens.
        row_seconds: that a row takes while it is worked on; 0 if unknown.
        queued_share: share of the time of a request that it waits for a slot.
    """

    index: int
    name: str
    concurrency: ConcurrencyLimit
    pack: PackSize
    ready: bool = True
    left_out: bool = False
    reason: str = ""
    in_flight: dict[InFlight, None] = field(default_factory=dict)
    probing: bool = False
    probed_for: WorkItem | None = None
    probed: bool = False
    exclusive_in_flight: bool = False
    asks_fallback: bool = False
    sends: int = 0
    ok: int = 0
    failed: int = 0
    tokens: int = 0
    discarded: int = 0
    answers: int = 0
    crashes: int = 0
    crashed_at: int = 0
    crashed_with: WorkItem | None = None
    pause_count: int = 0
    pauses_in_a_row: int = 0
    paused_until: float = 0.0
    pause: float = 0.0
    outage_since: float | None = None
    declined: int = 0
    declined_until: float = 0.0
    idle_until: float = 0.0
    row_seconds: float = 0.0
    queued_share: float = 0.0
    _outage_seconds: float = 0.0
    _measured: int = 0
    #: Requests that may be in flight after a pause; None without a limit.
    _slow_start: int | None = None
    _recently_cut: deque[tuple[float, WorkItem]] = field(default_factory=lambda: deque(maxlen=256))

    @property
    def in_flight_limit(self) -> int:
        """Requests that may be in flight: fewer than the concurrency just after a pause."""
        target = self.concurrency.target
        return target if self._slow_start is None else min(self._slow_start, target)

    @property
    def in_service(self) -> bool:
        """Rows may be sent, and it answers as far as is known."""
        return self.ready and self.outage_since is None and not self.left_out

    @property
    def is_full(self) -> bool:
        """As many requests are in flight as may be."""
        return len(self.in_flight) + self.probing >= self.in_flight_limit

    def outage_seconds(self, now: float) -> float:
        """Return for how long it was out of service, in all."""
        return self._outage_seconds + (0.0 if self.outage_since is None else now - self.outage_since)

    def share(self, now: float, seconds: float) -> ServerShare:
        """Return what it did so far, in so many *seconds* of the run."""
        takes_rows = self.ready and not self.left_out
        return ServerShare(
            server=self.name,
            rows=self.ok + self.failed,
            tokens=self.tokens,
            tokens_per_second=round(self.tokens / seconds, 1) if seconds > 0 else 0.0,
            concurrency=self.in_flight_limit if takes_rows else 0,
            seconds_out=round(self.outage_seconds(now), 1),
            discarded=self.discarded,
            reason=self.reason,
        )

    def send(self, item: WorkItem, now: float) -> InFlight:
        """Note that an item is sent."""
        self.sends += 1
        sent = InFlight(
            item, self, now, not self.in_flight, self.sends, self.pause_count, self.concurrency.target, self.answers
        )
        self.exclusive_in_flight = item.exclusive
        item.sent = True
        item.copies += 1
        self.in_flight[sent] = None
        return sent

    def remove(self, sent: InFlight) -> None:
        """Note that a request is in flight no more."""
        del self.in_flight[sent]
        sent.item.copies -= 1

    def answered(self, sent: InFlight, now: float) -> None:
        """Note that it works: an outage is over, and twice as many requests may be in flight."""
        self.answers += 1
        if sent.pause_count != self.pause_count:
            return
        self._outage_seconds, self.outage_since = self.outage_seconds(now), None
        self.pauses_in_a_row = 0
        self.pause, self.reason = 0.0, ""
        if self._slow_start is not None:
            self._slow_start = 2 * self._slow_start if self._slow_start < 1 << 16 else None

    def begin_outage(self, now: float, reason: str) -> None:
        """Note that it is out of service, from now on or still."""
        self.pause_count += 1
        self.reason = reason
        self.outage_since = now if self.outage_since is None else self.outage_since

    def begin_pause(self, now: float, retry_after: float, last: float, *, others: bool) -> None:
        """Send nothing for a while.

        Args:
            now: the time.
            retry_after: seconds that the server asked for; 0 if it did not.
            last: when the pause ends at the latest.
            others: other servers are in service.
        """
        longest = _LONGEST_WITH_OTHERS if others else _LONGEST_PAUSE
        pause = min(_PAUSE * 2.0 ** min(self.pauses_in_a_row - 1, 9), longest)
        self.paused_until = min(now + max(pause, retry_after), last)
        self.pause = self.paused_until - now
        self._slow_start = 1
        self.probed = False

    def note_cut(self, item: WorkItem, now: float) -> None:
        """Remember that a reply was cut: an outage may turn out to be the reason."""
        while self._recently_cut and now - self._recently_cut[0][0] > _SAME_OUTAGE:
            self._recently_cut.popleft()
        self._recently_cut.append((now, item))

    def cut_by_outage(self, now: float) -> list[WorkItem]:
        """Return the items whose replies were cut by the outage that was just noticed."""
        items = [item for when, item in self._recently_cut if now - when <= _SAME_OUTAGE]
        self._recently_cut.clear()
        return items

    def observe(self, sent: InFlight, seconds: float, queued: float, rows: int, tokens: int | None) -> None:
        """Measure an answered request.

        Args:
            sent: the request.
            seconds: from sending to the last token.
            queued: seconds of these that it waited for a slot, as the server says; 0 if it does not.
            rows: that it answered.
            tokens: that it generated for the first of them; None if the server does not say.
        """
        self.pack.observe(rows, seconds)
        if sent.item.variant.fallback:
            return
        self.concurrency.observe(sent.target, seconds, queued, tokens)
        self._measured += 1
        weight = 1 / min(self._measured, _ANSWERS)
        queued = min(queued, seconds)
        self.row_seconds += weight * ((seconds - queued) / rows - self.row_seconds)
        self.queued_share += weight * (queued / max(seconds, 1e-9) - self.queued_share)


def others_in_service(server: ServerState, servers: Sequence[ServerState]) -> bool:
    """Return whether rows of a server can go to another one."""
    return any(other.in_service for other in servers if other is not server)
