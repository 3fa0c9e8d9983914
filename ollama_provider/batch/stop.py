"""How a running batch is told to stop, from a signal handler or another thread."""

import time
from collections.abc import Callable


class StopSignal:
    """Says "stop now" to a running batch, from a signal handler or another thread."""

    def __init__(self) -> None:
        # No lock: a signal handler may run while this very thread would hold it.
        self._reason: str | None = None
        self._listeners: list[Callable[[], object]] = []

    @property
    def reason(self) -> str | None:
        """Why to stop; None while nobody said so."""
        return self._reason

    def set(self, reason: str = "stopped") -> None:
        """Ask the batch to seal what it has, close its requests and return. A second call changes nothing."""
        if self._reason is None:
            self._reason = reason
            for listener in self._listeners:
                listener()

    def subscribe(self, listener: Callable[[], object]) -> None:
        """Call *listener* when it is set, or at once if it is."""
        self._listeners.append(listener)
        if self._reason is not None:
            listener()

    def check(self) -> None:
        """Raise if it is set.

        Raises:
            StoppedError: it is.
        """
        if self._reason is not None:
            raise StoppedError(self._reason)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until it is set.

        Raises:
            StoppedError: it is set.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.05))
        self.check()


class StoppedError(Exception):
    """The batch was asked to stop; never leaves `run_batch`."""
