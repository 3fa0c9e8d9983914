"""Concurrency limit and size of packs, against servers that are a few lines of arithmetic."""

import heapq
import random

import pytest

from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize


def run(limit: ConcurrencyLimit, rows: int, *, slots: int, gpu: float = 1e9, seed: int = 1) -> list[tuple[float, int]]:
    """Serve *rows* by *slots* slots that share a GPU good for *gpu* of them; return (time, target) at each answer."""
    chance = random.Random(seed)
    now, began, history = 0.0, 0, []
    in_service: list[tuple[float, float, float, int, int]] = []
    queue: list[tuple[float, int]] = []
    while len(history) < rows:
        while len(in_service) + len(queue) < limit.target and began < rows:
            queue.append((now, limit.target))
            began += 1
        while queue and len(in_service) < slots:
            sent, target = queue.pop(0)
            work = chance.lognormvariate(-1.75, 0.5)
            slowness = max(1.0, min(slots, limit.target) / gpu)
            heapq.heappush(in_service, (now + work * slowness, sent, now - sent, target, max(1, round(100 * work))))
        now, sent, waited, target, tokens = heapq.heappop(in_service)
        limit.observe(target, now - sent, waited, tokens)
        history.append((now, limit.target))
    return history


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16, 32])
def test_it_finds_the_slots_of_a_server(slots):
    """In the end at least as many requests are in flight as there are slots, and not many more."""
    limit = ConcurrencyLimit()
    history = run(limit, 100 * max(slots, 4), slots=slots)

    late = [target for _, target in history[len(history) // 2 :]]
    assert min(late) >= slots
    assert sorted(late)[len(late) // 2] <= max(2, 1.6 * slots)


def test_slots_that_share_a_busy_gpu_are_no_gain():
    """Where twice as many requests bring no more tokens, it goes back to half."""
    limit = ConcurrencyLimit()
    history = run(limit, 2000, slots=64, gpu=4)

    assert limit.target <= 8
    assert max(target for _, target in history) <= 16


@pytest.mark.parametrize(("slots", "most"), [(1, 4), (2, 4), (4, 16), (8, 16), (16, 16), (64, 16)])
def test_a_rehearsal_of_twenty_rows_tries_sixteen(slots, most):
    """After four answers, but only where none of these waited: no request waits for more than four others."""
    history = run(ConcurrencyLimit(few=True), 20, slots=slots)

    assert max(target for _, target in history) == most
    assert [target for _, target in history[:3]] == [4] * 3
    assert (history[3][1] == 16) is (slots >= 4)


def test_a_rehearsal_of_more_rows_goes_on_raising_it():
    """To 64 after twenty answers."""
    assert max(target for _, target in run(ConcurrencyLimit(few=True), 90, slots=64)) == 64


def test_overload_halves_it():
    """A server that refuses for lack of room gets half as many at once."""
    limit = ConcurrencyLimit(target=16)
    limit.overloaded()

    assert limit.target == 8


def test_what_was_measured_before_an_overload_is_forgotten():
    """After two refusals it stays where it is, and does not go back at once to where it came from."""
    limit = ConcurrencyLimit()
    targets = [limit.target]

    def answer(target):
        for _ in range(100):
            if limit.target == target:
                limit.observe(target, 1.0, 0.0, 10)

    answer(4)
    targets.append(limit.target)
    for _ in range(2):
        limit.overloaded()
        targets.append(limit.target)
    for _ in range(20):
        limit.observe(2, 1.0, 0.0, 10)
        targets.append(limit.target)

    assert targets == [4, 8, 4, 2, *[2] * 20]


def test_answers_to_requests_of_another_pace_are_left_out():
    """What was sent at another target says nothing about this one."""
    limit = ConcurrencyLimit(target=4)
    for _ in range(100):
        limit.observe(8, 1.0, 0.9, 10)

    assert limit.target == 4


def test_a_fixed_number_stays():
    """The user's number is the user's."""
    fixed = ConcurrencyLimit.fixed(3)
    for _ in range(100):
        fixed.observe(3, 1.0, 0.9, 10)
    fixed.overloaded()

    assert fixed.target == fixed.highest == 3


class TestPackSize:
    def test_it_grows_while_more_texts_a_second_come_of_it(self):
        """A request costs 30 ms and a text 1 ms. It stops growing where that gains little."""
        size = PackSize()
        for _ in range(60):
            size.observe(size.size, 0.03 + 0.001 * size.size)

        assert 128 <= size.size <= 512

    def test_it_stays_small_where_requests_cost_nothing(self):
        """Twice the texts take twice the time. Larger packs gain nothing, and lose more when one fails."""
        size = PackSize()
        for _ in range(60):
            size.observe(size.size, 0.01 * size.size)

        assert size.size == 8

    def test_no_request_lasts_long(self):
        """A slow model gets few texts in a request."""
        size = PackSize()
        for _ in range(60):
            size.observe(size.size, 5 + 0.5 * size.size)

        assert size.size <= 8
