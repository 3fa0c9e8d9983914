"""The decisions of the plan, without waiting and without a network."""

import gc
import random

import pytest

from ollama_provider.api.errors import (
    AuthenticationError,
    BadRequestError,
    BrokenModelError,
    ContextLengthError,
    EndpointNotFoundError,
    GatewayError,
    IncompleteReplyError,
    InvalidOutputError,
    ModelNotFoundError,
    NotOllamaError,
    OverloadedError,
    QuotaError,
    RunnerError,
    TLSError,
    UnreachableError,
)
from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.requests.work_item import Variant, WorkItem
from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize
from ollama_provider.batch.scheduling.input_queue import Choice, choose
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.servers import InFlight, ServerState
from ollama_provider.batch.scheduling.steps import Do, Step, Verdict
from ollama_provider.batch.store.journal import State


def plan(*numbers: int, interval: float = 0.0, **limits: float) -> Plan:
    made = Plan(
        FailurePolicy(**limits), [ServerState(0, "http://gpu1", ConcurrencyLimit.fixed(8), PackSize(1))], interval
    )
    made.queue.new.extend(WorkItem(number, f"prompt {number}") for number in numbers)
    return made


def look(made: Plan, now: float, concurrency: int = 8, *, more: bool = False) -> Step:
    made.servers[0].concurrency = ConcurrencyLimit.fixed(concurrency)
    return made.next(made.servers[0], now, more=more)


def send(made: Plan, now: float, *, concurrency: int = 8, more: bool = False) -> InFlight:
    """Send the next item; a probe before it is answered."""
    step = look(made, now, concurrency, more=more)
    if step.do is Do.PROBE:
        made.probe_succeeded(made.servers[0], step.item)
        step = look(made, now, concurrency, more=more)
    assert step.do is Do.SEND, step
    assert step.sent is not None
    return step.sent


class Simulation:
    """A server of one line, and workers without a network: *fails* says of a number what becomes of its request.

    A request takes a tenth of a second; the load that goes before a row in doubt always succeeds, unless told.
    """

    def __init__(self, made, fails, *, concurrency=4, load=lambda now: None, pack=1):
        self.made, self.fails, self.concurrency, self.load, self.pack = made, fails, concurrency, load, pack
        self.now, self.failed, self.stopped, self.sent = 0.0, [], None, 0

    def run(self):
        server = self.made.servers[0]
        server.concurrency, server.pack.size = ConcurrencyLimit.fixed(self.concurrency), self.pack
        while self.made.unfinished and self.stopped is None:
            steps = []
            while (step := self.made.next(server, self.now, more=False)).do in {Do.SEND, Do.PROBE}:
                if step.sent:
                    self.made.fill(step.sent, 1 << 20, more=False)
                steps.append(step)
            if not steps:
                self.now = max(step.until, self.now)
            self.now += 0.1
            for taken in steps:
                self.probe(server, taken.item) if taken.do is Do.PROBE else self.answer(taken.sent)
        return self

    def probe(self, server, item):
        if error := self.load(self.now):
            self.judge(item, error, self.made.probe_failed(server, item, error, self.now))
        else:
            self.made.probe_succeeded(server, item)

    def answer(self, sent):
        self.sent += 1
        item = sent.item
        if error := next(filter(None, (self.fails(each.number) for each in item.pack)), None):
            self.judge(item, error, self.made.failure(sent, error, self.now))
        else:
            self.made.succeeded(sent, self.now)

    def judge(self, item, error, verdict):
        if verdict is Verdict.FAILED:
            self.failed.append(item.number)
        elif verdict is Verdict.STOP:
            self.stopped = error


