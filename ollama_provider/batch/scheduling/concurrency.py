"""How many requests at a time? A climb on throughput against queue time. No network, no clock.

The parallel slots of a server (``OLLAMA_NUM_PARALLEL``) cannot be asked for, and a loaded model queues without limit,
so no refusal tells that it is enough. But the replies do: they tell how long a request waited for a slot. With `n`
requests in flight of which a share `q` of the time is waiting, ``n * (1 - q)`` would do, once there is waiting at all.
And when there is none, twice as many are tried, and kept if more tokens a second come of it: slots that share one busy
GPU are no gain.
"""

from dataclasses import dataclass, field
from math import ceil

#: What an unknown server begins with.
_START = 4
#: The most that is tried.
_MOST = 256
#: A share of waiting that says: the server has no more slots than this.
_WAITING = 0.12
#: A doubling that brings less than this is taken back.
_WORTH = 1.10
#: After so many windows at rest, look again.
_REST = 20


@dataclass
class _Window:
    rows: int = 0
    wall: float = 0.0
    queue: float = 0.0
    tokens: float = 0.0

    def add(self, wall: float, queue: float, tokens: int | None) -> None:
        self.rows += 1
        self.wall += wall
        self.queue += min(queue, wall)
        self.tokens += tokens or 1


@dataclass
class Climb:
    """Finds the number of requests in flight at which more would not help.

    Attributes:
        target: requests to keep in flight now.
        most: never more than this.
    """

    target: int = _START
    most: int = _MOST
    _window: _Window = field(default_factory=_Window)
    _generation: int = 0
    _before: tuple[int, float] | None = None
    _rest: int = 0

    def observe(self, sent_at_target: int, wall: float, queue: float, tokens: int | None) -> None:
        """Take one answered request into account.

        Args:
            sent_at_target: `target` when it was sent; one that was sent at another is left out.
            wall: seconds from sending to the last token.
            queue: seconds of these that it waited for a slot, by the server's account; 0 if it gave none.
            tokens: that it generated; None if it did not say.
        """
        if sent_at_target != self.target:
            return
        self._window.add(wall, queue, tokens)
        if self._window.rows >= max(2 * self.target, 8):
            window, self._window = self._window, _Window()
            self._decide(window)

    def overloaded(self) -> None:
        """The server refused for lack of room: half as many, and no more soon."""
        self._move(max(1, self.target // 2))
        # What more requests brought was measured before the server had no room for them.
        self._before = None
        self._rest = _REST

    def _decide(self, window: _Window) -> None:
        # By Little's law, without the noise of a window's ends.
        throughput = self.target * window.tokens / window.wall
        waiting = window.queue / window.wall
        before, self._before = self._before, None
        if waiting >= _WAITING:
            # One more than are not waiting, so that a freed slot never waits for us.
            slots = self.target * (1 - waiting)
            self._move(ceil(slots - 0.25) + max(1, ceil(slots / 8)))
            self._rest = _REST
        elif before is not None and throughput < _WORTH * before[1]:
            self._move(before[0])
            self._rest = _REST
        elif self._rest:
            self._rest -= 1
        elif self.target < self.most:
            self._before = (self.target, throughput)
            self._move(2 * self.target)

    def _move(self, target: int) -> None:
        target = max(1, min(target, self.most))
        if target != self.target:
            self.target = target
            self._window = _Window()


@dataclass
class Fixed:
    """A number that the user gave."""

    target: int

    @property
    def most(self) -> int:
        """The number itself."""
        return self.target

    def observe(self, sent_at_target: int, wall: float, queue: float, tokens: int | None) -> None:
        """See `Climb`; it changes nothing."""

    def overloaded(self) -> None:
        """See `Climb`; it changes nothing."""


# FROM batch.packsize: How many texts share a request.

#: A step up that brings less than this is taken back.
_WORTH_PACK = 1.10

#: Seconds of a request: longer ones only fail or stop later.
_LONG = 10.0

_LARGEST = 512


@dataclass
class PackSize:
    """Finds how many texts a request pay, from how many a second come of it. No network, no clock.

    Attributes:
        size: texts of the next pack.
    """

    size: int = 8
    _packs: int = 0
    _seconds: float = 0.0
    _best: float = 0.0
    _settled: bool = False

    def observe(self, texts: int, seconds: float) -> None:
        """Take one answered pack into account; those of another size are left out."""
        if self._settled or texts != self.size:
            return
        self._packs += 1
        self._seconds += seconds
        # The first packs wait for each other's connection, and a pair tells more than one.
        if self._packs < 3:
            return
        rate, longest = self._packs * texts / self._seconds, self._seconds / self._packs
        self._packs, self._seconds = 0, 0.0
        if rate < _WORTH_PACK * self._best or longest > _LONG:
            self.size, self._settled = max(1, self.size // 2), True
        elif self.size >= _LARGEST:
            self._settled = True
        else:
            self._best = rate
            self.size *= 2


@dataclass
class FixedPack:
    """A number that the user gave, or 1 for tasks without packs."""

    size: int = 1

    def observe(self, texts: int, seconds: float) -> None:
        """See `PackSize`; it changes nothing."""
