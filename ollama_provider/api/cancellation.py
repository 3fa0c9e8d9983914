"""Cancelling a read that blocks a thread: at a deadline, from another thread, or from a signal handler."""

import contextlib
import math
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import httpx


class Watchdog:
    """Cancels a blocking read when its deadline passes, from a thread of its own.

    httpx bounds each read of a socket only. A deadline for several of them has to be watched from outside.

    Args:
        cancel: called once, when the deadline passes. It must make the read return.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.expired = False
        self._cancel = cancel
        self._deadline = math.inf
        self._wakes = math.inf
        self._stopped = False
        # A Condition's default lock is reentrant: a signal handler may run in the thread that holds it.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="ollama-timeout", daemon=True)

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Cancel what the block does if it is not left by the deadline.

        Raises:
            TimeoutError: the deadline passed, whatever exception the cancelled block raised.
        """
        with self._changed:
            self._deadline = deadline
            if not self._thread.is_alive():
                self._thread.start()
            elif deadline < self._wakes:
                self._changed.notify()
        try:
            yield
        except Exception:
            if self.expired:
                raise TimeoutError from None
            raise
        finally:
            with self._changed:
                self._deadline = math.inf
        if self.expired:
            raise TimeoutError

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._stopped:
                left = self._deadline - monotonic()
                if left <= 0:
                    self.expired = True
                    self._cancel()
                    return
                self._wakes = self._deadline
                self._changed.wait(min(left, threading.TIMEOUT_MAX))


class CancellableConnection:
    """A connection whose reads can be cancelled.

    It is an httpx transport with a pool of one, so that the socket a request waits on is known.

    Args:
        connect: makes the transport at its first use.
    """

    def __init__(self, connect: Callable[[], httpx.BaseTransport]) -> None:
        self.cancelled = False
        self._connect = connect
        self._transport: httpx.BaseTransport | None = None
        self._socket: socket.socket | None = None

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport to send requests through."""
        if self._transport is None:
            self._transport = self._connect()
        return self._transport

    def has_unread_bytes(self) -> bool:
        """Return whether more was received than the last answer: it would be read as the start of the next one."""
        # httpx and httpcore have no public access to what they have read and not used.
        pool = getattr(self._transport, "_pool", None)
        return any(_unread(connection) for connection in getattr(pool, "connections", ()))

    def close(self) -> None:
        """Close the connection. Raises nothing."""
        if self._transport is not None:
            with contextlib.suppress(Exception):  # nothing can be done about a connection that cannot be closed
                self._transport.close()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Get the socket from the events of httpx's ``trace`` extension."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.cancelled:
                self.cancel()

    def cancel(self) -> None:
        """Make a blocking read return at once. Any thread and any signal handler may call this.

        Shutting a socket down wakes the thread that reads from it; closing it would not.
        """
        self.cancelled = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _unread(connection: Any) -> bytes:
    """Return what a connection of httpcore has read beyond the last answer."""
    if (inner := getattr(connection, "_connection", None)) is not None:
        return _unread(inner)
    state = getattr(connection, "_h11_state", None)
    return state.trailing_data[0] if state is not None else b""