@pytest.mark.parametrize(
    ("state", "all_rows", "failed_only"),
    [
        (State.NEW, Choice.RUN, Choice.SKIP),
        (State.REQUESTED, Choice.REUSE, Choice.REUSE),
        (State.OK, Choice.REUSE, Choice.REUSE),
        (State.FAILED, Choice.REUSE, Choice.REUSE),
        (State.FAILED_BEFORE, Choice.RUN, Choice.RUN),
    ],
)
def test_a_row_is_requested_unless_its_outcome_is_known(state, all_rows, failed_only):
    """A good result is always reused, a failed row until its pass has ended; failed_only requests only failed rows."""
    assert choose(state, "all") is all_rows
    assert choose(state, "failed_only") is failed_only


def test_rows_go_in_their_order_and_no_more_at_a_time_than_allowed():
    """Items are sent in the order of the input, up to the concurrency limit."""
    made = plan(1, 2, 3)

    assert [send(made, 0, concurrency=2).item.number for _ in range(2)] == [1, 2]
    assert look(made, 0, 2).do is Do.IDLE


def test_an_outage_pauses_all_requests_once():
    """Ten requests that hit one overload cause one pause, and none of their rows loses an attempt."""
    made = plan(*range(10))
    items = [send(made, 0, concurrency=10) for _ in range(10)]

    verdicts = {made.failure(item, OverloadedError("busy"), 0.0) for item in items}

    assert verdicts == {Verdict.AGAIN}
    assert made.servers[0].pause_count == 1
    assert made.servers[0].pause == 1
    assert look(made, 0.5, 10).do is Do.WAIT
    assert look(made, 0.5, 10).until == 1
    assert all(sent.item.attempts == 0 for sent in items)
    assert len(made.queue) == 10


def test_a_pause_is_followed_by_a_slow_start():
    """One request probes the server; each answer doubles how many may be in flight."""
    made = plan(*range(40))
    made.failure(send(made, 0), OverloadedError("busy"), 0.0)

    probe = send(made, 1.0, concurrency=16)
    assert look(made, 1.0, 16).do is Do.IDLE
    made.succeeded(probe, 0.0)
    assert made.servers[0].in_flight_limit == 2
    made.succeeded(send(made, 1.1, concurrency=16), 1.1)
    assert made.servers[0].in_flight_limit == 4


def test_pauses_grow_until_something_succeeds():
    """Each pause that did not help is followed by one twice as long, up to 30 s; after an answer it is 1 s again."""
    made = plan(1, 2)
    now, pauses = 0.0, []
    for _ in range(8):
        made.failure(send(made, now), UnreachableError("refused"), now)
        pauses.append(made.servers[0].pause)
        now += made.servers[0].pause

    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    made.succeeded(send(made, now), now)
    made.failure(send(made, now), UnreachableError("refused"), now)
    assert made.servers[0].pause == 1


def test_a_proxy_may_ask_for_a_longer_pause():
    """The pause is at least as long as Retry-After."""
    made = plan(1)
    made.failure(send(made, 0), OverloadedError("busy", retry_after=17), 0.0)

    assert look(made, 16, 8).until == 17
    assert made.servers[0].pause == 17


@pytest.mark.parametrize("seconds", [3600.0, 1e300, float("inf"), float("nan"), -5.0])
def test_no_proxy_can_ask_for_a_pause_beyond_max_outage(seconds):
    """However long Retry-After is: at the end of max_outage the server is asked once more, and then no more."""
    made = plan(1, 2, max_outage=100)
    busy = Simulation(made, lambda number: OverloadedError("busy", retry_after=seconds)).run()

    assert isinstance(busy.stopped, OverloadedError)
    assert 100 <= busy.now < 140


def test_the_pace_of_the_user_does_not_delay_the_end_of_an_outage():
    """With one request in ten minutes and max_outage of a minute, the outage ends the batch after a minute."""
    made = plan(max_outage=60, interval=600)
    for number in range(3):
        made.queue.new.append(WorkItem(number, ""))
    gone = Simulation(
        made, lambda number: UnreachableError("refused") if made.ok else None, load=lambda now: None
    ).run()

    assert isinstance(gone.stopped, UnreachableError)
    assert gone.now < 600 + 70


