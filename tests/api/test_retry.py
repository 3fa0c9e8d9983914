"""When to try again is decided in one place, and both clients wait by it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import AsyncRetrying, Retrying

from ollama_provider.api import errors
from ollama_provider.api.retry import RetryPolicy, without_waiting
from ollama_provider.api.settings import Settings

BUSY = errors.OverloadedError("busy")
POLICY = RetryPolicy(max_attempts=4, max_seconds=300, first_wait=1, longest_wait=60)


@pytest.fixture(autouse=True)
def _no_waits():
    """Here the waits themselves are looked at, so they are not free."""
    return


@pytest.mark.parametrize(("attempt", "backoff"), [(1, 1), (2, 2), (3, 4)])
def test_the_backoff_doubles(attempt, backoff):
    """The longest wait that chance may choose doubles from attempt to attempt."""
    assert POLICY.wait_after(BUSY, attempt, 0, chance=lambda: 1.0) == backoff


def test_the_backoff_is_bounded():
    """No wait is longer than the longest."""
    assert RetryPolicy(max_attempts=100).wait_after(BUSY, 50, 0, chance=lambda: 1.0) == 60


@given(chance=st.floats(0, 1), attempt=st.integers(1, 3))
def test_the_jitter_is_full(chance, attempt):
    """Chance chooses anything from nothing to the whole backoff, so that clients do not come back together."""
    assert POLICY.wait_after(BUSY, attempt, 0, chance=lambda: chance) == chance * 2 ** (attempt - 1)


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelNotFoundError("gone"),
        errors.AuthenticationError("no"),
        errors.ContextLengthError("long"),
        errors.TotalTimeoutError("slow"),
        errors.InvalidRequestError("wrong"),
        ValueError("a bug"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_get_better_is_not_tried_again(error):
    """Hopeless errors, bugs and cancellation pass at once."""
    assert POLICY.wait_after(error, 1, 0) is None


def test_attempts_are_bounded():
    """The last attempt is the last."""
    assert POLICY.wait_after(BUSY, 3, 0) is not None
    assert POLICY.wait_after(BUSY, 4, 0) is None


def test_an_error_may_allow_fewer_attempts():
    """A crashed runner is worth three attempts, an unknown error two, a closed client one."""
    many = RetryPolicy(max_attempts=10)

    assert many.wait_after(errors.RunnerError("x"), 2, 0) is not None
    assert many.wait_after(errors.RunnerError("x"), 3, 0) is None
    assert many.wait_after(errors.UnknownServerError("x"), 2, 0) is None
    assert many.wait_after(errors.ClientClosedError("x"), 1, 0) is None


def test_no_attempt_begins_after_the_time_is_up():
    """The wait counts, too: an attempt that would begin too late does not begin."""
    assert POLICY.wait_after(BUSY, 1, 299, chance=lambda: 1.0) == 1
    assert POLICY.wait_after(BUSY, 1, 299.5, chance=lambda: 1.0) is None


def test_a_proxys_wish_is_honoured():
    """Retry-After is the least wait; one beyond the time that is left ends the attempts."""
    wait_7 = errors.OverloadedError("busy", retry_after=7)

    assert POLICY.wait_after(wait_7, 1, 0, chance=lambda: 1.0) == 7
    assert POLICY.wait_after(errors.OverloadedError("busy", retry_after=600), 1, 0) is None


def test_what_must_not_be_sent_twice_has_one_attempt():
    """A request that is not repeatable is sent once, whatever the settings say."""
    settings = Settings(max_attempts=5, max_retry_seconds=10)

    assert RetryPolicy.of(settings, repeatable=False).max_attempts == 1
    assert RetryPolicy.of(settings, repeatable=True) == RetryPolicy(max_attempts=5, max_seconds=10)


def drive_plainly(policy, announce, function):
    return Retrying(sleep=lambda _: None, **policy.arguments(announce))(function)


def drive_async(policy, announce, function):
    async def sleep(_: float) -> None:
        pass

    async def called():
        return function()

    return asyncio.run(AsyncRetrying(sleep=sleep, **policy.arguments(announce))(called))


@pytest.fixture(params=[drive_plainly, drive_async], ids=["Retrying", "AsyncRetrying"])
def drive(request):
    return request.param


def test_each_failed_attempt_is_announced_once(drive):
    """Both drivers announce an attempt that is followed by another, with its error and the wait."""
    told, outcomes = [], [BUSY, errors.RunnerError("crash"), "fine"]

    def function():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    found = drive(POLICY, lambda attempt, error, wait: told.append((attempt, type(error), wait)), function)

    assert found == "fine"
    assert [(attempt, kind) for attempt, kind, _ in told] == [(1, errors.OverloadedError), (2, errors.RunnerError)]
    assert all(0 <= wait <= 2 for _, _, wait in told)


def test_the_last_error_comes_out_as_it_is(drive):
    """What a caller sees is the error itself, not one of tenacity's."""
    told = []

    def function():
        raise BUSY

    with pytest.raises(errors.OverloadedError) as raised:
        drive(POLICY, lambda *facts: told.append(facts), function)

    assert raised.value is BUSY
    assert len(told) == 3


def test_waits_can_be_made_free():
    """`without_waiting` makes waits zero, and no longer than its block lasts."""
    with without_waiting():
        assert POLICY.wait_after(BUSY, 1, 0, chance=lambda: 1.0) == 0
        assert POLICY.wait_after(BUSY, 4, 0) is None
    assert POLICY.wait_after(BUSY, 1, 0, chance=lambda: 1.0) == 1
