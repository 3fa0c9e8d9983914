"""How a running batch is told to stop, from a signal handler or another thread."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn


class StoppedError(Exception):
    """The batch was asked to stop. Never leaves `run_batch`, which returns an incomplete `Summary` then.

    `rehearse_batch` raises it before its first request.
    """


class StopSignal:
    """Tells a running batch to stop, from a signal handler or another thread.

    It has no lock: a signal handler may run while the very thread that it interrupts would hold it.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._listeners: list[Callable[[], object]] = []

    @property
    def reason(self) -> str | None:
        """Why to stop; None before `set` was called."""
        return self._reason

    def set(self, reason: str = "stopped") -> None:
        """Ask the batch to cancel its requests, store the results it has, and return. Later calls change nothing."""
        if self._reason is None:
            self._reason = reason
            for listener in list(self._listeners):
                listener()

    async def wait(self) -> NoReturn:
        """Wait in an event loop until it is set.

        Raises:
            StoppedError: it is set.
        """
        is_set = asyncio.Event()
        listener = partial(asyncio.get_running_loop().call_soon_threadsafe, is_set.set)
        self._listeners.append(listener)
        try:
            if self._reason is None:
                await is_set.wait()
        finally:
            self._listeners.remove(listener)
        raise StoppedError(self._reason)

    def check(self) -> None:
        """Raise if it is set.

        Raises:
            StoppedError: it is set.
        """
        if self._reason is not None:
            raise StoppedError(self._reason)

    def pause(self, seconds: float) -> None:
        """Block this thread for so many seconds, or until it is set.

        Raises:
            StoppedError: it is set.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.05))
        self.check()
