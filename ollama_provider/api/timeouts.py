"""How long to wait for the next byte of an answer, how many bytes to read, and which error to raise beyond that.

Every wait and every answer is bounded. No clock: the time is an argument.
"""

import math
from typing import Any

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import PullMoved
from ollama_provider.api.pulls import PullProgress
from ollama_provider.api.schemas import PullRequest, PushRequest, Request
from ollama_provider.api.settings import Timeouts

#: Bytes in one line of a stream. A picture fits.
MAX_LINE_BYTES = 32 * 2**20
#: Seconds for the end of an answer after its last object.
END_TIMEOUT = 5.0
#: Seconds for the body of an answer whose status says no.
REFUSAL_TIMEOUT = 10.0
#: A JSON object of the answer must be complete within this many idle timeouts.
IDLE_TIMEOUTS_PER_OBJECT = 10
#: An answer that no model works on must be complete within this many read timeouts.
READ_TIMEOUTS_PER_ANSWER = 4


class ReadTimeouts:
    """The timeouts of one attempt at a request that a model works on: first token, idle, total.

    A trickle of bytes does not extend the idle timeout without limit: each object of the answer must be complete within
    `IDLE_TIMEOUTS_PER_OBJECT` idle timeouts.

    Args:
        request: its class limits the size of the answer.
        timeouts: the settings.
        now: when the attempt begins, in seconds of a monotonic clock.
    """

    #: The error for an answer that is too long.
    too_long: type[OllamaError] = errors.RejectedReplyError

    def __init__(self, request: Request[Any], timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._end_by = now + timeouts.total if timeouts.total is not None else math.inf
        self._next_byte_by = now + timeouts.first_token
        self._object_by = math.inf
        self._began = False
        self._is_refused = False
        self._max_bytes = request.max_bytes
        self._max_line_bytes = min(MAX_LINE_BYTES, self._max_bytes) if request.streamed else self._max_bytes
        self._size = self._line = 0

    @property
    def deadline(self) -> float:
        """When the wait for the next byte times out."""
        return min(self._next_byte_by, self._end_by, self._object_by)

    def refused(self, now: float) -> None:
        """Record that the status of the answer says no. Its body must be complete soon: no model works on that."""
        self._is_refused = True
        self._end_by = min(self._end_by, now + REFUSAL_TIMEOUT)

    def received(self, size: int, now: float) -> bool:
        """Record that bytes were received; return False if the answer is too long now."""
        if not self._began:
            self._began = True
            self._object_by = now + IDLE_TIMEOUTS_PER_OBJECT * self._timeouts.idle
        self._next_byte_by = now + self._timeouts.idle
        return self._count(size)

    def _count(self, size: int) -> bool:
        self._size += size
        self._line += size
        return self._size <= self._max_bytes and self._line <= self._max_line_bytes

    def decoded(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Record an object of the answer; return the event to report, if any (for a pull)."""
        self._line = 0
        self._object_by = now + IDLE_TIMEOUTS_PER_OBJECT * self._timeouts.idle
        self._check_last(part, now)
        return None

    def _check_last(self, part: dict[str, Any], now: float) -> None:
        if part.get("done") is True or part.get("status") == "success":
            self._end_by = min(self._end_by, now + END_TIMEOUT)

    def too_long_error(self, *, host: str, model: str | None) -> OllamaError:
        """Return the error for an answer that is too long."""
        bound = self._max_bytes if self._size > self._max_bytes else self._max_line_bytes
        what = "the answer is" if bound == self._max_bytes else "a line of the answer is"
        return self.too_long(f"{what} longer than {bound / 2**20:.0f} MiB", host=host, model=model)

    def timeout_error(self, *, host: str, model: str | None) -> OllamaError:
        """Return the error for the deadline that has passed."""
        if self._is_refused:
            what = "the server refused the request, and its answer was not complete"
            return errors.IncompleteReplyError(f"{what} within {REFUSAL_TIMEOUT:g} s", host=host, model=model)
        kind, seconds, what = self._passed()
        return kind(f"{what} within {seconds:g} s", host=host, model=model)

    def _passed(self) -> tuple[type[OllamaError], float, str]:
        if self._end_by <= self._next_byte_by and self._timeouts.total is not None:
            return errors.TotalTimeoutError, self._timeouts.total, "the answer was not complete"
        if self._object_by <= self._next_byte_by:
            seconds = IDLE_TIMEOUTS_PER_OBJECT * self._timeouts.idle
            return errors.IdleTimeoutError, seconds, "the answer came drop by drop, and no part of it was whole"
        if self._began:
            return errors.IdleTimeoutError, self._timeouts.idle, "the answer stalled: nothing more came"
        return errors.FirstTokenTimeoutError, self._timeouts.first_token, "no answer began"


class FixedReadTimeouts(ReadTimeouts):
    """The timeouts of a request that no model works on.

    One read timeout holds before and between bytes, and the answer must be complete within
    `READ_TIMEOUTS_PER_ANSWER` of them.
    """

    too_long = errors.NotOllamaError

    def __init__(self, request: Request[Any], seconds: float, timeouts: Timeouts, now: float) -> None:
        super().__init__(request, timeouts, now)
        self._seconds = seconds
        self._next_byte_by, self._end_by = now + seconds, now + READ_TIMEOUTS_PER_ANSWER * seconds

    def received(self, size: int, now: float) -> bool:
        """Record that bytes were received; return False if the answer is too long now."""
        self._next_byte_by = now + self._seconds
        return self._count(size)

    def decoded(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Record an object of the answer."""
        self._line = 0
        self._check_last(part, now)
        return None

    def _passed(self) -> tuple[type[OllamaError], float, str]:
        if self._end_by <= self._next_byte_by:
            return errors.ResponseTimeoutError, READ_TIMEOUTS_PER_ANSWER * self._seconds, "the answer was not complete"
        return errors.ResponseTimeoutError, self._seconds, "nothing came"


class PullReadTimeouts(ReadTimeouts):
    """The timeouts of a pull or a push: no limit as long as bytes are transferred."""

    too_long = errors.PullFailedError

    def __init__(self, request: PullRequest | PushRequest, timeouts: Timeouts, now: float) -> None:
        super().__init__(request, timeouts, now)
        self._end_by = math.inf
        self._progress = PullProgress(request.model, stall=timeouts.pull_stall, now=now)
        self._next_byte_by = self._progress.deadline

    def received(self, size: int, now: float) -> bool:  # noqa: ARG002
        """Record that bytes were received; return False if the answer is too long now.

        The deadline stays, since a stalled pull keeps sending lines. Only progress moves it, see `decoded`.
        """
        return self._count(size)

    def decoded(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Record a line; return the event to report, if one is due."""
        self._line = 0
        self._check_last(part, now)
        moved = self._progress.add(part, now)
        self._next_byte_by = self._progress.deadline
        return moved

    def _passed(self) -> tuple[type[OllamaError], float, str]:
        stage = self._progress.status or "the first line"
        return errors.PullStalledError, self._timeouts.pull_stall, f"the pull stalled at {stage!r}: no byte more"


def timeouts_for(request: Request[Any], timeouts: Timeouts, now: float) -> ReadTimeouts:
    """Return the timeouts for one attempt at a request."""
    if isinstance(request, PullRequest | PushRequest):
        return PullReadTimeouts(request, timeouts, now)
    if request.read_timeout is not None:
        return FixedReadTimeouts(request, request.read_timeout, timeouts, now)
    return ReadTimeouts(request, timeouts, now)
