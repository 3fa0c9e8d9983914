"""How long to wait for the next byte of an answer, how many bytes to take, and which error says that it was too much.

No answer is waited for without end, and none is read without end. Time is an argument.
"""

import math
from typing import Any

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import PullMoved
from ollama_provider.api.pulls import PullProgress
from ollama_provider.api.schemas import PullRequest, PushRequest, Request
from ollama_provider.api.settings import Timeouts

#: Bytes that one line of a stream may have: a picture fits.
LONGEST_LINE = 32 * 2**20
#: Seconds for the end of an answer whose last object is there.
UNTIL_END = 5.0
#: One object of an answer may take so many times the silence that is granted.
SLOWEST = 10
#: A request that no model works on may take so many times the silence that is granted.
LONGEST = 4


class Patience:
    """The patience with one attempt at a request whose model has to work: first token, idle, total.

    Bytes that come drop by drop do not prolong it for ever: an object of the answer has to be whole within `SLOWEST`
    times the idle timeout.

    Args:
        request: what is asked; it says how long its answer may be.
        timeouts: the settings.
        now: seconds, of any clock that never goes back; the attempt begins.
    """

    #: What an answer is called that is too long.
    too_long: type[OllamaError] = errors.RejectedReplyError

    def __init__(self, request: Request[Any], timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._end = now + timeouts.total if timeouts.total is not None else math.inf
        self._next = now + timeouts.first_token
        self._object_by = math.inf
        self._began = False
        self._longest = request.longest
        self._longest_line = min(LONGEST_LINE, self._longest) if request.streamed else self._longest
        self._size = self._line = 0

    @property
    def deadline(self) -> float:
        """When to give up, unless a byte comes before."""
        return min(self._next, self._end, self._object_by)

    def hear(self, size: int, now: float) -> bool:
        """Note that so many bytes came; return whether they may."""
        if not self._began:
            self._began = True
            self._object_by = now + SLOWEST * self._timeouts.idle
        self._next = now + self._timeouts.idle
        return self._fits(size)

    def _fits(self, size: int) -> bool:
        self._size += size
        self._line += size
        return self._size <= self._longest and self._line <= self._longest_line

    def take(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Note an object of the answer; a pull may have something to report."""
        self._line = 0
        self._object_by = now + SLOWEST * self._timeouts.idle
        self._end_soon(part, now)
        return None

    def _end_soon(self, part: dict[str, Any], now: float) -> None:
        if part.get("done") is True or part.get("status") == "success":
            self._end = min(self._end, now + UNTIL_END)

    def refuse(self, *, host: str, model: str | None) -> OllamaError:
        """Return the error for an answer that is too long."""
        bound = self._longest if self._size > self._longest else self._longest_line
        what = "the answer is" if bound == self._longest else "a line of the answer is"
        return self.too_long(f"{what} longer than {bound / 2**20:.0f} MiB", host=host, model=model)

    def give_up(self, *, host: str, model: str | None) -> OllamaError:
        """Return the error for a deadline that passed."""
        kind, seconds, what = self._judge()
        return kind(f"{what} within {seconds:g} s", host=host, model=model)

    def _judge(self) -> tuple[type[OllamaError], float, str]:
        if self._end <= self._next and self._timeouts.total is not None:
            return errors.TotalTimeoutError, self._timeouts.total, "the answer was not complete"
        if self._object_by <= self._next:
            slowest = SLOWEST * self._timeouts.idle
            return errors.IdleTimeoutError, slowest, "the answer came drop by drop, and no part of it was whole"
        if self._began:
            return errors.IdleTimeoutError, self._timeouts.idle, "the answer stalled: nothing more came"
        return errors.FirstTokenTimeoutError, self._timeouts.first_token, "no answer began"


class FixedPatience(Patience):
    """The patience with a request that no model works on.

    The same silence is granted before and between bytes, and `LONGEST` times as much for all of it.
    """

    too_long = errors.NotOllamaError

    def __init__(self, request: Request[Any], seconds: float, timeouts: Timeouts, now: float) -> None:
        super().__init__(request, timeouts, now)
        self._seconds = seconds
        self._next, self._end = now + seconds, now + LONGEST * seconds

    def hear(self, size: int, now: float) -> bool:
        """Note that so many bytes came; return whether they may."""
        self._next = now + self._seconds
        return self._fits(size)

    def take(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Note an object of the answer."""
        self._line = 0
        self._end_soon(part, now)
        return None

    def _judge(self) -> tuple[type[OllamaError], float, str]:
        if self._end <= self._next:
            return errors.ResponseTimeoutError, LONGEST * self._seconds, "the answer was not complete"
        return errors.ResponseTimeoutError, self._seconds, "nothing came"


class PullPatience(Patience):
    """The patience with a pull or a push: as long as bytes move, for ever."""

    too_long = errors.PullFailedError

    def __init__(self, request: PullRequest | PushRequest, timeouts: Timeouts, now: float) -> None:
        super().__init__(request, timeouts, now)
        self._end = math.inf
        self._progress = PullProgress(request.model, stall=timeouts.pull_stall, now=now)
        self._next = self._progress.deadline

    def hear(self, size: int, now: float) -> bool:  # noqa: ARG002  # lines of a stalled pull keep coming
        """Note that so many bytes came; return whether they may. Only what they say prolongs the patience."""
        return self._fits(size)

    def take(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Note a line; return a report when one is due."""
        self._line = 0
        self._end_soon(part, now)
        moved = self._progress.add(part, now)
        self._next = self._progress.deadline
        return moved

    def _judge(self) -> tuple[type[OllamaError], float, str]:
        stage = self._progress.status or "the first line"
        return errors.PullStalledError, self._timeouts.pull_stall, f"the pull stalled at {stage!r}: no byte more"


def patience_for(request: Request[Any], timeouts: Timeouts, now: float) -> Patience:
    """Return the patience that fits a request."""
    if isinstance(request, PullRequest | PushRequest):
        return PullPatience(request, timeouts, now)
    if request.patience is not None:
        return FixedPatience(request, request.patience, timeouts, now)
    return Patience(request, timeouts, now)