def test_ten_minutes_of_outage_cost_no_row_an_attempt():
    """However many requests fail because of it."""
    made = plan(1, 2, 3, 4)
    now = 0.0
    while now < 600:
        made.failure(send(made, now), UnreachableError("refused"), now)
        now += made.servers[0].pause

    done = []
    while made.unfinished:
        sent = send(made, now)
        assert sent.item.attempts == 0
        made.succeeded(sent, now)
        done.append(sent.item.number)
    assert sorted(done) == [1, 2, 3, 4]


def test_an_outage_without_end_stops_the_batch():
    """After max_outage seconds without one answer."""
    made = plan(1, max_outage=100)
    refused = UnreachableError("refused")
    gone = Simulation(made, lambda number: refused, load=lambda now: refused).run()

    assert gone.stopped is refused
    assert 100 <= gone.now < 140


def test_a_reply_cut_by_an_outage_costs_no_attempt():
    """A reply cut in the middle costs an attempt, unless the server turns out to be down within seconds."""
    made = plan(1, 2, 3)
    first, second, third = (send(made, 0) for _ in range(3))
    made.failure(first, IncompleteReplyError("cut"), 0.0)
    assert first.item.attempts == 1

    made.failure(second, UnreachableError("refused"), 0.1)
    made.failure(third, IncompleteReplyError("cut"), 0.2)

    assert [first.item.attempts, second.item.attempts, third.item.attempts] == [0, 0, 0]


def test_a_row_whose_reply_was_cut_long_ago_is_forgotten():
    """Its prompt and its images are not kept for an outage that may never come."""
    made = plan()
    prompts = {f"long ago {number}" for number in range(100)}
    for now, prompt in enumerate(prompts):
        made.queue.new.append(WorkItem(now, prompt))
        made.failure(send(made, 10.0 * now), IncompleteReplyError("cut"), 10.0 * now)
        made.queue.retries.clear()

    kept = [found for found in gc.get_objects() if type(found) is WorkItem and found.prompt in prompts]

    assert len(kept) <= 2


def test_a_rows_own_failure_sends_it_to_the_end():
    """A row that fails is sent again after all others."""
    made = plan(1, 2, 3, retry_delay=0)
    made.failure(send(made, 0), IncompleteReplyError("cut"), 0.0)

    assert [send(made, 0).item.number for _ in range(3)] == [2, 3, 1]


def test_a_row_fails_for_good_after_its_attempts():
    """max_attempts in all, or fewer if the error's class allows only fewer."""
    made = plan(1, max_attempts=5, retry_delay=0)
    verdicts = [made.failure(send(made, 0), InvalidOutputError("prose"), 0.0) for _ in range(5)]
    assert verdicts == [Verdict.AGAIN] * 4 + [Verdict.FAILED]

    made = plan(1, max_attempts=5, retry_delay=0)
    verdicts = [made.failure(send(made, 0), RunnerError("crashed"), 0.0) for _ in range(3)]
    assert verdicts == [Verdict.AGAIN] * 2 + [Verdict.FAILED]


def test_a_crash_of_the_model_counts_only_for_a_row_that_was_sent_alone():
    """One crash fails four rows. Each is sent alone next, and only the row that crashes the model again fails."""
    made = plan(*range(6), max_attempts=2, retry_delay=0)
    for sent in [send(made, 0, concurrency=4) for _ in range(4)]:
        assert made.failure(sent, RunnerError("crashed"), 0.0) is Verdict.AGAIN
        assert sent.item.attempts == 0
    four, five = send(made, 0, concurrency=4), send(made, 0, concurrency=4)
    assert look(made, 0, 4).do is Do.IDLE
    made.succeeded(five, 0.0)
    assert look(made, 0, 4).do is Do.IDLE
    made.succeeded(four, 0.0)

    failed = []
    while made.unfinished:
        sent = send(made, 0, concurrency=4)
        assert look(made, 0, 4).do is Do.IDLE
        if sent.item.number != 2:
            made.succeeded(sent, 0.0)
        elif made.failure(sent, RunnerError("crashed"), 0.0) is Verdict.FAILED:
            failed.append(sent.item.number)

    assert failed == [2]
    assert made.ok == 5


