"""What the tasks of a run share that read the input, send requests and watch the clock."""

import asyncio
import contextlib
from typing import Any

from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.servers import InFlight
from ollama_provider.batch.scheduling.tail import rows_to_read


class Scheduler:
    """The plan of a run. `Plan` decides; tasks wait here for a change of it.

    Args:
        plan: which request is sent next, and where.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        #: The input is not read to its end.
        self.more_input = True
        #: The answers of a server may still be taken back, since its model is not compared yet.
        self.comparison_due = len(plan.servers) > 1
        #: What waits for the answer of a request that may be discarded.
        self.waiting: dict[InFlight, asyncio.Task[Any]] = {}
        self._rows_ahead, self._counted = 0, 0
        # asyncio.Condition would need a lock, which plain functions that notify cannot take. The reader has an event of
        # its own, so that not every reply wakes it.
        self._changed = asyncio.Event()
        self._rows_wanted = asyncio.Event()
        self._all_answered = asyncio.Event()

    @property
    def in_flight_limit(self) -> int:
        """Requests that may be in flight at all servers: fewer than the concurrency just after a pause."""
        return sum(server.in_flight_limit for server in self.plan.servers if server.ready and not server.left_out)

    @property
    def rows_ahead(self) -> int:
        """Rows that must be queued, so that no worker waits for the input."""
        # It changes slowly, and every request looks at it: so it is counted anew for one request of each server.
        if self._counted <= 0:
            self._rows_ahead, self._counted = rows_to_read(self.plan.servers), len(self.plan.servers)
        self._counted -= 1
        return self._rows_ahead

    @property
    def answered(self) -> bool:
        """Every row of the input has an outcome."""
        return not self.more_input and not self.plan.unfinished

    @property
    def finished(self) -> bool:
        """Every row of the input has an outcome that stays."""
        return self.answered and not self.comparison_due

    def notify(self) -> None:
        """Wake all tasks that wait for a change of the plan."""
        self._changed.set()
        self._changed.clear()
        if self.answered:
            self._all_answered.set()

    async def wait(self, until: float = 0.0) -> None:
        """Wait for a change, or until that time of the event loop's clock; 0 is no such time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until or None):
                await self._changed.wait()

    async def wait_until_answered(self) -> None:
        """Wait until every row of the input has an outcome."""
        while not self.answered:
            self._all_answered.clear()
            await self._all_answered.wait()

    def want_rows(self) -> None:
        """Wake the reader of the input."""
        self._rows_wanted.set()

    async def wait_until_rows_wanted(self) -> None:
        """Wait until the reader should look whether more rows are needed."""
        self._rows_wanted.clear()
        await self._rows_wanted.wait()
