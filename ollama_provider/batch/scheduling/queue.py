"""The rows that wait for a request, in the order in which they are sent."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling.servers import ServerState

#: With so many rows waiting for another attempt, the first of them is sent before new rows; and with fewer as long as
#: no row has a good result.
_MANY, _FIRST = 1000, 20


@dataclass
class RowQueue:
    """The rows that wait for a request.

    Attributes:
        new: never sent, or only into an outage.
        retries: failed by themselves, and to be sent once more.
        postponed: for the fallback model, which is used last.
        own: of each server, by its index: the rows that no other server may get.
    """

    new: deque[WorkItem] = field(default_factory=deque)
    retries: deque[WorkItem] = field(default_factory=deque)
    postponed: deque[WorkItem] = field(default_factory=deque)
    own: defaultdict[int, deque[WorkItem]] = field(default_factory=lambda: defaultdict(deque))

    def __len__(self) -> int:
        return len(self.new) + len(self.retries) + len(self.postponed) + sum(map(len, self.own.values()))

    def waiting_for(self, server: ServerState) -> int:
        """Return how many rows that server may get."""
        own = len(self.own[server.index]) if self.own else 0
        return len(self.new) + len(self.retries) + len(self.postponed) + own

    def put_back(self, item: WorkItem, place: int) -> None:
        """Put an item that was sent into an outage behind so many others."""
        item.pack_closed = True
        self.new.insert(min(place, len(self.new)), item)

    def halve(self, item: WorkItem) -> None:
        """Send a pack again as two. So a bad row is found in a few steps, and no other row loses an attempt."""
        pack = item.pack
        middle = (len(pack) + 1) // 2
        for first, *rest in (pack[middle:], pack[:middle]):
            first.rest, first.pack_closed = tuple(rest), True
            self.new.appendleft(first)

    def fill(self, item: WorkItem, size: int, characters: int) -> None:
        """Make a pack of an item that is about to be sent and new ones behind it.

        Args:
            item: the first of the pack.
            size: items of the pack at most.
            characters: of their prompts at most; one item may have more.
        """
        if item.rest or item.pack_closed or item.exclusive or item.copies > 1:
            return
        rest: list[WorkItem] = []
        characters -= len(item.prompt)
        while self.new and len(rest) < size - 1:
            other = self.new[0]
            characters -= len(other.prompt)
            if other.pack_closed or other.rest or other.exclusive or characters < 0:
                break
            rest.append(self.new.popleft())
        item.rest = tuple(rest)

    def next_for(
        self, server: ServerState, now: float, *, more: bool, answered: bool, in_flight: int
    ) -> deque[WorkItem] | None:
        """Return the queue whose first item is the server's next; None if it must wait.

        Args:
            server: that could take an item.
            now: the time.
            more: the input has more rows to come.
            answered: a row has a good result.
            in_flight: requests in flight at any server of which something may come back to the queue.
        """
        own = self.own[server.index] if self.own else self.retries
        if self._postponed_are_due(server, own, more=more, in_flight=in_flight):
            return self.postponed
        enough = _MANY if answered else _FIRST
        if self.new and len(self.retries) < enough and len(own) < enough:
            return self.new
        for queue in (own, self.retries):
            if queue and queue[0].not_before <= now and (not more or len(queue) >= enough):
                return queue
        return self.new or None

    def retry_time(self, server: ServerState) -> float:
        """Return when the server may have its next retry; 0 if there is none."""
        times = [queue[0].not_before for queue in (self.own[server.index], self.retries) if queue]
        return min(times, default=0.0)

    def _postponed_are_due(self, server: ServerState, own: deque[WorkItem], *, more: bool, in_flight: int) -> bool:
        """Return whether postponed items are sent now: all of them, once nothing else is left or they are many."""
        if not self.postponed:
            server.asks_fallback = False
        elif len(self.postponed) >= _MANY or not (more or self.new or self.retries or own or in_flight):
            server.asks_fallback = True
        return server.asks_fallback

    def keep_for_others(self, queue: deque[WorkItem], server: ServerState) -> None:
        """Keep the first items of a queue, as far as they are for one other server each, for these servers."""
        while queue and queue[0].only not in (-1, server.index):
            item = queue.popleft()
            self.own[item.only].append(item)

    def release(self, index: int) -> None:
        """Let any server have the items that one alone could get."""
        for item in self.own.pop(index, ()):
            item.only = -1
            self.retries.append(item)
