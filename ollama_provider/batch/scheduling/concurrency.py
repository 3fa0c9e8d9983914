"""How many requests at a time, and how many texts in a request, found by measuring. No network, no clock.

**Requests.** The parallel slots of a server (``OLLAMA_NUM_PARALLEL``) cannot be asked for, and a loaded model queues
without limit, so the server never refuses a request for being one too many. But its replies tell how long a request
waited for a slot. With `n` requests in flight that spend a share `q` of their time waiting, ``n * (1 - q)`` are enough.
Where nothing waits, the limit is doubled, and the doubling is kept if it brings more tokens a second: slots that share
one busy GPU do not. A rehearsal has few rows to find that out: it measures with half as many, and tries four times as
many next.

**Texts for vectors.** The pack size is doubled for as long as that brings more texts a second.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Self

from ollama_provider.batch.spec import BatchSpec

#: The limit for a server that is not known yet.
_INITIAL = 4
_HIGHEST = 256
#: With this share of the time spent waiting, the server has no more slots than there are requests.
_QUEUED = 0.12
#: A raise that brings less than this is taken back.
_WORTHWHILE = 1.10
#: Measurements to skip before more requests are tried again.
_COOLDOWN = 20

#: Texts of the largest pack.
_LARGEST_PACK = 512
#: Seconds that the request for a pack should take at most: longer ones fail later, and delay a stop.
_LONGEST_PACK = 10.0
#: Packs of one measurement. The first ones include the time to connect, and one alone is noise.
_PACKS = 3


@dataclass
class _Measurement:
    rows: int = 0
    seconds: float = 0.0
    queued: float = 0.0
    tokens: float = 0.0

    def add(self, seconds: float, queued: float, tokens: int | None) -> None:
        self.rows += 1
        self.seconds += seconds
        self.queued += min(queued, seconds)
        self.tokens += tokens or 1


@dataclass
class ConcurrencyLimit:
    """Adapts the number of requests in flight to the server, between two bounds. Equal bounds fix it.

    Attributes:
        target: requests to keep in flight now.
        lowest: it never goes below.
        highest: it never goes above.
        few: only some rows are asked: measure with fewer, and raise it faster.
    """

    target: int = _INITIAL
    lowest: int = 1
    highest: int = _HIGHEST
    few: bool = False
    _measurement: _Measurement = field(default_factory=_Measurement)
    _before_raise: tuple[int, float] | None = None
    _cooldown: int = 0

    @classmethod
    def fixed(cls, number: int) -> Self:
        """Return a limit that stays as it is."""
        return cls(number, number, number)

    def observe(self, sent_at_target: int, seconds: float, queued: float, tokens: int | None) -> None:
        """Measure one answered request.

        Args:
            sent_at_target: `target` when it was sent. A request that was sent at another target is not measured.
            seconds: from sending to the last token.
            queued: seconds of these that it waited for a slot, as the server says; 0 if it does not.
            tokens: that it generated; None if the server does not say.
        """
        if sent_at_target != self.target:
            return
        self._measurement.add(seconds, queued, tokens)
        if self._measurement.rows >= (self.target if self.few else max(2 * self.target, 8)):
            measured, self._measurement = self._measurement, _Measurement()
            self._adapt(measured)

    def overloaded(self) -> None:
        """Halve it, and do not try more soon: the server refused a request because it is busy."""
        self._set_target(self.target // 2)
        # It was measured before the server was too busy.
        self._before_raise = None
        self._cooldown = _COOLDOWN

    def _adapt(self, measured: _Measurement) -> None:
        # By Little's law. The time between the first and the last answer would depend on where the measurement ends.
        throughput = self.target * measured.tokens / measured.seconds
        queued = measured.queued / measured.seconds
        before, self._before_raise = self._before_raise, None
        if queued >= _QUEUED:
            # A few more than there are slots, so that a freed slot always finds the next request.
            slots = self.target * (1 - queued)
            self._set_target(ceil(slots - 0.25) + max(1, ceil(slots / 8)))
            self._cooldown = _COOLDOWN
        elif before is not None and throughput < _WORTHWHILE * before[1]:
            self._set_target(before[0])
            self._cooldown = _COOLDOWN
        elif self._cooldown:
            self._cooldown -= 1
        elif self.target < self.highest:
            self._before_raise = (self.target, throughput)
            self._set_target((4 if self.few else 2) * self.target)

    def _set_target(self, target: int) -> None:
        target = max(self.lowest, min(target, self.highest))
        if target != self.target:
            self.target = target
            self._measurement = _Measurement()


@dataclass
class PackSize:
    """Finds the number of texts in a request for vectors with which most texts a second are answered.

    Attributes:
        size: texts of the next pack.
        settled: it stays as it is.
    """

    size: int = 8
    settled: bool = False
    _packs: int = 0
    _seconds: float = 0.0
    _best: float = 0.0

    def observe(self, texts: int, seconds: float) -> None:
        """Measure one answered pack. A pack of another size is not measured."""
        if self.settled or texts != self.size:
            return
        self._packs += 1
        self._seconds += seconds
        if self._packs < _PACKS:
            return
        rate, longest = self._packs * texts / self._seconds, self._seconds / self._packs
        self._packs, self._seconds = 0, 0.0
        if rate < _WORTHWHILE * self._best or longest > _LONGEST_PACK:
            self.size, self.settled = max(1, self.size // 2), True
        elif self.size >= _LARGEST_PACK:
            self.settled = True
        else:
            self._best = rate
            self.size *= 2


def concurrency_limit(spec: BatchSpec) -> ConcurrencyLimit:
    """Return the limit that a batch begins with."""
    if spec.pace.concurrency != "auto":
        return ConcurrencyLimit.fixed(spec.pace.concurrency)
    # A server works on one text for a vector at a time: the second request is there when the first is done.
    return ConcurrencyLimit(few=spec.mode == "rehearse") if spec.task != "embed" else ConcurrencyLimit.fixed(2)


def pack_size(spec: BatchSpec) -> PackSize:
    """Return the pack size that a batch begins with: one row, unless it is for vectors."""
    if spec.embedding is None:
        return PackSize(1, settled=True)
    return PackSize() if spec.embedding.pack == "auto" else PackSize(spec.embedding.pack, settled=True)
