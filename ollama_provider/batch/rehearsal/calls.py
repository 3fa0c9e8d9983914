"""How many requests a server works on at a time, seen in the requests themselves. No network, no clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ollama_provider.api.events import CallEnded, Event, Listener

#: A shorter wait, in seconds, is no queue: the server's durations leave some time unaccounted for.
_SHORTEST_WAIT = 0.005


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was answered.

    Attributes:
        began, ended: seconds of a clock that never goes back.
        queued: seconds at its beginning for which it waited for a slot, as the server says.
    """

    began: float
    ended: float
    queued: float

    @property
    def started(self) -> float:
        """When the server began to work on it."""
        return min(self.began + self.queued, self.ended)


class Calls:
    """A listener that keeps the times of requests for rows, and passes all events on.

    Args:
        clock: seconds of a clock that never goes back.
        listener: is told of the events, too.
    """

    def __init__(self, clock: Callable[[], float], listener: Listener | None = None) -> None:
        self._clock = clock
        self._listener = listener
        self.ended: list[Call] = []

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, CallEnded) and event.metrics is not None:
            metrics = event.metrics
            if metrics.prompt_eval_count or metrics.eval_count:  # otherwise it only loaded the model
                now = self._clock()
                queued = metrics.queue_seconds
                self.ended.append(Call(now - event.seconds, now, queued if queued >= _SHORTEST_WAIT else 0.0))
        if self._listener is not None:
            self._listener(event)


@dataclass(frozen=True)
class Parallel:
    """How many requests were worked on at a time.

    Attributes:
        requests: on average, at the times when all slots were busy; else at most.
        waited: some requests had to wait for a slot, so more at a time would not be faster.
    """

    requests: float
    waited: bool


def parallel(calls: Sequence[Call]) -> Parallel | None:
    """Return how many requests were worked on at a time; None without any.

    While a request waits, all slots are busy: as many requests are worked on as there are slots. Where none ever
    waits, it is known only that there are at least as many slots as were used. Slots may be busy with requests of
    somebody else, all of them even; then it is the average of all the time in which there was a request.
    """
    changes = [
        change for call in calls for change in ((call.began, 0, 1), (call.started, 1, -1), (call.ended, -1, 0))
    ]  # time, change of the requests that are worked on, change of those that wait
    if not changes:
        return None
    working = waiting = most = 0
    busy = weighted = present = before = 0.0
    for now, works, waits in sorted(changes):
        if waiting:
            busy += now - before
            weighted += working * (now - before)
        if waiting or working:
            present += now - before
        working, waiting, before = working + works, waiting + waits, now
        most = max(most, working)
    service = sum(call.ended - call.started for call in calls)
    # A moment in which a request waits says little, since times of two clocks are compared.
    if service and busy > service / len(calls) / 2:
        return Parallel(max(weighted / busy, service / present), waited=True)
    return Parallel(float(max(1, most)), waited=False)


def busy_seconds(calls: Sequence[Call]) -> list[float]:
    """Return for each request the time in which the server was busy with it and with none that ended before.

    That is what requests take at a server that works on one after the other, but does not tell how long each waited.
    """
    found, before = [], float("-inf")
    for call in sorted(calls, key=lambda call: call.ended):
        found.append(call.ended - max(call.began, before))
        before = call.ended
    return found
