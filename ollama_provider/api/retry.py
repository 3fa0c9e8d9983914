"""Retries: after which errors, how often, and with which backoff. Both clients use it, through tenacity.

A policy decides; tenacity's ``Retrying`` and ``AsyncRetrying`` wait. Errors with `OllamaError.retryable` are retried,
with exponential backoff and full jitter (a random part of the backoff, so that many clients do not retry at the same
time), and never before the time that a proxy asks for (``Retry-After``).
"""

import random
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import RetryCallState

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.settings import Settings

#: Called with each failed attempt that will be retried: its number, its error, seconds until the next.
OnRetry = Callable[[int, OllamaError, float], None]

#: Seconds that ``Retry-After`` may ask for; larger values are reduced to it.
LONGEST_RETRY_AFTER = 600.0
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")

_waits_are_free = False


@contextmanager
def without_waiting() -> Iterator[None]:
    """Retry without waiting, for tests: in all threads and tasks, until the end of the block."""
    global _waits_are_free  # noqa: PLW0603  # a switch of the process, since clients live in threads and tasks of their own
    before, _waits_are_free = _waits_are_free, True
    try:
        yield
    finally:
        _waits_are_free = before


@dataclass(frozen=True)
class RetryPolicy:
    """How often and for how long a request is retried, and the backoff between attempts.

    Attributes:
        max_attempts: attempts in all, the first included.
        max_seconds: no new attempt begins after so many seconds.
        first_wait, longest_wait: bounds of the backoff in seconds; it doubles from one attempt to the next.
    """

    max_attempts: int = 4
    max_seconds: float = 300
    first_wait: float = 1
    longest_wait: float = 60

    @classmethod
    def of(cls, settings: Settings, *, repeatable: bool) -> "RetryPolicy":
        """Return the policy of *settings*; one attempt for a request that must not be sent twice."""
        return cls(max_attempts=settings.max_attempts if repeatable else 1, max_seconds=settings.max_retry_seconds)

    def wait_after(
        self, error: BaseException, attempt: int, elapsed: float, chance: Callable[[], float] = random.random
    ) -> float | None:
        """Return how long to wait before the next attempt.

        Args:
            error: of the failed attempt.
            attempt: its number, from 1 on.
            elapsed: seconds since the first attempt began.
            chance: returns a random number from 0 to 1.

        Returns:
            Seconds, or None if there is no next attempt.
        """
        if not isinstance(error, OllamaError) or not error.retryable:
            return None
        if attempt >= min(self.max_attempts, error.max_attempts or self.max_attempts):
            return None
        backoff = min(self.longest_wait, self.first_wait * 2 ** (attempt - 1)) * chance()
        wait = max(backoff, error.retry_after or 0)
        if elapsed + wait > self.max_seconds:
            return None
        return 0 if _waits_are_free else wait

    def arguments(self, on_retry: OnRetry) -> dict[str, Any]:
        """Return the arguments of ``tenacity.Retrying`` and ``tenacity.AsyncRetrying`` for one call."""
        waits: list[float] = []

        def again(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if error is None:
                return False
            wait = self.wait_after(error, state.attempt_number, state.seconds_since_start or 0)
            if wait is None or not isinstance(error, OllamaError):
                return False
            on_retry(state.attempt_number, error, wait)
            waits.append(wait)
            return True

        return {"retry": again, "wait": lambda _: waits[-1]}


def forget_locals(error: Exception) -> None:
    """Clear the local variables of the frames that an error went through.

    The frames of tenacity refer to the error, and those of the attempt to its answer, however large: both would stay in
    memory until the garbage collector finds the circle.
    """
    traceback.clear_frames(error.__traceback__)


def read_retry_after(value: str | None, now: datetime) -> float | None:
    """Parse a ``Retry-After`` header: seconds, or an HTTP date.

    Args:
        value: the header; None if there is none.
        now: the time (with a zone) to count from.

    Returns:
        Seconds to wait, from 0 to `LONGEST_RETRY_AFTER`; None if the header is absent or invalid.
    """
    if not value:
        return None
    text = value.strip()
    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):  # TypeError: a date without a zone
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
