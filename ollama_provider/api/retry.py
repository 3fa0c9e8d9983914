"""When and how long to try again, for either driver (tenacity).

A policy decides; `Retrying` and `AsyncRetrying` wait. It tries again after errors that say so themselves
(`OllamaError.retryable`), with exponential backoff and full jitter (a random part of the backoff, so that many clients
do not come back together), and never sooner than a proxy asked for (``Retry-After``).
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import RetryCallState

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.settings import Settings

#: Told of each attempt that failed and is followed by another: its number, its error, seconds until the next.
Announce = Callable[[int, OllamaError, float], None]

#: Seconds that an answer may ask for with ``Retry-After``; more is taken for so much.
LONGEST_RETRY_AFTER = 600.0
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")

_waits_are_free = False


@contextmanager
def without_waiting() -> Iterator[None]:
    """Make the waits before new attempts zero, for tests: in all threads and tasks, until the end of the block."""
    global _waits_are_free  # noqa: PLW0603  # a switch of the process, since clients live in threads and tasks of their own
    before, _waits_are_free = _waits_are_free, True
    try:
        yield
    finally:
        _waits_are_free = before


@dataclass(frozen=True)
class RetryPolicy:
    """How often, how long and how far apart.

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
        """Return what *settings* say; one attempt for a request that must not be sent twice."""
        return cls(max_attempts=settings.max_attempts if repeatable else 1, max_seconds=settings.max_retry_seconds)

    def wait_after(
        self, error: BaseException, attempt: int, elapsed: float, chance: Callable[[], float] = random.random
    ) -> float | None:
        """Decide what follows a failed attempt.

        Args:
            error: why it failed.
            attempt: which one it was; the first is 1.
            elapsed: seconds since the first began.
            chance: gives a number from 0 to 1.

        Returns:
            Seconds to wait before the next attempt, or None: there is none.
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

    def arguments(self, announce: Announce) -> dict[str, Any]:
        """Return what both ``tenacity.Retrying`` and ``tenacity.AsyncRetrying`` take, for one call."""
        waits: list[float] = []

        def again(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if error is None:
                return False
            wait = self.wait_after(error, state.attempt_number, state.seconds_since_start or 0)
            if wait is None or not isinstance(error, OllamaError):
                return False
            announce(state.attempt_number, error, wait)
            waits.append(wait)
            return True

        return {"retry": again, "wait": lambda _: waits[-1]}


def read_retry_after(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date.

    Args:
        value: the header; None where there is none.
        now: the time (with a zone) to count from.

    Returns:
        Seconds to wait, from 0 to `LONGEST_RETRY_AFTER`; None where the header is absent or unreadable.
    """
    if not value:
        return None
    text = value.strip()
    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):  # TypeError: a date without a zone
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