def test_a_row_with_an_error_that_is_not_retryable_is_sent_once():
    """A second attempt would fail in the same way."""
    made = plan(1)

    assert made.failure(send(made, 0), ContextLengthError("too long"), 0.0) is Verdict.FAILED
    assert made.failed == 1


def test_a_fault_of_the_setup_stops_at_once():
    """Without permission for one row there is none for any."""
    made = plan(1, 2)

    assert made.failure(send(made, 0), AuthenticationError("no"), 0.0) is Verdict.STOP


SETUP = (
    NotOllamaError("a page", status=200),
    NotOllamaError("a page", status=404),
    NotOllamaError("a redirect", status=302),
    EndpointNotFoundError("no path", status=405),
    ModelNotFoundError("no model", status=404),
    BrokenModelError("no such file or directory", status=500),
    TLSError("a proxy's own certificate"),
    AuthenticationError("a proxy's rule", status=403),
)


@pytest.mark.parametrize("error", SETUP, ids=lambda error: f"{type(error).__name__}-{error.status}")
class TestASetupThatStopsWorking:
    def test_it_is_an_outage(self, error):
        """After a minute the setup works again: that costs a minute and no row."""
        made = plan(*range(50))
        away = Simulation(made, lambda number: None)
        down = lambda: error if 2 < away.now < 60 else None  # noqa: E731
        away.fails, away.load = lambda number: down() if made.ok > 5 else None, lambda now: down()
        away.run()

        assert (made.ok, away.failed, away.stopped) == (50, [], None)

    def test_after_max_outage_the_run_ends(self, error):
        """With the error of the setup."""
        made = plan(*range(50), max_outage=100)
        gone = Simulation(made, lambda number: error if made.ok > 5 else None, load=lambda now: error).run()

        assert gone.stopped is error
        assert 100 <= gone.now < 110

    def test_at_the_beginning_the_run_ends_at_once(self, error):
        """No row was answered before."""
        made = plan(*range(50))

        assert Simulation(made, lambda number: error).run().stopped is error

    def test_with_one_row_alone_that_row_fails(self, error):
        """A proxy that refuses one text (403, or a page) does not end the batch."""
        made = plan(*range(50))
        one = Simulation(made, lambda number: error if number == 20 else None).run()

        assert (made.ok, one.failed, one.stopped) == (49, [20], None)


@pytest.mark.parametrize(
    "error", [QuotaError("limit"), AuthenticationError("no", status=401), AuthenticationError("no", status=407)]
)
def test_credentials_and_quotas_stop_at_any_time(error):
    """Waiting does not bring them back, and several wrong attempts may lock an account."""
    made = plan(*range(10))
    stopped = Simulation(made, lambda number: error if number == 5 else None, concurrency=1).run()

    assert (made.ok, stopped.stopped) == (5, error)


@pytest.mark.parametrize("error", [GatewayError("524"), UnreachableError("reset"), OverloadedError("busy")])
@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_refuses_most_requests_costs_no_row(error, seed):
    """Of 2,000 good rows, 70 % of the requests are refused: all rows are good in the end."""
    made, chance = plan(*range(2000), max_attempts=1), random.Random(seed)
    busy = Simulation(
        made,
        lambda number: error if chance.random() < 0.7 else None,
        load=lambda now: error if chance.random() < 0.7 else None,
    ).run()

    assert (made.ok, busy.failed, busy.stopped) == (2000, [], None)


@pytest.mark.parametrize(
    "bad", [{50}, {0, 1, 2}, {10, 11, 12, 13, 14}, {99}, {97, 98, 99}], ids=lambda bad: "-".join(map(str, sorted(bad)))
)
def test_rows_that_bring_down_a_proxy_every_time_fail(bad):
    """Wherever they are in the input, also next to each other or last, and long before max_outage."""
    made = plan(*range(100))
    found = Simulation(made, lambda number: GatewayError("524") if number in bad else None).run()

    assert (made.ok, sorted(found.failed), found.stopped) == (100 - len(bad), sorted(bad), None)
    assert found.sent < 100 + 20 * len(bad)
    assert found.now < 300


