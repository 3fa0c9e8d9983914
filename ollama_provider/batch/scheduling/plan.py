"""Decisions only: which request is sent next, to which server, and what follows from a failure.

No network and no clock: `now` is an argument. The workers carry the decisions out.

There are three kinds of failure, told apart by `Blame`:

* *The request's own.* The row goes to the end of the queue; after its last attempt it is a failed row. A crash of the
  model's process fails all requests that it was working on, so each of these rows is sent again with no other request
  in flight at its server, and only that attempt counts. It is sent to no third server.
* *The server's*, for a while: it is busy, down or restarting. All requests to it pause once, however many of them
  report it, and a slow start follows. No row loses an attempt. With other servers in service the row goes to them at
  once. Otherwise it is sent again soon, but not first: if the server fails with this row and with no other, the row is
  to blame after all.
* *The setup's*, such as a wrong path or model. Every row would fail alike, so the server is left out, and without
  another one the batch stops. Once a row was answered there, the setup was right a moment ago: then it is an outage as
  well (the error page of a proxy, a volume that is not mounted yet). Only refused credentials (401, 407) and quotas
  leave a server out at any time: waiting does not bring them back, and an account may be locked after several wrong
  attempts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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
from ollama_provider.batch.errors import ModelChangedError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling import tail
from ollama_provider.batch.scheduling.blame import BlameRules
from ollama_provider.batch.scheduling.queue import RowQueue
from ollama_provider.batch.scheduling.servers import InFlight, ServerState, others_in_service
from ollama_provider.batch.scheduling.steps import Do, Step, Verdict

#: With so many failed rows that were requested, and not one good row, the batch stops early.
_HOPELESS = 20


_IDLE = Step(Do.IDLE)


@dataclass
class Plan:
    """The queue of a batch, its servers, and the rules that order them.

    Attributes:
        failures: what is tried again, and what is tolerated.
        servers: those that rows may be sent to, in the order of the connection.
        interval: seconds between two requests at least (60 / requests_per_minute).
        closed: nothing more is sent; what is in flight may come back.
        queue: the rows that wait.
        ok, failed: rows with an outcome of this run.
        unrequested: of the failed ones, those that never became a request.
        reused: rows with a good result of an earlier run.
    """

    failures: FailurePolicy
    servers: Sequence[ServerState]
    interval: float = 0.0
    closed: bool = False
    queue: RowQueue = field(default_factory=RowQueue)
    ok: int = 0
    failed: int = 0
    unrequested: int = 0
    reused: int = 0
    _next_send: float = 0.0

    def __post_init__(self) -> None:
        self._blame = BlameRules(self.servers)

    @property
    def in_flight(self) -> int:
        """Requests sent for rows and not yet back."""
        return sum(len(server.in_flight) for server in self.servers)

    @property
    def sends(self) -> int:
        """Requests sent for rows in all."""
        return sum(server.sends for server in self.servers)

    @property
    def unfinished(self) -> int:
        """Rows, or packs of them, without an outcome."""
        return len(self.queue) + self.in_flight + sum(server.probed_for is not None for server in self.servers)

    def add_failed(self) -> None:
        """Count a row that failed before it could become a request."""
        self.failed += 1
        self.unrequested += 1

    # What is sent next.

    def next(self, server: ServerState, now: float, *, more: bool) -> Step:  # noqa: PLR0911  # one for each reason
        """Return what a worker of a server does now.

        Args:
            server: the server.
            now: seconds of a clock that never goes back.
            more: the input has more rows to come.
        """
        if now < server.paused_until and not self.closed:
            return Step(Do.WAIT, until=server.paused_until)
        if self.closed or not server.ready or server.left_out or server.is_full:
            return _IDLE
        if server.pauses_in_a_row and not server.probed and others_in_service(server, self.servers):
            server.probing = True
            return Step(Do.PROBE)
        if not self.queue.waiting_for(server):
            return self._rest_of_others(server, now, more=more)
        if now < self._next_send:
            return Step(Do.WAIT, until=self._next_send)
        queue = self.queue.next_for(
            server, now, more=more, answered=bool(self.ok), in_flight=len(server.in_flight) + server.probing
        )
        if queue is None:
            return Step(Do.WAIT, until=until) if (until := self.queue.retry_time(server)) and not more else _IDLE
        item = queue[0]
        if item.only not in (-1, server.index):
            self.queue.keep_for_others(queue, server)
            return self.next(server, now, more=more)
        if server.in_flight and (item.exclusive or server.exclusive_in_flight):
            return _IDLE
        if not more and len(self.servers) > 1 and self._leaves_to_others(server, item, now):
            return Step(Do.WAIT, until=server.declined_until)
        queue.popleft()
        if item.failed_at == server.index and item.answers_seen == server.answers:
            # The server failed with this item and has answered nothing since. A request that belongs to no row is sent
            # first. It tells a row that is to blame from a server that is down.
            server.probing, server.probed_for = True, item
            return Step(Do.PROBE, item=item)
        return self._send(server, item, now)

    def _send(self, server: ServerState, item: WorkItem, now: float) -> Step:
        self._blame.rows_sent += not item.sent
        if item.exclusive and len(self.servers) > 1:
            item.only = server.index
        if self.interval:
            self._next_send = max(now, self._next_send) + self.interval
        return Step(Do.SEND, server.send(item, now))

    def _leaves_to_others(self, server: ServerState, item: WorkItem, now: float) -> bool:
        """Return whether a server takes no row at the end of the batch, since others will sooner have finished all."""
        if item.only >= 0 or item.variant.fallback:
            return False
        waiting = self.queue.waiting_for(server)
        if now < server.declined_until and waiting <= server.declined:
            return True
        if tail.should_take(server, self.servers, waiting, now):
            return False
        server.declined, server.declined_until = waiting, tail.look_again(server, now)
        return True

    def _rest_of_others(self, server: ServerState, now: float, *, more: bool) -> Step:
        """Return what a server does for which no row waits: help with the last rows of others."""
        if more or len(self.servers) == 1 or (server.exclusive_in_flight and server.in_flight):
            return _IDLE
        if len(self.queue) and not any(other.in_flight or other.probing for other in self.servers):
            for other in self.servers:
                if not other.in_service:
                    self.queue.release(other.index)
            return self.next(server, now, more=more) if self.queue.waiting_for(server) else _IDLE
        if now < server.idle_until:
            return Step(Do.WAIT, until=server.idle_until)
        found = tail.overdue(server, self.servers, now)
        if not isinstance(found, InFlight):
            server.idle_until = found
            return Step(Do.WAIT, until=found) if found else _IDLE
        if now < self._next_send:
            return Step(Do.WAIT, until=self._next_send)
        return self._send(server, found.item, now)

    def fill(self, sent: InFlight, characters: int, *, more: bool) -> None:
        """Make a pack of the item that is about to be sent and new ones behind it.

        Args:
            sent: from `next`.
            characters: of the prompts of a pack at most; one item may have more.
            more: the input has more rows to come.
        """
        size, waiting, servers = sent.server.pack.size, len(self.queue.new) + 1, len(self.servers)
        if servers > 1 and not more and size * servers > waiting:  # the last rows are for all servers
            size = -(-waiting // (2 * servers))
        self.queue.fill(sent.item, size, characters)

    # What follows from a good reply.

    def succeeded(self, sent: InFlight, now: float, *, failed: int = 0) -> list[InFlight]:
        """Note a good reply; return the requests for the same row that are to be cancelled.

        Args:
            sent: the request.
            now: the time.
            failed: rows of its pack that failed all the same, since their result cannot be stored.
        """
        server, item = sent.server, sent.item
        server.remove(sent)
        good = len(item.pack) - failed
        server.ok += good
        server.failed += failed
        self.ok += good
        self._blame.rows_sent += len(item.rest)
        self.failed += failed
        server.crashes = 0
        server.answered(sent, now)
        return self._discard_others(item) if item.copies else []

    def _discard_others(self, item: WorkItem) -> list[InFlight]:
        others = [sent for server in self.servers for sent in server.in_flight if sent.item is item]
        for sent in others:
            sent.discarded = True
            sent.server.remove(sent)
            sent.server.discarded += 1
        return others

    def send_again(self, sent: InFlight, now: float) -> None:
        """Send another variant at once. That does not count as an attempt."""
        sent.server.remove(sent)
        sent.server.answered(sent, now)
        self.queue.new.appendleft(sent.item)

    def postpone(self, sent: InFlight, now: float) -> None:
        """Send another variant when nothing else is left: a second model may push the first one out of memory."""
        sent.server.remove(sent)
        sent.server.answered(sent, now)
        self.queue.postponed.append(sent.item)

    # What follows from a failure.

    def joined(self, server: ServerState) -> None:
        """Note that a server was checked and has the model in memory. Only the answer to a row ends an outage."""
        server.ready = server.probed = True

    def not_joined(self, server: ServerState, error: OllamaError | ModelChangedError, now: float) -> Verdict:
        """Decide what follows when the check of a server, or the load of its model, fails."""
        if isinstance(error, ModelChangedError) or error.blame is Blame.SETUP or not error.retryable:
            return self.leave_out(server, str(error))
        server.pauses_in_a_row += 1
        return self._pause(server, error, now)

    def leave_out(self, server: ServerState, reason: str) -> Verdict:
        """Send nothing to a server for the rest of the run. Without another one the batch stops."""
        if not server.left_out:
            server.left_out, server.reason = True, reason
            self._wake_idle()
            self.queue.release(server.index)
        return Verdict.STOP if all(other.left_out for other in self.servers) else Verdict.AGAIN

    def take_back(self, server: ServerState, answered: Iterable[tuple[WorkItem, Outcome]]) -> list[InFlight]:
        """Queue again what a server has answered, and what is in flight there, since its model is another one.

        Args:
            server: that is left out.
            answered: rows of it whose outcomes are discarded.

        Returns:
            The requests to cancel.
        """
        again = []
        for item, outcome in answered:
            good = outcome.status == "ok"
            server.ok -= good
            self.ok -= good
            server.failed -= not good
            self.failed -= not good
            server.tokens -= outcome.tokens or 0
            again.append(item)
        cancelled = list(server.in_flight)
        for sent in cancelled:
            sent.discarded = True
            server.remove(sent)
            if not sent.item.copies:
                again += sent.item.pack
        self.queue.new.extendleft(item.anew() for item in reversed(again))
        return cancelled

    def probe_succeeded(self, server: ServerState, item: WorkItem | None) -> None:
        """Note the answer to a request that belongs to no row. Only the answer to a row ends an outage."""
        server.probing, server.probed_for, server.probed = False, None, True
        server.answers += 1
        if item is not None:
            self.queue.new.appendleft(item)

    def probe_failed(self, server: ServerState, item: WorkItem | None, error: OllamaError, now: float) -> Verdict:
        """Decide what follows when a request that belongs to no row fails."""
        server.probing, server.probed_for = False, None
        server.pauses_in_a_row += 1
        if item is not None:
            self._put_back(item, server)
        return self.leave_out(server, str(error)) if _is_permanent(error) else self._pause(server, error, now)

    def failure(self, sent: InFlight, error: OllamaError, now: float, *, final: bool = False) -> Verdict:
        """Decide what follows from a failed attempt.

        Args:
            sent: the request.
            error: of the attempt.
            now: seconds of a clock that never goes back.
            final: another attempt would not help.
        """
        server, item = sent.server, sent.item
        server.remove(sent)
        if item.variant.fallback and isinstance(error, BrokenModelError):
            # Only this row needs the fallback model, so a broken one does not stop the batch.
            return self._own_failure(sent, error, now, final=True)
        if server.left_out or (error.blame is Blame.SETUP and (not server.ok or _is_permanent(error))):
            self._send_next(item)
            return self.leave_out(server, str(error))
        if self._blame.is_of_server(sent, error):
            return self._server_failure(sent, error, now)
        if isinstance(error, TransportError) and sent.pause_count != server.pause_count:
            # It was sent before the outage that is paused for, and was cut by it.
            self._send_next(item)
            return Verdict.AGAIN
        if error.blame is Blame.REQUEST and not isinstance(error, TransportError):
            server.answered(sent, now)
        return self._own_failure(sent, error, now, final=final or self._blame.has_failed_servers(item))

    def _own_failure(self, sent: InFlight, error: OllamaError, now: float, *, final: bool) -> Verdict:
        server, item = sent.server, sent.item
        if item.copies:  # what comes from the other server decides
            return Verdict.AGAIN
        if item.rest:
            self.queue.halve(item)
            return Verdict.AGAIN
        others_in_flight = not sent.alone or sent.number != server.sends
        if others_in_flight and isinstance(error, RunnerError | OutOfMemoryError):
            item.exclusive = True
            self.queue.retries.append(item)
            return Verdict.AGAIN
        item.attempts += 1
        allowed = min(self.failures.max_attempts, error.max_attempts or self.failures.max_attempts)
        if error.retryable and item.attempts < allowed and not final:
            item.not_before = now + self.failures.retry_delay
            self.queue.retries.append(item)
            if isinstance(error, TransportError):
                server.note_cut(item, now)
            return Verdict.AGAIN
        server.failed += 1
        self.failed += 1
        return Verdict.FAILED

    def _server_failure(self, sent: InFlight, error: OllamaError, now: float) -> Verdict:
        server, item = sent.server, sent.item
        known = item.server_failures and not isinstance(error, OverloadedError | UnreachableError)
        if known and server.outage_since is None:
            # It failed before, and other rows were answered since: no pause for this one.
            self._put_back(item, server)
            return Verdict.AGAIN
        noticed = sent.pause_count == server.pause_count
        server.pauses_in_a_row += noticed
        self._put_back(item, server)
        return self._pause(server, error, now) if noticed else Verdict.AGAIN

    def _put_back(self, item: WorkItem, server: ServerState) -> None:
        """Put an item behind some others, and behind more of them with each pause that did not help.

        If the server fails with several rows, a good one among them must be sent, too. Other servers get it at once.
        """
        if item.copies:
            return
        others = others_in_service(server, self.servers)
        self.queue.put_back(item, 0 if others else 2 * max(server.pauses_in_a_row, 1))

    def _send_next(self, item: WorkItem) -> None:
        if not item.copies:
            self.queue.new.appendleft(item)

    def _pause(self, server: ServerState, error: OllamaError, now: float) -> Verdict:
        """Send nothing to a server for a while. Without any server for too long the batch stops."""
        self._wake_idle()
        server.begin_outage(now, str(error))
        taking_part = [other for other in self.servers if not other.left_out]
        all_out = all(other.outage_since is not None for other in taking_part)
        since = max(other.outage_since or 0.0 for other in taking_part) if all_out else now
        last = since + self.failures.max_outage
        if now >= last:
            return Verdict.STOP
        if all_out:
            # Neither Retry-After nor the user's own pace delays the last request beyond max_outage.
            self._next_send = min(self._next_send, last)
        server.begin_pause(now, error.retry_after or 0.0, last, others=others_in_service(server, self.servers))
        for item in server.cut_by_outage(now):
            item.attempts = max(0, item.attempts - 1)
            if len(self.servers) > 1:
                self._blame.note_server_failed(item, server, error)
        return Verdict.AGAIN

    def _wake_idle(self) -> None:
        """Let servers without work look at once whether they can help with the rows of one that has failed."""
        for server in self.servers:
            server.idle_until = 0.0

    def hopeless(self) -> bool:
        """Return whether the batch should stop early: many requested rows failed, and no row has ever been good."""
        requested = self.failed - self.unrequested
        return not (self.ok or self.reused) and requested >= _HOPELESS and self.failures.too_many(requested, requested)


def _is_permanent(error: OllamaError) -> bool:
    """Return whether waiting does not help. A 403 may be a proxy's rule for one text, so it does not count."""
    return isinstance(error, QuotaError) or (isinstance(error, AuthenticationError) and error.status != 403)
