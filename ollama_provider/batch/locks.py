"""One run at a time in a directory.

On a file system the kernel holds the lock (``flock``), so it ends with the process, also one that was killed. An object
store has no such thing: there the owner renews a small object, and a newcomer watches it. If it does not change for
half a minute, its owner is gone and the newcomer takes over; no two clocks are compared. Two newcomers at the same
moment are told apart by reading back what was written.
"""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from ollama_provider.batch.errors import DirectoryBusyError

if TYPE_CHECKING:
    from ollama_provider.batch.storage import Storage

_LEASE_NAME = "lock.json"


class Lock(Protocol):
    """The right to write into a directory."""

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Take it, or fail.

        Args:
            pause: waits so many seconds; may raise to give up.

        Raises:
            DirectoryBusyError: another run has it.
        """

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Fail if another run has it; do not take it.

        Raises:
            DirectoryBusyError: another run has it.
        """

    def renew(self) -> None:
        """Show that we are alive.

        Raises:
            DirectoryBusyError: we seemed dead for so long that another run took over.
        """

    def release(self) -> None:
        """Give it back; harmless when it is not ours."""


def _owner() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _busy(location: str, note: bytes | None) -> DirectoryBusyError:
    try:
        owner = json.loads(note or b"")
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        who = "its note says not which"
    return DirectoryBusyError(
        f"Another run is at work in {location} ({who}). Wait for it, stop it, or give this one a directory of its own."
    )


class FileLock:
    """A lock that the kernel holds on a file and that ends with the process."""

    def __init__(self, path: Path, location: str) -> None:
        self._path = path
        self._location = location
        self._handle: int | None = None

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:  # noqa: ARG002  # the kernel knows at once
        """See `Lock`."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = os.pread(handle, 1000, 0)
            os.close(handle)
            raise _busy(self._location, note) from None
        except BaseException:
            os.close(handle)
            raise
        # The note is for people; the file itself stays, since removing it would let two newcomers lock two files.
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_owner()).encode(), 0)
        self._handle = handle

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:  # noqa: ARG002  # the kernel knows at once
        """See `Lock`."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            # Shared, so that two who only look do not see each other.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(self._location, os.pread(handle, 1000, 0)) from None
        finally:
            os.close(handle)

    def renew(self) -> None:
        """See `Lock`."""

    def release(self) -> None:
        """See `Lock`."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class LeaseLock:
    """A lock for object stores: an object that its owner renews."""

    #: Seconds without a sign of life after which the owner counts as dead; it gives one three times as often.
    lease: ClassVar[float] = 30.0

    def __init__(self, storage: "Storage", name: str = _LEASE_NAME) -> None:
        self._storage = storage
        self._name = name
        self._token = secrets.token_hex(8)
        self._renewed = 0.0
        self._beat = 0

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See `Lock`."""
        self.probe(pause)
        self._write()
        pause(self.lease / 100)
        if not self._ours():
            raise _busy(self._storage.location, self._storage.read(self._name))

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See `Lock`."""
        seen = self._storage.read(self._name)
        waited, step = 0.0, self.lease / 10
        while seen is not None and waited < self.lease:
            pause(step)
            waited += step
            note = self._storage.read(self._name)
            if note is not None and note != seen:
                raise _busy(self._storage.location, note)
            seen = note

    def renew(self) -> None:
        """See `Lock`."""
        if time.monotonic() - self._renewed < self.lease / 3:
            return
        if not self._ours():
            raise _busy(self._storage.location, self._storage.read(self._name))
        self._write()

    def release(self) -> None:
        """See `Lock`."""
        if self._ours():
            self._storage.delete(self._name)

    def _write(self) -> None:
        self._beat += 1
        note = {**_owner(), "token": self._token, "beat": self._beat}
        with self._storage.create(self._name) as file:
            file.write(json.dumps(note).encode())
        self._renewed = time.monotonic()

    def _ours(self) -> bool:
        note = self._storage.read(self._name)
        try:
            return note is not None and json.loads(note).get("token") == self._token
        except (ValueError, AttributeError):
            return False