@pytest.mark.parametrize("bad", [{11}, {3, 17}, {97, 98}])
def test_texts_of_packs_that_bring_down_a_proxy_are_found_and_fail_alone(bad):
    """Packs are halved until each bad text is alone; all others have their vectors."""
    made = plan(*range(100))
    found = Simulation(
        made, lambda number: GatewayError("502") if number in bad else None, concurrency=2, pack=16
    ).run()

    assert (made.ok, sorted(found.failed), found.stopped) == (100 - len(bad), sorted(bad), None)
    assert found.now < 300


def test_a_server_that_loads_the_model_and_answers_no_row_is_down():
    """The probe succeeds and all rows fail: that is an outage, and no row fails for it."""
    made = plan(*range(500), max_outage=600)
    broken = Simulation(made, lambda number: GatewayError("502") if made.ok > 50 else None).run()

    assert isinstance(broken.stopped, GatewayError)
    assert broken.failed == []


def test_a_busy_server_is_never_the_fault_of_a_row():
    """Not even if all others are answered: the row is sent last."""
    made = plan(*range(20), max_outage=100)
    busy = Simulation(made, lambda number: OverloadedError("busy") if number == 7 else None).run()

    assert (made.ok, busy.failed) == (19, [])
    assert isinstance(busy.stopped, OverloadedError)


def test_a_fallback_model_that_cannot_be_loaded_fails_the_rows_that_need_it():
    """The other rows have their answers."""
    made = plan(1, 2)
    made.succeeded(send(made, 0), 0)
    sent = send(made, 0)
    sent.item.variant = Variant(fallback=True)

    assert made.failure(sent, BrokenModelError("unknown model architecture"), 0.0) is Verdict.FAILED


def test_a_failed_row_waits_before_its_next_attempt_if_nothing_else_is_queued():
    """The last row is not sent again at once."""
    made = plan(1, retry_delay=2)
    made.failure(send(made, 10), RunnerError("crashed"), 10.0)

    step = look(made, 10, 8)
    assert (step.do, step.until) == (Do.WAIT, 12)
    assert send(made, 12).item.number == 1


def test_the_queue_of_retries_is_bounded():
    """With a thousand retries queued, the first is sent before new rows."""
    made = plan(*range(1002), retry_delay=0, max_attempts=9)
    made.succeeded(send(made, 0, more=True), 0)
    for _ in range(1000):
        made.failure(send(made, 0, more=True), RunnerError("crashed"), 0.0)

    assert send(made, 0, more=True).item.number == 1


def test_a_batch_in_which_everything_fails_is_noticed():
    """Twenty failed rows, no good one, and fewer tolerated: the batch stops early. Not so with one good row."""
    made = plan(*range(21), max_failed_ratio=0.5)
    for number in range(20):
        assert not made.hopeless(), number
        made.failure(send(made, 0), ContextLengthError("too long"), 0.0)
    assert made.hopeless()

    made.succeeded(send(made, 0), 0)
    assert not made.hopeless()


def test_rows_that_never_became_a_request_do_not_count_for_the_early_stop():
    """A thousand rows are read before the first answer, and many of them may have no prompt."""
    made = plan(*range(30))
    for _ in range(500):
        made.add_failed()
    assert not made.hopeless()

    for _ in range(20):
        made.failure(send(made, 0), ContextLengthError("too long"), 0.0)
    assert made.hopeless()
    assert made.failed == 520


def test_a_good_result_of_an_earlier_run_keeps_the_batch_from_stopping_early():
    """Rows of this kind can be answered, so the new ones are all requested, however many fail first."""
    made = plan(*range(30))
    made.reused = 1
    for _ in range(30):
        made.failure(send(made, 0), ContextLengthError("too long"), 0.0)

    assert not made.hopeless()


