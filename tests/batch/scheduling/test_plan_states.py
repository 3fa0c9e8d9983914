"""Whatever the order of answers, failures, pauses and stops at several servers: every row ends exactly once."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ollama_provider.api.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectionBrokenError,
    ContextLengthError,
    FirstTokenTimeoutError,
    GatewayError,
    IdleTimeoutError,
    IncompleteReplyError,
    InvalidOutputError,
    ModelNotFoundError,
    NotOllamaError,
    OutOfMemoryError,
    OverloadedError,
    QuotaError,
    RunnerError,
    UnforeseenError,
    UnknownServerError,
    UnreachableError,
)
from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.requests.work_item import Variant, WorkItem
from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.servers import ServerState
from ollama_provider.batch.scheduling.steps import Do, Verdict

ERRORS = [
    BadRequestError("no"),
    ConnectionBrokenError("reset"),
    ContextLengthError("too long"),
    FirstTokenTimeoutError("silent"),
    GatewayError("502"),
    IdleTimeoutError("stalled"),
    IncompleteReplyError("cut"),
    InvalidOutputError("prose"),
    NotOllamaError("a page", status=200),
    OutOfMemoryError("cuda"),
    OverloadedError("busy"),
    OverloadedError("busy", retry_after=20.0),
    RunnerError("crashed"),
    UnforeseenError("a bug"),
    UnknownServerError("500"),
    UnreachableError("refused"),
]
FINAL = [AuthenticationError("no", status=401), ModelNotFoundError("gone", status=404), QuotaError("limit")]
ATTEMPTS = 3


def pick(data, choices):
    """Draw one of several things whose text changes, which Hypothesis could not repeat."""
    return choices[data.draw(st.integers(0, len(choices) - 1))]


class PlanMachine(RuleBasedStateMachine):
    """A plan with one to three servers; the rules are what may happen to it."""

    @initialize(
        servers=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.1, 2.0])), min_size=1, max_size=3),
        rows=st.integers(0, 7),
        more=st.booleans(),
        pack=st.sampled_from([1, 1, 3]),
        interval=st.sampled_from([0.0, 0.0, 0.5]),
    )
    def begin(self, servers, rows, more, pack, interval):
        self.servers = [
            ServerState(
                index,
                f"http://gpu{index}",
                ConcurrencyLimit.fixed(slots),
                PackSize(pack, settled=True),
                row_seconds=seconds,
            )
            for index, (slots, seconds) in enumerate(servers)
        ]
        self.plan = Plan(FailurePolicy(max_attempts=ATTEMPTS, retry_delay=1.0), self.servers, interval)
        self.now, self.more, self.rows, self.stopped = 0.0, True, 0, False
        self.ends = Counter()
        self.probes = []
        self.read(rows, not more)

    # What may happen.

    @precondition(lambda self: self.more and not self.stopped)
    @rule(count=st.integers(1, 5), last=st.booleans())
    def read(self, count, last):
        for _ in range(count):
            self.plan.queue.new.append(WorkItem(self.rows, "prompt"))
            self.rows += 1
        self.more = not last

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 7.0, 40.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @precondition(lambda self: not self.stopped)
    @rule(data=st.data())
    def take_one(self, data):
        self.take(pick(data, self.servers))

    @precondition(lambda self: not self.stopped)
    @rule(data=st.data())
    def take_all(self, data):
        server = pick(data, self.servers)
        while self.take(server).do in {Do.SEND, Do.PROBE}:
            pass

    @precondition(lambda self: not self.stopped and self.in_flight())
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def fail_at_once(self, data, error):
        """All requests at a server fail alike, as if it had crashed."""
        server = pick(data, self.in_flight()).server
        for sent in list(server.in_flight):
            if not self.stopped:
                self.judge(sent, error)

    def take(self, server):
        """Let a worker of a server do what the plan says."""
        step = self.plan.next(server, self.now, more=self.more)
        if step.do in {Do.SEND, Do.PROBE}:
            assert not self.plan.closed
            assert not server.left_out
            assert self.now >= server.paused_until
        if step.do is Do.PROBE:
            self.probes.append((server, step.item))
        if step.do is Do.SEND:
            self.plan.fill(step.sent, 1 << 20, more=self.more)
            assert len(server.in_flight) <= server.concurrency.target
            assert not any(sent.item.exclusive for sent in server.in_flight) or len(server.in_flight) == 1
            assert step.sent.item.copies <= 2
            assert all(item.attempts < ATTEMPTS for item in step.sent.item.pack)
        return step

    def in_flight(self):
        return [sent for server in self.servers for sent in server.in_flight]

    @precondition(lambda self: not self.stopped and self.in_flight())
    @rule(data=st.data(), seconds=st.sampled_from([0.1, 2.0]))
    def answer(self, data, seconds):
        self.succeed(pick(data, self.in_flight()), seconds)

    def succeed(self, sent, seconds=0.1):
        sent.server.observe(sent, seconds, 0.0, len(sent.item.pack), 10)
        for item in sent.item.pack:
            self.ends[item.number] += 1
        for other in self.plan.succeeded(sent, self.now):
            assert other.item is sent.item
            assert other.discarded

    @precondition(lambda self: not self.stopped and self.in_flight())
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def fail(self, data, error):
        self.judge(pick(data, self.in_flight()), error)

    @precondition(lambda self: not self.stopped and self.in_flight())
    @rule()
    def stall(self):
        """Nothing is answered for long, so servers without work may send copies."""
        self.more, self.now = False, self.now + 40.0
        for server in self.servers:
            self.take(server)

    def copies(self):
        return [sent for sent in self.in_flight() if sent.item.copies > 1]

    @precondition(lambda self: not self.stopped and self.copies())
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def fail_a_copy(self, data, error):
        self.judge(pick(data, self.copies()), error)

    @precondition(lambda self: not self.stopped and self.in_flight())
    @rule(data=st.data(), error=st.sampled_from(FINAL))
    def refuse(self, data, error):
        self.judge(pick(data, self.in_flight()), error)

    def judge(self, sent, error):
        match self.plan.failure(sent, error, self.now):
            case Verdict.FAILED:
                assert not sent.item.rest
                self.ends[sent.item.number] += 1
            case Verdict.STOP:
                self.stopped = True

    @precondition(lambda self: not self.stopped and self.in_flight())
    @rule(data=st.data(), fallback=st.booleans())
    def ask_otherwise(self, data, fallback):
        sent = pick(data, self.in_flight())
        if sent.item.copies > 1 or sent.item.rest:
            return
        (self.plan.postpone if fallback else self.plan.send_again)(sent, self.now)
        sent.item.variant = Variant(fallback=fallback)

    @precondition(lambda self: not self.stopped and self.probes)
    @rule(data=st.data(), error=st.sampled_from([None, *ERRORS, FINAL[0]]))
    def end_probe(self, data, error):
        self.finish_probe(self.probes.pop(data.draw(st.integers(0, len(self.probes) - 1))), error)

    def finish_probe(self, probe, error=None):
        server, item = probe
        if error is None:
            self.plan.probe_succeeded(server, item)
        elif self.plan.probe_failed(server, item, error, self.now) is Verdict.STOP:
            self.stopped = True

    @precondition(lambda self: not self.stopped and sum(not server.left_out for server in self.servers) > 1)
    @rule(data=st.data())
    def leave_out(self, data):
        self.plan.leave_out(pick(data, self.servers), "another digest")

    # What must hold.

    @invariant()
    def every_row_is_in_one_place(self):
        if not hasattr(self, "plan"):
            return
        places = Counter(self.ends)
        queue = self.plan.queue
        waiting = [*queue.new, *queue.retries, *queue.postponed, *(item for own in queue.own.values() for item in own)]
        waiting += [item for _, item in self.probes if item is not None]
        sent = {id(sent.item): sent.item for sent in self.in_flight()}.values()
        for item in (*waiting, *sent):
            places.update(each.number for each in item.pack)
        assert places == Counter(range(self.rows))

    def teardown(self):
        """From here on everything works: all rows get their outcome, and soon."""
        if not hasattr(self, "plan") or self.stopped or all(server.left_out for server in self.servers):
            return
        self.more = False
        while self.probes:
            self.finish_probe(self.probes.pop())
        end = self.now + 3600
        while self.plan.unfinished and self.now < end:
            steps = [self.take(server) for server in self.servers]
            while self.probes:
                self.finish_probe(self.probes.pop())
            flight = self.in_flight()
            if flight:
                self.succeed(flight[0])
            elif all(step.do in {Do.WAIT, Do.IDLE} for step in steps):
                waits = [step.until for step in steps if step.do is Do.WAIT]
                assert waits, "nothing is in flight, rows are left, and no server will do anything"
                self.now = max(self.now, min(waits))
        assert not self.plan.unfinished
        assert self.ends == Counter(range(self.rows))
        assert self.plan.ok + self.plan.failed == self.rows
        assert sum(server.ok + server.failed for server in self.servers) == self.rows


PlanMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPlan = PlanMachine.TestCase
