"""Tasks that run beside the workers, and how they end together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from ollama_provider.batch.errors import BatchError
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.stop import StoppedError
from ollama_provider.batch.store.shards import RunLock

logger = logging.getLogger(__name__)

#: Seconds between two renewals of the lock; a lease of an object store is written less often.
_RENEW_EVERY = 1.0


@contextlib.asynccontextmanager
async def background_tasks() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Run coroutines beside a block. The first error ends the block and is raised; all are cancelled at its end.

    An `asyncio.TaskGroup` alone would wait for coroutines that never end, and raise a group of errors: a run ends for
    one reason, the first.
    """
    tasks: list[asyncio.Task[None]] = []
    error: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield lambda work: tasks.append(group.create_task(work))
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        error = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if error is not None:
        raise error from error.__cause__


class LockRenewal:
    """Renews the lock of a run to show that it is alive, also while a model loads or results are written.

    Args:
        lock: that the run has taken.
    """

    def __init__(self, lock: RunLock) -> None:
        self._lock = lock
        self._lost: Exception | None = None
        self._is_lost = asyncio.Event()

    async def run(self) -> None:
        """Renew it until it is lost."""
        while self._lost is None:
            await asyncio.sleep(_RENEW_EVERY)
            try:
                await asyncio.to_thread(self._lock.renew)
            except (BatchError, OSError) as error:
                self._lost = error
                self._is_lost.set()

    async def wait(self) -> None:
        """Wait until it is lost, and raise the reason."""
        await self._is_lost.wait()
        self.check()

    def check(self) -> None:
        """Raise the reason if it is lost; from any thread."""
        if self._lost is not None:
            raise self._lost


@contextlib.asynccontextmanager
async def renewing(lock: RunLock) -> AsyncIterator[LockRenewal]:
    """Renew the lock until the end of the block."""
    renewal = LockRenewal(lock)
    task = asyncio.create_task(renewal.run())
    try:
        yield renewal
    finally:
        task.cancel()


async def close_window(scheduler: Scheduler, closing: datetime) -> None:
    """Send no request from that moment on, and end the run when those in flight are answered."""
    await asyncio.sleep((closing - datetime.now(UTC)).total_seconds())
    scheduler.plan.closed = True
    logger.info("Window closed, sending no more requests; waiting for %d in flight.", scheduler.plan.in_flight)
    while scheduler.plan.in_flight:
        await scheduler.wait()
    raise StoppedError(f"the window closed at {closing.isoformat(timespec='minutes')}")
