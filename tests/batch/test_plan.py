"""The plan decides; nobody waits here and nothing is sent."""

import pytest

from ollama_provider.api.errors import (
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    GatewayError,
    IncompleteReplyError,
    InvalidOutputError,
    OverloadedError,
    RunnerError,
    UnreachableError,
)
from ollama_provider.batch.choice import Choice, choose
from ollama_provider.batch.journal import State
from ollama_provider.batch.limits import Limits
from ollama_provider.batch.plan import Do, Plan, Verdict
from ollama_provider.batch.tickets import Ticket


def plan(*numbers: int, **limits: float) -> Plan:
    made = Plan(Limits(**limits))
    for number in numbers:
        made.admit(Ticket(number, f"prompt {number}"))
    return made


def send(made: Plan, now: float, *, concurrency: int = 8, more: bool = False) -> Ticket:
    step = made.next(now, concurrency, more=more)
    assert step.do is Do.SEND, step
    assert step.ticket is not None
    return step.ticket


@pytest.mark.parametrize(
    ("state", "all_rows", "failed_only"),
    [
        (State.NEW, Choice.RUN, Choice.SKIP),
        (State.ASKED, Choice.REUSE, Choice.REUSE),
        (State.OK, Choice.REUSE, Choice.REUSE),
        (State.FAILED, Choice.REUSE, Choice.REUSE),
        (State.FAILED_BEFORE, Choice.RUN, Choice.RUN),
    ],
)
def test_a_row_is_asked_unless_its_outcome_is_known(state, all_rows, failed_only):
    """A good result is used for ever, a failure until its round has ended; a repair asks failures alone."""
    assert choose(state, "all") is all_rows
    assert choose(state, "failed_only") is failed_only


def test_rows_go_in_their_order_and_no_more_at_a_time_than_allowed():
    """Tickets are sent first come first served, up to the concurrency."""
    made = plan(1, 2, 3)

    assert [send(made, 0, concurrency=2).number for _ in range(2)] == [1, 2]
    assert made.next(0, 2, more=False).do is Do.IDLE


def test_an_outage_pauses_everybody_once():
    """Ten requests that hit one overload cause one pause, and none of their rows loses an attempt."""
    made = plan(*range(10))
    tickets = [send(made, 0, concurrency=10) for _ in range(10)]

    verdicts = {made.failure(ticket, OverloadedError("busy"), 0.0) for ticket in tickets}

    assert verdicts == {Verdict.AGAIN}
    assert made.generation == 1
    assert made.pause == 1
    assert made.next(0.5, 10, more=False).do is Do.WAIT
    assert made.next(0.5, 10, more=False).until == 1
    assert all(ticket.attempts == 0 for ticket in tickets)
    assert made.waiting == 10


def test_a_pause_is_followed_by_a_slow_start():
    """One request probes; each answer doubles how many may go."""
    made = plan(*range(40))
    made.failure(send(made, 0), OverloadedError("busy"), 0.0)

    probe = send(made, 1.0, concurrency=16)
    assert made.next(1.0, 16, more=False).do is Do.IDLE
    made.succeeded(probe)
    assert made.bound(16) == 2
    made.succeeded(send(made, 1.1, concurrency=16))
    assert made.bound(16) == 4


def test_pauses_grow_until_something_succeeds():
    """Each pause in vain is twice as long as the last, up to half a minute; a success begins anew."""
    made = plan(1, 2)
    now, pauses = 0.0, []
    for _ in range(8):
        made.failure(send(made, now), UnreachableError("refused"), now)
        pauses.append(made.pause)
        now += made.pause

    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    made.succeeded(send(made, now))
    made.failure(send(made, now), UnreachableError("refused"), now)
    assert made.pause == 1


def test_a_proxy_may_ask_for_a_longer_pause():
    """Retry-After is the least that is waited."""
    made = plan(1)
    made.failure(send(made, 0), OverloadedError("busy", retry_after=17), 0.0)

    assert made.next(16, 8, more=False).until == 17


def test_ten_minutes_of_outage_cost_ten_minutes_and_no_row():
    """However often an outage is met, the rows' attempts stay untouched."""
    made = plan(1, 2, 3, 4)
    now = 0.0
    while now < 600:
        made.failure(send(made, now), UnreachableError("refused"), now)
        now += made.pause

    done = []
    while made.unfinished:
        ticket = send(made, now)
        assert ticket.attempts == 0
        made.succeeded(ticket)
        done.append(ticket.number)
    assert sorted(done) == [1, 2, 3, 4]


def test_an_outage_without_end_stops_the_batch():
    """After max_outage seconds without one answer there is nothing to wait for."""
    made = plan(1, max_outage=100)
    now = 0.0
    while made.failure(send(made, now), UnreachableError("refused"), now) is Verdict.AGAIN:
        now += made.pause

    assert 100 <= now < 140


