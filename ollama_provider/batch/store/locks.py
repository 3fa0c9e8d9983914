"""One run at a time in a directory.

On a file system the kernel holds the lock (``flock``), so it ends with the process, also one that was killed. An object
store has no such thing: there the owner renews a small object, and a newcomer watches it. If it does not change for
half a minute, its owner is gone and the newcomer takes over; no two clocks are compared. Two newcomers at the same
moment are told apart by the store, where it can create an object only if there is none, and by reading back what was
written. An upload so slow that nobody sees it in time is found when the lease is renewed; until then the two runs write
parts under different names.
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
    from ollama_provider.batch.store.storage import Storage

_LEASE_NAME = "lock.json"
#: Who only looks whether a lock is taken holds it for a moment, and who takes it writes its note a moment later: a lock
#: that is held is looked at so often, with so many seconds in between, before it counts as taken.
_LOOKS, _BETWEEN = 10, 0.05


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

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See `Lock`."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._hold(handle, fcntl.LOCK_EX, pause)
            # The note is for people; the file itself stays, since removing it would let two newcomers lock two files.
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_owner()).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See `Lock`."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            # Shared, so that two who only look do not see each other.
            self._hold(handle, fcntl.LOCK_SH, pause)
        finally:
            os.close(handle)

    def _hold(self, handle: int, how: int, pause: Callable[[float], None]) -> None:
        for look in range(_LOOKS):
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if look < _LOOKS - 1:
                    pause(_BETWEEN)
            else:
                return
        raise _busy(self._location, os.pread(handle, 1000, 0))

    def renew(self) -> None:
        """See `Lock`."""

    def release(self) -> None:
        """See `Lock`."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)  # nobody shall be told of a run that has ended
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
        #: Seconds until the next look. Short at first: another newcomer's upload may have taken long.
        self._next = self.lease / 30
        self._beat = 0

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See `Lock`."""
        left_behind = self._watch(pause)
        began = time.monotonic()
        if left_behind:
            self._write()
        elif not self._storage.create_new(self._name, self._note()):
            raise _busy(self._storage.location, self._storage.read(self._name))
        self._renewed = time.monotonic()
        # As slow as our own upload was another one may be.
        pause(max(self.lease / 100, 3 * (self._renewed - began)))
        if not self._ours():
            raise _busy(self._storage.location, self._storage.read(self._name))

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See `Lock`."""
        self._watch(pause)

    def _watch(self, pause: Callable[[float], None]) -> bool:
        """Tell whether there is a lease that nobody renews; fail if somebody does."""
        seen = self._storage.read(self._name)
        waited, step = 0.0, self.lease / 10
        while seen is not None and waited < self.lease:
            pause(step)
            waited += step
            note = self._storage.read(self._name)
            if note is not None and note != seen:
                raise _busy(self._storage.location, note)
            seen = note
        return seen is not None

    def renew(self) -> None:
        """See `Lock`."""
        if time.monotonic() - self._renewed < self._next:
            return
        if not self._ours():
            raise _busy(self._storage.location, self._storage.read(self._name))
        self._write()
        self._next = min(2 * self._next, self.lease / 3)

    def release(self) -> None:
        """See `Lock`."""
        if self._ours():
            self._storage.delete(self._name)

    def _note(self) -> bytes:
        self._beat += 1
        return json.dumps({**_owner(), "token": self._token, "beat": self._beat}).encode()

    def _write(self) -> None:
        with self._storage.create(self._name) as file:
            file.write(self._note())
        self._renewed = time.monotonic()

    def _ours(self) -> bool:
        note = self._storage.read(self._name)
        try:
            return note is not None and json.loads(note).get("token") == self._token
        except (ValueError, AttributeError):
            return False
