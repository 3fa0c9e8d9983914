"""What the tasks of a run share that read the input, send requests and watch the clock."""

import asyncio
import contextlib

from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize
from ollama_provider.batch.scheduling.plan import Plan


class Scheduler:
    """The plan of a run and the two sizes that it goes by. `Plan` decides; tasks wait here for a change of it.

    Args:
        plan: which request is sent next.
        concurrency: how many requests may be in flight.
        pack: how many texts share a request.
    """

    def __init__(self, plan: Plan, concurrency: ConcurrencyLimit, pack: PackSize) -> None:
        self.plan = plan
        self.concurrency = concurrency
        self.pack = pack
        #: The input is not read to its end.
        self.more_input = True
        # asyncio.Condition would need a lock, which plain functions that notify cannot take. The reader has an event of
        # its own, so that not every reply wakes it.
        self._changed = asyncio.Event()
        self._rows_wanted = asyncio.Event()

    @property
    def in_flight_limit(self) -> int:
        """Requests that may be in flight: fewer than the concurrency just after a pause."""
        return self.plan.in_flight_limit(self.concurrency.target)

    @property
    def rows_ahead(self) -> int:
        """Rows that must be queued, so that no worker waits for the input."""
        return self.concurrency.target * self.pack.size

    @property
    def finished(self) -> bool:
        """Every row of the input has an outcome."""
        return not self.more_input and not self.plan.unfinished

    def notify(self) -> None:
        """Wake all tasks that wait for a change of the plan."""
        self._changed.set()
        self._changed.clear()

    async def wait(self, until: float = 0.0) -> None:
        """Wait for a change, or until that time of the event loop's clock; 0 is no such time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until or None):
                await self._changed.wait()

    def want_rows(self) -> None:
        """Wake the reader of the input."""
        self._rows_wanted.set()

    async def wait_until_rows_wanted(self) -> None:
        """Wait until the reader should look whether more rows are needed."""
        self._rows_wanted.clear()
        await self._rows_wanted.wait()
