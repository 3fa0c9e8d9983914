"""How many requests were worked on at a time, from when they began, waited and ended."""

import heapq
from random import Random

import pytest

from ollama_provider.api.errors import UnreachableError
from ollama_provider.api.events import CallEnded, PullMoved
from ollama_provider.api.schemas import Metrics
from ollama_provider.batch.rehearsal.calls import Call, Calls, Parallel, busy_seconds, parallel

SECOND = 10**9


def served(slots, at_a_time, seconds):
    """The calls of a client that keeps so many requests in flight at a server with so many slots."""
    free, waiting, calls = [0.0] * slots, [0.0] * at_a_time, []
    for each in seconds:
        began, start = heapq.heappop(waiting), heapq.heappop(free)
        start = max(began, start)
        calls.append(Call(began, start + each, start - began))
        heapq.heappush(free, start + each)
        heapq.heappush(waiting, start + each)
    return calls


def times(count):
    random = Random(3)
    return [random.lognormvariate(0, 0.5) for _ in range(count)]


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7])
def test_slots_are_seen_where_requests_wait(slots):
    """Eight at a time, of which only some are worked on; the last ones, for which nobody waits, do not blur it."""
    found = parallel(served(slots, 8, times(20)))

    assert found.waited
    assert found.requests == pytest.approx(slots, rel=1e-6)


@pytest.mark.parametrize("at_a_time", [1, 4, 8])
def test_without_a_queue_it_is_what_was_in_flight(at_a_time):
    """More might be faster: that is not known."""
    assert parallel(served(16, at_a_time, times(20))) == Parallel(at_a_time, waited=False)


def test_a_short_wait_is_no_queue():
    """Two clocks differ."""
    calls = [Call(number, number + 1.0, 0.01) for number in range(10)]

    assert parallel(calls) == Parallel(1.0, waited=False)
    assert parallel([]) is None


def test_slots_that_somebody_else_uses():
    """One request at a time, which waits while others are worked on: it takes six seconds, not one."""
    calls = [Call(6.0 * number, 6.0 * number + 6, 5.0) for number in range(10)]

    assert parallel(calls) == Parallel(pytest.approx(1 / 6), waited=True)


def test_requests_that_did_nothing_but_wait():
    """As the clock of the server has it; there is a pace nevertheless."""
    assert parallel([Call(0.0, 2.0, 2.5)]) == Parallel(1.0, waited=False)


def test_what_is_kept_of_events():
    """Requests for rows that were answered; all events are passed on."""
    now, told = iter([10.0, 20.0]), []
    calls = Calls(lambda: next(now), told.append)
    answered = Metrics(total_duration=2 * SECOND, eval_count=5, eval_duration=SECOND * 3 // 2)
    loaded = Metrics(load_duration=8 * SECOND)
    read = Metrics(total_duration=SECOND, prompt_eval_count=5, prompt_eval_duration=SECOND - SECOND // 1000)
    events = [
        CallEnded("/api/generate", "m", 2.0, metrics=answered),
        CallEnded("/api/generate", "m", 9.0, metrics=loaded),
        CallEnded("/api/generate", "m", 2.0, error=UnreachableError),
        PullMoved("m", "pulling", 1, 2, None, None),
        CallEnded("/api/generate", "m", 1.0, metrics=read),
    ]

    for event in events:
        calls(event)

    assert told == events
    assert calls.ended == [Call(8.0, 10.0, 0.5), Call(19.0, 20.0, 0.0)]


def test_the_time_of_requests_that_do_not_say_how_long_they_waited():
    """Two at a time at a server that works on one: together they take as long as it was busy."""
    calls = [Call(0.0, 1.0, 0.0), Call(0.0, 2.0, 0.0), Call(1.0, 3.0, 0.0), Call(5.0, 6.0, 0.0)]

    assert busy_seconds(calls) == [1.0, 1.0, 1.0, 1.0]
