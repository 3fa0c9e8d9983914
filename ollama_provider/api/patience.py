"""How long to wait for the next byte of an answer, and what it is called when none comes. Time is an argument."""

import math
from typing import Any

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import PullMoved
from ollama_provider.api.pulling import PullProgress
from ollama_provider.api.schemas import PullRequest, PushRequest, Request
from ollama_provider.api.settings import Timeouts


class Patience:
    """The patience with one attempt at a request whose model has to work: first token, idle, total.

    Args:
        timeouts: the settings.
        now: seconds, of any clock that never goes back; the attempt begins.
    """

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._end = now + timeouts.total if timeouts.total is not None else math.inf
        self._next = now + timeouts.first_token
        self._began = False

    @property
    def deadline(self) -> float:
        """When to give up, unless a byte comes before."""
        return min(self._next, self._end)

    def hear(self, now: float) -> None:
        """Note that bytes came."""
        self._began = True
        self._next = now + self._timeouts.idle

    def take(self, part: dict[str, Any], now: float) -> PullMoved | None:  # noqa: ARG002  # of use to a pull alone
        """Note an object of the answer; a pull may have something to report."""
        return None

    def give_up(self, *, host: str, model: str | None) -> OllamaError:
        """Return the error for a deadline that passed."""
        kind, seconds, what = self._judge()
        return kind(f"{what} within {seconds:g} s", host=host, model=model)

    def _judge(self) -> tuple[type[OllamaError], float, str]:
        if self._end <= self._next and self._timeouts.total is not None:
            return errors.TotalTimeoutError, self._timeouts.total, "the answer was not complete"
        if self._began:
            return errors.IdleTimeoutError, self._timeouts.idle, "the answer stalled: nothing more came"
        return errors.FirstTokenTimeoutError, self._timeouts.first_token, "no answer began"


class FixedPatience(Patience):
    """The patience with a request that no model works on: the same silence is granted before and between bytes."""

    def __init__(self, seconds: float, timeouts: Timeouts, now: float) -> None:
        super().__init__(timeouts, now)
        self._seconds = seconds
        self._next, self._end = now + seconds, math.inf

    def hear(self, now: float) -> None:
        """Note that bytes came."""
        self._next = now + self._seconds

    def _judge(self) -> tuple[type[OllamaError], float, str]:
        return errors.ResponseTimeoutError, self._seconds, "nothing came"


class PullPatience(Patience):
    """The patience with a pull or a push: as long as bytes move, for ever."""

    def __init__(self, model: str, timeouts: Timeouts, now: float) -> None:
        super().__init__(timeouts, now)
        self._end = math.inf
        self._progress = PullProgress(model, stall=timeouts.pull_stall, now=now)
        self._next = self._progress.deadline

    def hear(self, now: float) -> None:
        """Take no notice: the lines of a stalled pull keep coming, so only their content counts."""

    def take(self, part: dict[str, Any], now: float) -> PullMoved | None:
        """Note a line; return a report when one is due."""
        moved = self._progress.add(part, now)
        self._next = self._progress.deadline
        return moved

    def _judge(self) -> tuple[type[OllamaError], float, str]:
        stage = self._progress.status or "the first line"
        return errors.PullStalledError, self._timeouts.pull_stall, f"the pull stalled at {stage!r}: no byte more"


def patience_for(request: Request[Any], timeouts: Timeouts, now: float) -> Patience:
    """Return the patience that fits a request."""
    if isinstance(request, PullRequest | PushRequest):
        return PullPatience(request.model, timeouts, now)
    if request.patience is not None:
        return FixedPatience(request.patience, timeouts, now)
    return Patience(timeouts, now)