def test_what_broke_off_because_of_an_outage_is_not_the_rows_fault():
    """A reply cut in the middle costs an attempt, unless the server turns out to be gone."""
    made = plan(1, 2, 3)
    first, second, third = (send(made, 0) for _ in range(3))
    made.failure(first, IncompleteReplyError("cut"), 0.0)
    assert first.attempts == 1

    made.failure(second, UnreachableError("refused"), 0.1)
    made.failure(third, IncompleteReplyError("cut"), 0.2)

    assert [first.attempts, second.attempts, third.attempts] == [0, 0, 0]


def test_a_rows_own_failure_sends_it_to_the_end():
    """A row that fails is tried again after all others, so that it holds up nobody."""
    made = plan(1, 2, 3, retry_delay=0)
    made.failure(send(made, 0), IncompleteReplyError("cut"), 0.0)

    assert [send(made, 0).number for _ in range(3)] == [2, 3, 1]


def test_a_row_fails_for_good_after_its_attempts():
    """max_attempts in all, or fewer where the error says that more are no use."""
    made = plan(1, max_attempts=5, retry_delay=0)
    verdicts = [made.failure(send(made, 0), InvalidOutputError("prose"), 0.0) for _ in range(5)]
    assert verdicts == [Verdict.AGAIN] * 4 + [Verdict.FAILED]

    made = plan(1, max_attempts=5, retry_delay=0)
    verdicts = [made.failure(send(made, 0), RunnerError("crashed"), 0.0) for _ in range(3)]
    assert verdicts == [Verdict.AGAIN] * 2 + [Verdict.FAILED]


def test_a_crash_of_the_model_convicts_nobody_in_company():
    """Four rows are hit by one crash: each goes alone the next time, and only the one that crashes it again loses."""
    made = plan(*range(6), max_attempts=2, retry_delay=0)
    for ticket in [send(made, 0, concurrency=4) for _ in range(4)]:
        assert made.failure(ticket, RunnerError("crashed"), 0.0) is Verdict.AGAIN
        assert ticket.attempts == 0
    four, five = send(made, 0, concurrency=4), send(made, 0, concurrency=4)
    assert made.next(0, 4, more=False).do is Do.IDLE
    made.succeeded(five)
    assert made.next(0, 4, more=False).do is Do.IDLE
    made.succeeded(four)

    failed = []
    while made.unfinished:
        ticket = send(made, 0, concurrency=4)
        assert made.next(0, 4, more=False).do is Do.IDLE
        if ticket.number != 2:
            made.succeeded(ticket)
        elif made.failure(ticket, RunnerError("crashed"), 0.0) is Verdict.FAILED:
            failed.append(ticket.number)

    assert failed == [2]
    assert made.ok == 5


def test_a_hopeless_row_is_asked_once():
    """An error that says so itself is not tried again."""
    made = plan(1)

    assert made.failure(send(made, 0), ContextLengthError("too long"), 0.0) is Verdict.FAILED
    assert made.failed == 1


def test_a_fault_of_the_setup_stops_at_once():
    """No permission for one row is no permission for any."""
    made = plan(1, 2)

    assert made.failure(send(made, 0), AuthenticationError("no"), 0.0) is Verdict.STOP


def test_a_row_that_brings_down_a_proxy_every_time_is_to_blame_itself():
    """While others succeed, "the server's fault" is believed only so often of one row."""
    made = plan(0, max_attempts=1)
    now, verdict = 0.0, Verdict.AGAIN
    poisoned = 0
    for number in range(1, 30):
        made.admit(Ticket(number, ""))
        while verdict is Verdict.AGAIN:
            ticket = send(made, now)
            if ticket.number:
                made.succeeded(ticket)
                break
            poisoned += 1
            verdict = made.failure(ticket, GatewayError("504"), now)
            now += 60
            if verdict is Verdict.AGAIN:
                # Another row slips in and is answered, so the server is not down.
                made.admit(Ticket(100 + number, ""))
                made._fresh.rotate(-1)
                made.succeeded(send(made, now))

    assert verdict is Verdict.FAILED
    assert poisoned <= 7


def test_a_failed_row_waits_before_its_next_attempt_when_nothing_else_is_to_do():
    """The last row of all is not tried again within the same moment."""
    made = plan(1, retry_delay=2)
    made.failure(send(made, 10), RunnerError("crashed"), 10.0)

    step = made.next(10, 8, more=False)
    assert (step.do, step.until) == (Do.WAIT, 12)
    assert send(made, 12).number == 1


def test_rows_that_wait_for_another_attempt_are_bounded():
    """With a thousand of them waiting, the first goes before rows that were never asked."""
    made = plan(*range(1002), retry_delay=0, max_attempts=9)
    made.succeeded(send(made, 0, more=True))
    for _ in range(1000):
        made.failure(send(made, 0, more=True), RunnerError("crashed"), 0.0)

    assert send(made, 0, more=True).number == 1


