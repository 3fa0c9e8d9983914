"""Pulls: progress, detection of stalls, and which missing models may be pulled. No network; the time is an argument.

The server reports one layer after another, every 60 ms. ``completed`` may decrease (a corrupt part is transferred
again), a layer may lack its last line, and a stalled pull keeps sending lines. So progress is measured in transferred
bytes and not in lines. Hashing a layer (``verifying sha256 digest``) is silent for minutes, which is no stall.
"""

from collections import deque
from fnmatch import fnmatchcase
from typing import TypeGuard

from ollama_provider.api.errors import InvalidRequestError, ModelNotFoundError, PullNotAllowedError
from ollama_provider.api.events import PullMoved
from ollama_provider.api.model_names import ModelName
from ollama_provider.api.schemas.base import printable
from ollama_provider.api.settings import Settings

#: Seconds between two reports of the same stage.
REPORT_EVERY = 5.0
#: Seconds over which the rate is averaged.
RATE_OVER = 30.0
#: Timeout for hashing and writing, in seconds: a huge layer on a slow disk.
VERIFY_TIMEOUT = 3600.0
#: Limit of layers and stages to keep in memory. The largest models have some thousands of layers.
MOST_LAYERS = 100_000
#: Most seconds that are worth telling: a year. A server may state any size.
_LONGEST_ETA = 365 * 86_400.0
#: Characters of a stage's or a layer's name; the server's have up to 80.
_LONGEST_STAGE = 200
#: Seconds between two measurements that are kept for the rate.
MEASURE_EVERY = 0.1

_TRANSFERS = ("pulling ", "pushing ")


class PullProgress:
    """The progress of one pull or push, from its lines.

    Args:
        model: the model that is pulled.
        stall: seconds without a byte more after which the pull counts as stalled.
        now: seconds, of any clock that never goes back.
    """

    def __init__(self, model: str, *, stall: float, now: float) -> None:
        self.model = model
        self.status = ""
        self._stall = stall
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._most = 0
        self._silence = stall
        self._moved_at = now
        self._reported_at = -REPORT_EVERY
        self._reported_status = ""
        self._history: deque[tuple[float, int]] = deque([(now, 0)])
        self._seen: set[str] = set()

    @property
    def deadline(self) -> float:
        """When the pull counts as stalled, unless it moves before."""
        return self._moved_at + self._silence

    def add(self, line: dict[str, object], now: float) -> PullMoved | None:
        """Add one line.

        Returns:
            An event, at each new stage and otherwise every `REPORT_EVERY` seconds; None in between.
        """
        status = line.get("status")
        stage = printable(status[:_LONGEST_STAGE]) if isinstance(status, str) else ""
        if stage != self.status:
            # A new stage is progress: the manifest has arrived, or the next layer begins. An earlier stage is not.
            self.status = stage
            if stage not in self._seen and len(self._seen) < MOST_LAYERS:
                self._seen.add(stage)
                self._moved_at = now
            self._silence = self._stall if self._is_transfer(stage) else max(self._stall, VERIFY_TIMEOUT)
        self._count(line)
        done = sum(self._done.values())
        if done > self._most:
            self._most = done
            self._moved_at = now
        if now - self._history[-1][0] >= MEASURE_EVERY:
            self._history.append((now, self._most))
        while self._history[0][0] < now - RATE_OVER:
            self._history.popleft()
        return self._report(now)

    @staticmethod
    def _is_transfer(stage: str) -> bool:
        return stage.startswith(_TRANSFERS) or stage.startswith("retrieving")

    def _count(self, line: dict[str, object]) -> None:
        digest, total, completed = line.get("digest"), line.get("total"), line.get("completed")
        if (
            not isinstance(digest, str)
            or len(digest) > _LONGEST_STAGE
            or (digest not in self._done and len(self._done) >= MOST_LAYERS)
        ):
            return
        if _is_size(total):
            self._total[digest] = total
        self._done[digest] = completed if _is_size(completed) else 0

    def _report(self, now: float) -> PullMoved | None:
        over = self.status == "success"
        kind = self.status.split(" ", 1)[0]
        if not over and kind == self._reported_status and now - self._reported_at < REPORT_EVERY:
            return None
        self._reported_at, self._reported_status = now, kind
        total = sum(self._total.values())
        # A status of success counts as all bytes: a last line with all of them may be missing.
        done = total if over else min(self._most, total)
        rate = self._rate(now)
        eta = (total - done) / rate if rate else None
        if eta is not None and eta > _LONGEST_ETA:
            eta = None
        return PullMoved(model=self.model, status=self.status, done=done, total=total, rate=rate, eta=eta)

    def _rate(self, now: float) -> float | None:
        since, had = self._history[0]
        return (self._most - had) / (now - since) if now > since and self._most > had else None


def _is_size(value: object) -> TypeGuard[int]:
    """Return whether a value can be a number of bytes."""
    return isinstance(value, int) and 0 <= value < 2**63


def check_pull_allowed(model: str, settings: Settings, missing: ModelNotFoundError) -> None:
    """Check that a missing model may be pulled; the error says how to allow it.

    With ``auto_pull``, names on Ollama's own registry may be pulled, and other names that match a pattern of
    ``pull_allow``. The server contacts the host in a name, so a name from data must not choose the host.

    Args:
        model: the name in the request.
        settings: ``auto_pull`` and ``pull_allow`` are read.
        missing: the server's answer, for host and status.

    Raises:
        PullNotAllowedError: it may not be pulled.
    """
    # An error of several servers says what each of them answered.
    lacks = missing.what if missing.host is None else "the server does not have the model"

    def refuse(what: str, advice: str) -> PullNotAllowedError:
        return PullNotAllowedError(what, advice=advice, host=missing.host, model=model, status=missing.status)

    if not settings.auto_pull:
        advice = "Pull it by hand, or set auto_pull=True on the call, the operator or the connection."
        raise refuse(f"{lacks}, and auto_pull is off", advice)
    try:
        name = ModelName.parse(model)
    except InvalidRequestError as error:
        raise refuse(error.what, "") from None
    if name.on_default_registry or any(_fits(name, pattern) for pattern in settings.pull_allow):
        return
    advice = f"Pull it by hand, or add '{name.host}/{name.namespace}/*' to pull_allow of the connection."
    raise refuse(f"{lacks}, and names at {name.host} are not pulled by themselves", advice)


def may_pull(model: str | None, settings: Settings) -> bool:
    """Return whether a missing model may be pulled; False where a request is about no model."""
    if model is None:
        return False
    try:
        check_pull_allowed(model, settings, ModelNotFoundError("missing"))
    except PullNotAllowedError:
        return False
    return True


def _fits(name: ModelName, pattern: str) -> bool:
    """Match a pattern against the name with and without its tag, ignoring case."""
    full = str(name).lower()
    return any(fnmatchcase(text, pattern.lower()) for text in (full, full.rpartition(":")[0]))
