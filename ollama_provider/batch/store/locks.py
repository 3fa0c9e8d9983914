"""Locks: one run at a time in a directory.

On a file system the kernel holds the lock (``flock``). It ends with the process, also with one that was killed.

An object store has no locks. There the owner of a lease renews a small object, and a newcomer watches that object for
half a minute. If it does not change, the owner is gone and the newcomer takes the lease over. No two clocks are
compared. Of two newcomers at the same moment one wins: the store creates an object only if there is none, where it can,
and each newcomer reads back what was written. An upload may be so slow that both believe they have the lease. The
loser finds out when it renews the lease; until then the two runs write parts under different names.
"""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

from ollama_provider.api.strict_json import read_json
from ollama_provider.batch.errors import DirectoryBusyError
from ollama_provider.batch.store.disk import storage_errors
from ollama_provider.batch.store.storage import LocalStorage, Storage

_LEASE_NAME = "lock.json"
#: A lock may be held for a moment by a process that only probes it, and its owner's note is written a moment after it
#: is taken. So a held lock is tried this often, with so many seconds in between, before it counts as taken.
_TRIES, _SECONDS_BETWEEN = 10, 0.05


class Lock(Protocol):
    """The exclusive right to write into a directory."""

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Take the lock, or fail.

        Args:
            pause: waits so many seconds; may raise to give up.

        Raises:
            DirectoryBusyError: another run has it.
        """

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Fail if another run has the lock, without taking it.

        Args:
            pause: waits so many seconds; may raise to give up.

        Raises:
            DirectoryBusyError: another run has it.
        """

    def renew(self) -> None:
        """Show that this run is alive.

        Raises:
            DirectoryBusyError: another run took over, because this one seemed dead for too long.
        """

    def release(self) -> None:
        """Release the lock. Does nothing if it is held by another run, or not at all."""


def open_lock(storage: Storage, name: str | None = None) -> Lock:
    """Return a lock in a directory, not yet taken.

    Args:
        storage: the directory.
        name: of the lock's file, such as ``shards/0of2.lock``; None for the lock of the whole directory.
    """
    if not isinstance(storage, LocalStorage):
        return LeaseLock(storage, name or _LEASE_NAME)
    path = storage.local(name or ".lock")
    with storage_errors(storage.location):
        path.parent.mkdir(exist_ok=True)
    return FileLock(path, storage.location)


def _owner() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _busy(location: str, note: bytes | None) -> DirectoryBusyError:
    try:
        owner = read_json(note or b"")
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        who = "the lock does not name its process"
    return DirectoryBusyError(
        f"Another run is at work in {location} ({who}). Wait for it, stop it, or give this one a directory of its own."
    )


class FileLock:
    """A lock that the kernel holds on a file. It ends with the process.

    Args:
        path: of the file, which is created if it is not there.
        location: of the directory, for error texts.
    """

    def __init__(self, path: Path, location: str) -> None:
        self._path = path
        self._location = location
        self._handle: int | None = None

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Lock the file, and write into it which process holds it."""
        with storage_errors(self._location):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._flock(handle, fcntl.LOCK_EX, pause)
                # The note is for people. The file itself stays: if it were removed, two newcomers could lock two files.
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_owner()).encode(), 0)
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Lock the file for a moment, shared, so that two processes that probe do not see each other."""
        with storage_errors(self._location, "read"):
            try:
                handle = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return
            try:
                self._flock(handle, fcntl.LOCK_SH, pause)
            finally:
                os.close(handle)

    def _flock(self, handle: int, kind: int, pause: Callable[[float], None]) -> None:
        for attempt in range(_TRIES):
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt < _TRIES - 1:
                    pause(_SECONDS_BETWEEN)
            else:
                return
        raise _busy(self._location, os.pread(handle, 1000, 0))

    def renew(self) -> None:
        """Do nothing: the kernel knows that the process is alive."""

    def release(self) -> None:
        """Unlock the file and empty it, so that it does not name a run that has ended."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with storage_errors(self._location):
                os.ftruncate(handle, 0)
                os.close(handle)


class LeaseLock:
    """A lock for object stores: an object that its owner renews.

    Args:
        storage: the directory.
        name: of the object.
    """

    #: Seconds without a renewal after which the owner counts as dead. The owner renews three times as often.
    lease: ClassVar[float] = 30.0

    def __init__(self, storage: Storage, name: str = _LEASE_NAME) -> None:
        self._storage = storage
        self._name = name
        self._token = secrets.token_hex(8)
        self._renewed = 0.0
        #: Seconds until the next renewal. Short at first: another newcomer's upload may have taken long.
        self._interval = self.lease / 30
        self._renewals = 0

    def take(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Watch the lease of another run, if there is one, and take it over if nobody renews it."""
        abandoned = self._watch(pause)
        began = time.monotonic()
        if abandoned:
            self._write()
        elif not self._storage.create_new(self._name, self._note()):
            raise _busy(self._storage.location, self._storage.read(self._name))
        self._renewed = time.monotonic()
        # Another newcomer's upload may be as slow as this one was.
        pause(max(self.lease / 100, 3 * (self._renewed - began)))
        if not self._ours():
            raise _busy(self._storage.location, self._storage.read(self._name))

    def probe(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Watch the lease, and fail if it is renewed."""
        self._watch(pause)

    def _watch(self, pause: Callable[[float], None]) -> bool:
        """Return whether there is an abandoned lease.

        Raises:
            DirectoryBusyError: the lease is renewed.
        """
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
        """Write the object again, once the interval has passed."""
        if time.monotonic() - self._renewed < self._interval:
            return
        if not self._ours():
            raise _busy(self._storage.location, self._storage.read(self._name))
        self._write()
        self._interval = min(2 * self._interval, self.lease / 3)

    def release(self) -> None:
        """Delete the object, if it is this run's."""
        if self._ours():
            self._storage.delete(self._name)

    def _note(self) -> bytes:
        self._renewals += 1
        return json.dumps({**_owner(), "token": self._token, "beat": self._renewals}).encode()

    def _write(self) -> None:
        with self._storage.create(self._name) as file:
            file.write(self._note())
        self._renewed = time.monotonic()

    def _ours(self) -> bool:
        note = self._storage.read(self._name)
        try:
            return note is not None and read_json(note).get("token") == self._token
        except (ValueError, AttributeError):
            return False
