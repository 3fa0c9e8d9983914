"""The decisions of the plan as values: what a worker does now, and what became of a failed attempt."""

from dataclasses import dataclass
from enum import Enum, auto

from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling.servers import InFlight


class Do(Enum):
    """What a worker does now."""

    SEND = auto()
    #: Send a request that is no row's, to find out whether the server works.
    PROBE = auto()
    #: Wait until `Step.until`, or for a change.
    WAIT = auto()
    #: Wait for a change: more rows from the input, or the end of a request.
    IDLE = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """What a worker does now.

    Attributes:
        do: the kind of step.
        sent: the request to send.
        item: that goes next if a probe succeeds; None if it is only about the server.
        until: time to wait for, of the clock that `Plan.next` was given; 0 is no such time.
    """

    do: Do
    sent: InFlight | None = None
    item: WorkItem | None = None
    until: float = 0.0


class Verdict(Enum):
    """What became of a failed attempt."""

    #: The item is in the queue again, or in flight at another server.
    AGAIN = auto()
    #: The row failed for good.
    FAILED = auto()
    #: The batch stops.
    STOP = auto()
