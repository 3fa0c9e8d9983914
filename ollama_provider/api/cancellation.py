"""Breaking off a read that blocks a thread: at a given moment, from another thread, or from a signal handler."""

import contextlib
import math
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import httpx


class Alarm:
    """Rings when a deadline passes, from a thread of its own: a read that blocks cannot end itself at a given moment.

    Args:
        ring: called once, when the deadline passes; it must make the read return.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self.rang = False
        self._ring = ring
        self._deadline = math.inf
        self._wakes = math.inf
        self._over = False
        # Reentrant (a Condition's default): a signal handler may find its own thread in here.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="ollama-timeout", daemon=True)

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Ring if the block is not left by the deadline.

        Raises:
            TimeoutError: it rang, whatever the block made of it.
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
            if self.rang:
                raise TimeoutError from None
            raise
        finally:
            with self._changed:
                self._deadline = math.inf
        if self.rang:
            raise TimeoutError

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._over = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                left = self._deadline - monotonic()
                if left <= 0:
                    self.rang = True
                    self._ring()
                    return
                self._wakes = self._deadline
                self._changed.wait(min(left, threading.TIMEOUT_MAX))


class Lane:
    """One connection, or the place for one: a pool of one, so that the socket a request waits on is always known.

    Args:
        connect: makes the transport to send through, at its first use.
    """

    def __init__(self, connect: Callable[[], httpx.BaseTransport]) -> None:
        self.broken_off = False
        self._connect = connect
        self._transport: httpx.BaseTransport | None = None
        self._socket: socket.socket | None = None

    @property
    def transport(self) -> httpx.BaseTransport:
        """Where to send."""
        if self._transport is None:
            self._transport = self._connect()
        return self._transport

    def has_surplus(self) -> bool:
        """Return whether more came than the last answer; it would be taken for the beginning of the next one."""
        # httpx and httpcore show nobody what they have read and not used.
        pool = getattr(self._transport, "_pool", None)
        return any(_surplus(connection) for connection in getattr(pool, "connections", ()))

    def hang_up(self) -> None:
        """Close the connection; raises nothing."""
        if self._transport is not None:
            with contextlib.suppress(Exception):  # a connection that cannot be closed is of no use to anybody
                self._transport.close()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Take the socket from what httpx reports of its own steps (its ``trace`` extension)."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.broken_off:
                self.break_off()

    def break_off(self) -> None:
        """Make a read that blocks return at once; may be called by any thread and by a signal handler.

        Closing a socket would not wake the thread that reads it; shutting it down does.
        """
        self.broken_off = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _surplus(connection: Any) -> bytes:
    """Return what a connection of httpcore has read behind the last answer."""
    if (inner := getattr(connection, "_connection", None)) is not None:
        return _surplus(inner)
    state = getattr(connection, "_h11_state", None)
    return state.trailing_data[0] if state is not None else b""