def test_results_that_cannot_be_stored_are_failed_rows():
    """The server answered, but the row has no result."""
    made = plan(1)
    made.succeeded(send(made, 0), 0.0, failed=1)

    assert (made.ok, made.failed, made.unfinished) == (0, 1, 0)


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
    assert FailurePolicy(**limits).too_many(failed, rows) is too_many


def test_requests_per_minute_spaces_the_requests():
    """The next request waits until the interval has passed."""
    made = plan(interval=2.0)
    for number in range(3):
        made.queue.new.append(WorkItem(number, ""))

    send(made, 10)
    assert look(made, 10.5, 8).until == 12
    send(made, 12)
    assert look(made, 12, 8).until == 14


class TestPacks:
    def pack(self, count, size, weight=1000):
        made = plan()
        for number in range(count):
            made.queue.new.append(WorkItem(number, "x" * 10))
        return made, self.fill(made, look(made, 0.0, 1), size, weight)

    def fill(self, made, step, size, weight=1000):
        made.servers[0].pack.size = size
        made.fill(step.sent, weight, more=False)
        return step.sent

    def numbers(self, sent):
        return [item.number for item in sent.item.pack]

    def test_a_pack_is_filled_in_order_up_to_its_size_and_characters(self):
        """Whichever comes first; an item that needs a request of its own ends the pack."""
        assert self.numbers(self.pack(9, 4)[1]) == [0, 1, 2, 3]
        assert self.numbers(self.pack(9, 4, weight=35)[1]) == [0, 1, 2]
        made = plan()
        for number in range(4):
            made.queue.new.append(WorkItem(number, "", pack_closed=number == 2))
        lead = self.fill(made, look(made, 0.0, 1), 9)
        assert self.numbers(lead) == [0, 1]

    def test_a_failed_pack_is_sent_again_as_two_in_the_same_order(self):
        """No row loses an attempt, and neither half is filled up again."""
        made, lead = self.pack(7, 5)

        assert made.failure(lead, BadRequestError("no"), 1.0) is Verdict.AGAIN

        first, second = [self.fill(made, step, 5) for step in [look(made, 1.0, 9) for _ in range(2)]]
        assert [self.numbers(first), self.numbers(second)] == [[0, 1, 2], [3, 4]]
        assert {item.attempts for item in (*first.item.pack, *second.item.pack)} == {0}

    def test_a_pack_counts_for_each_of_its_rows(self):
        """When it is answered."""
        made, lead = self.pack(5, 5)
        made.succeeded(lead, 0.0)

        assert (made.ok, made.sends, made.unfinished) == (5, 1, 0)

    def test_a_pack_stays_together_over_an_outage(self):
        """None of its rows is lost."""
        made, lead = self.pack(5, 5)
        made.failure(lead, OverloadedError("busy"), 1.0)

        again = self.fill(made, look(made, 100.0, 1), 2)
        assert self.numbers(again) == [0, 1, 2, 3, 4]


def test_postponed_items_are_sent_last_and_together():
    """Once one is sent, all are: the fallback model is in memory now."""
    made = plan()
    for number in range(3):
        made.queue.new.append(WorkItem(number, ""))
    for _ in range(2):
        made.postpone(look(made, 0.0, 1, more=True).sent, 0.0)

    last = look(made, 0.0, 9, more=True).sent
    assert last.item.number == 2
    assert look(made, 0.0, 9).do is Do.IDLE
    made.succeeded(last, 0.0)
    assert [look(made, 0.0, 9).sent.item.number for _ in range(2)] == [0, 1]


def test_a_closed_plan_sends_nothing():
    """Not even after a pause."""
    made = plan()
    made.queue.new.append(WorkItem(0, ""))
    made.closed = True

    assert look(made, 0.0, 9).do is Do.IDLE
    assert len(made.queue) == 1
