"""Following a pull, and whether one may begin. No network, no clock: the time is an argument.

A pull reports layer by layer, every 60 ms. A layer appears when its turn comes, ``completed`` may go backwards (a part
that was corrupt is fetched again), the last line of a layer is not certain, and a stalled pull keeps sending lines. So
progress is measured in bytes that are there and not in lines that come. Hashing a layer (``verifying sha256 digest``)
is silent for minutes, and that is right.
"""

from collections import deque
from fnmatch import fnmatchcase
from typing import TypeGuard

from ollama_provider.api.errors import InvalidRequestError, ModelNotFoundError, PullNotAllowedError
from ollama_provider.api.events import PullMoved
from ollama_provider.api.model_names import ModelName
from ollama_provider.api.settings import Settings

#: Seconds between two reports of the same stage.
REPORT_EVERY = 5.0
#: Seconds over which the rate is measured.
RATE_OVER = 30.0
#: Seconds of silence granted for hashing and for writing: a huge layer on a slow disk.
VERIFY_TIMEOUT = 3600.0
#: Layers and stages that are told apart; the largest models have some thousands of layers.
MOST_LAYERS = 100_000
#: Seconds between two measurements that are kept for the rate.
MEASURE_EVERY = 0.1

_TRANSFERS = ("pulling ", "pushing ")


class PullProgress:
    """What the lines of one pull (or push) say, taken together.

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
        """Take one line.

        Returns:
            A report, at each new stage and else every `REPORT_EVERY` seconds; None in between.
        """
        status = line.get("status")
        stage = status if isinstance(status, str) else ""
        if stage != self.status:
            # A new stage is progress by itself: the manifest came, or the next layer begins. An old one is not.
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
        if not isinstance(digest, str) or (digest not in self._done and len(self._done) >= MOST_LAYERS):
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
        # Success is the proof; a last line with all bytes need not come.
        done = total if over else min(self._most, total)
        rate = self._rate(now)
        eta = (total - done) / rate if rate else None
        return PullMoved(model=self.model, status=self.status, done=done, total=total, rate=rate, eta=eta)

    def _rate(self, now: float) -> float | None:
        since, had = self._history[0]
        return (self._most - had) / (now - since) if now > since and self._most > had else None


def _is_size(value: object) -> TypeGuard[int]:
    """Return whether a number can be one of bytes."""
    return isinstance(value, int) and 0 <= value < 2**63


def check_pull_allowed(model: str, settings: Settings, missing: ModelNotFoundError) -> None:
    """Let a missing model be pulled, or say why not and how to allow it.

    Names on Ollama's own registry may be pulled whenever ``auto_pull`` is on, other names only where a pattern of
    ``pull_allow`` fits: the host in a name is contacted by the server, so a name from data must not choose it.

    Args:
        model: the name that was asked for.
        settings: ``auto_pull`` and ``pull_allow`` are read.
        missing: the server's answer, for host and status.

    Raises:
        PullNotAllowedError: it may not be pulled.
    """

    def refuse(what: str, advice: str) -> PullNotAllowedError:
        return PullNotAllowedError(what, advice=advice, host=missing.host, model=model, status=missing.status)

    if not settings.auto_pull:
        advice = "Pull it by hand, or set auto_pull=True on the call, the operator or the connection."
        raise refuse("the server does not have the model, and auto_pull is off", advice)
    try:
        name = ModelName.parse(model)
    except InvalidRequestError as error:
        raise refuse(error.what, "") from None
    if name.on_default_registry or any(_fits(name, pattern) for pattern in settings.pull_allow):
        return
    advice = f"Pull it by hand, or add '{name.host}/{name.namespace}/*' to pull_allow of the connection."
    raise refuse(f"the server does not have the model, and names at {name.host} are not pulled by themselves", advice)


def _fits(name: ModelName, pattern: str) -> bool:
    """Match a pattern against the name with and without its tag, whatever the case."""
    full = str(name).lower()
    return any(fnmatchcase(text, pattern.lower()) for text in (full, full.rpartition(":")[0]))