def test_a_batch_in_which_everything_fails_is_noticed():
    """Twenty failures, no success and no leave for that many: hopeless. One success, and it is not."""
    made = plan(*range(21), max_failed_ratio=0.5)
    for number in range(20):
        assert not made.hopeless(), number
        made.failure(send(made, 0), ContextLengthError("too long"), 0.0)
    assert made.hopeless()

    made.succeeded(send(made, 0))
    assert not made.hopeless()


@pytest.mark.parametrize(
    ("limits", "failed", "rows", "too_many"),
    [
        ({}, 0, 10, False),
        ({}, 1, 10, True),
        ({"max_failed_rows": 2}, 2, 10, False),
        ({"max_failed_rows": 2}, 3, 10, True),
        ({"max_failed_ratio": 0.1}, 1, 10, False),
        ({"max_failed_ratio": 0.1}, 2, 10, True),
        ({"max_failed_rows": 5, "max_failed_ratio": 0.1}, 2, 10, True),
    ],
)
def test_thresholds(limits, failed, rows, too_many):
    """Without a threshold no failed row is tolerated; with two, both must hold."""
    assert Limits(**limits).too_many(failed, rows) is too_many


def test_requests_per_minute_spaces_the_requests():
    """With an interval, the next request waits for its time."""
    made = Plan(Limits(), interval=2.0)
    for number in range(3):
        made.admit(Ticket(number, ""))

    send(made, 10)
    assert made.next(10.5, 8, more=False).until == 12
    send(made, 12)
    assert made.next(12, 8, more=False).until == 14


class TestPacks:
    def pack(self, count, size, weight=1000):
        made = plan()
        for number in range(count):
            made.admit(Ticket(number, "x" * 10))
        lead = made.next(0.0, 1, more=False).ticket
        made.fill(lead, size, weight)
        return made, lead

    def numbers(self, ticket):
        return [ticket.number, *(rider.number for rider in ticket.riders)]

    def test_a_pack_is_filled_in_order_up_to_its_size_and_weight(self):
        """Whichever is first; a ticket that goes alone ends it."""
        assert self.numbers(self.pack(9, 4)[1]) == [0, 1, 2, 3]
        assert self.numbers(self.pack(9, 4, weight=35)[1]) == [0, 1, 2]
        made = plan()
        for number in range(4):
            made.admit(Ticket(number, "", packed=number == 2))
        lead = made.next(0.0, 1, more=False).ticket
        made.fill(lead, 9, 1000)
        assert self.numbers(lead) == [0, 1]

    def test_a_failed_pack_goes_again_as_two_in_the_same_order(self):
        """Nobody loses an attempt, and neither half is filled up again."""
        made, lead = self.pack(7, 5)

        assert made.failure(lead, BadRequestError("no"), 1.0) is Verdict.AGAIN

        first, second = (made.next(1.0, 9, more=False).ticket for _ in range(2))
        for half in (first, second):
            made.fill(half, 5, 1000)
        assert [self.numbers(first), self.numbers(second)] == [[0, 1, 2], [3, 4]]
        assert {ticket.attempts for ticket in (first, *first.riders, second, *second.riders)} == {0}

    def test_a_pack_counts_for_each_of_its_rows(self):
        """When it comes back."""
        made, lead = self.pack(5, 5)
        made.succeeded(lead)

        assert (made.ok, made.sends, made.unfinished) == (5, 1, 0)

    def test_a_pack_stays_together_over_an_outage(self):
        """Not one of its rows is lost with it."""
        made, lead = self.pack(5, 5)
        made.failure(lead, OverloadedError("busy"), 1.0)

        again = made.next(100.0, 1, more=False).ticket
        made.fill(again, 2, 1000)
        assert self.numbers(again) == [0, 1, 2, 3, 4]


def test_postponed_tickets_come_last_and_together():
    """One whose turn has come lets the others go with it: their model is in memory now."""
    made = plan()
    for number in range(3):
        made.admit(Ticket(number, ""))
    for _ in range(2):
        made.postpone(made.next(0.0, 1, more=True).ticket)

    assert made.next(0.0, 9, more=True).ticket.number == 2
    assert made.next(0.0, 9, more=False).do is Do.IDLE
    made.succeeded(Ticket(2, ""))
    assert [made.next(0.0, 9, more=False).ticket.number for _ in range(2)] == [0, 1]


def test_a_closed_plan_sends_nothing():
    """Not even what was paused."""
    made = plan()
    made.admit(Ticket(0, ""))
    made.closed = True

    assert made.next(0.0, 9, more=False).do is Do.IDLE
    assert made.waiting == 1
