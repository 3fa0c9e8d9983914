"""Coroutines that end together."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Group:
    """Coroutines that all end when one of them fails, or when somebody says that it is over."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Done when it is over, with what ended it.
        self.over: asyncio.Future[None] = self._loop.create_future()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have *work* done beside the others."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Say that it is over, and why; None is a good end. Only the first word counts."""
        if not self.over.done():
            if error is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(error)

    async def close(self) -> None:
        """Cancel what is still at work, and wait until it has gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
