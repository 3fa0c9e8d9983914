"""The directory of a batch: a local one, or one in an object store.

A file appears whole or not at all. In a local directory it is written under a temporary name, forced to the disk and
renamed. For an object store it is made in a local temporary file and uploaded, since an upload becomes visible when it
is complete. Only parts that are growing are visible before, under a name of their own, and only in a local directory.

Everything that changes the directory goes through the methods of `Disk`. A test that fails at the k-th call of them
has failed at every point where a crash can happen.

What the operating system refuses in the directory becomes a `StorageError` (see `storage_errors`).
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.store.disk import (
    Disk,
    FileWriter,
    GrowingFile,
    SealedByRename,
    SealedByUpload,
    storage_errors,
    store_errors,
)

#: The folders of a batch's directory.
_FOLDERS = ("parts", "shards", "rows", "written", "rehearsal")
#: For an object store, a run keeps copies in a folder on this machine; its process holds a lock on a file in it.
_CACHE_PREFIX, _CACHE_LOCK = "ollama-batch-", ".lock"
#: Bytes that are read at a time where a file is opened for reading a piece of it, and bytes that the library of a store
#: requests in advance; S3's would request 50 MB.
_READ_BUFFER, _READ_AHEAD = 1 << 18, 1 << 20


class Storage(Protocol):
    """What the batch needs of a directory. Names are relative, with ``/`` between folder and file.

    All methods raise `StorageError` for what the operating system refuses.
    """

    #: Of the directory, as people read it.
    location: str

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in *folder*, such as ``parts/a.jsonl``; none if it is not there."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it is not there."""

    def create(self, name: str) -> contextlib.AbstractContextManager[FileWriter]:
        """Create a file, or replace an older one, when the block ends well; after an exception nothing has changed."""

    def append_to(self, name: str, sealed_as: str) -> GrowingFile:
        """Begin a file that grows piece by piece. In an object store nothing of it is visible before it is sealed.

        Args:
            name: while it grows; there must be no file of that name.
            sealed_as: its name from then on.
        """

    def reopen(self, name: str, sealed_as: str, size: int) -> GrowingFile:
        """Open a file that a killed process left growing.

        Args:
            name: as it is now.
            sealed_as: its name when it is sealed.
            size: bytes of it that are kept; what comes after them is cut off.
        """

    def create_new(self, name: str, data: bytes) -> bool:
        """Create a small file if there is none of that name; return False if there is one."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def remove_unfinished(self, shard: str | None = None) -> None:
        """Remove what processes left behind that were killed while they wrote. The caller must hold the lock.

        Args:
            shard: remove only what this shard has left, such as ``2of4``; None for all.
        """

    def local(self, name: str) -> Path:
        """Return a local file with the content of *name*, which must not change any more."""

    def open(self, name: str) -> BinaryIO | None:
        """Open a file for reading any piece of it, without a copy; None if it is not there."""

    def close(self) -> None:
        """Remove local copies."""


def write(storage: Storage, name: str, data: bytes) -> None:
    """Create or replace a small file."""
    with storage.create(name) as file:
        file.write(data)


def open_storage(location: str | os.PathLike[str] | Any, disk: Disk | None = None) -> Storage:
    """Return the directory at *location*, created if it is not there.

    Args:
        location: a local path, a ``file://`` URL, or an object that behaves like a `pathlib.Path` and leads elsewhere
            (Airflow's ``ObjectStoragePath``, ``upath.UPath``). Another URL is given to ``upath.UPath``. A `Storage` is
            returned as it is.
        disk: makes all changes; tests give one that fails.

    Raises:
        StorageError: the directory cannot be created or written.
    """
    if isinstance(location, LocalStorage | ObjectStorage):
        return location
    disk = disk or Disk()
    try:
        path = local_path(location)
        if path is not None:
            return LocalStorage(path, disk)
        return ObjectStorage(as_path(location) if isinstance(location, str) else location, disk)
    except OSError as error:
        raise StorageError(f"The directory {location} cannot be used: {error.strerror or error}") from error


def open_existing(location: str | os.PathLike[str] | Any) -> Storage:
    """Return the directory at *location* for reading. Nothing is created there, and no right to write is needed.

    Args:
        location: see `open_storage`.

    Raises:
        StorageError: it is not there, or cannot be read. An object store may tell that only when something is read.
    """
    path = local_path(location)
    if path is None:
        return open_storage(location)
    with storage_errors(str(path), "read"), os.scandir(path):
        return LocalStorage(path, Disk(), only_reads=True)


def as_path(location: str) -> Any:
    """Return the path, local or in an object store, that a text means."""
    path = local_path(location)
    if path is not None:
        return path
    from upath import UPath  # imported only for URLs of a store

    return UPath(location)


def local_path(location: Any) -> Path | None:
    """Return the local path that *location* means; None if it is in an object store."""
    if isinstance(location, str):
        if "://" not in location:
            return Path(location)
        url = urlsplit(location)
        return Path(unquote(url.path)) if url.scheme == "file" else None
    # Its class is asked: the attribute itself makes a client of the store, with credentials that are needed only later.
    if isinstance(location, Path) and not hasattr(type(location), "fs"):
        return location
    return Path(location.path) if getattr(location, "protocol", None) in {"", "file", "local"} else None


def open_file(path: Any) -> BinaryIO:
    """Open a file of this machine or of an object store, for reading lines of it and pieces from any place.

    Args:
        path: see `open_storage`; no text.
    """
    if local_path(path) is not None or not hasattr(path, "fs"):
        file: BinaryIO = path.open("rb")
        return file
    # A store's own file has no buffer for small pieces, and its lines have no bound.
    return BufferedReader(path.open("rb", buffering=_READ_AHEAD), _READ_BUFFER)


def forget_listing(path: Any) -> None:
    """Forget what the library of an object store has kept of a folder: others may have changed it since.

    It keeps what it has listed for as long as the process lives, with the size of each file.
    """
    if local_path(path) is None and hasattr(path, "fs"):
        path.fs.invalidate_cache(path.path)


class LocalStorage:
    """A directory of this machine, or one mounted here."""

    def __init__(self, root: Path, disk: Disk, *, only_reads: bool = False) -> None:
        self._root = root
        self._disk = disk
        self.location = str(root)
        if only_reads:
            return
        (root / "parts").mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK) or not os.access(root / "parts", os.W_OK):
            raise PermissionError(13, "Permission denied", str(root))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in *folder*. Hidden files are left out."""
        with (
            storage_errors(self.location, "read"),
            contextlib.suppress(FileNotFoundError),
            os.scandir(self._root / folder) as entries,
        ):
            return sorted(f"{folder}/{each.name}" for each in entries if each.name[0] != "." and each.is_file())
        return []

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file."""
        with storage_errors(self.location, "read"), contextlib.suppress(FileNotFoundError):
            return (self._root / name).read_bytes()
        return None

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[FileWriter]:
        """Write a temporary file beside its place, and rename it."""
        target = self._root / name
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with storage_errors(self.location):
                target.parent.mkdir(exist_ok=True)
                file = temporary.open("wb")
            try:
                yield FileWriter(self._disk, file, self.location)
                with storage_errors(self.location):
                    self._disk.sync(file)
            finally:
                with storage_errors(self.location):
                    file.close()
            with storage_errors(self.location):
                self._disk.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._disk.delete(temporary)
            raise

    def append_to(self, name: str, sealed_as: str) -> GrowingFile:
        """Begin a file in its folder. It grows under one name and is sealed under another."""
        path = self._root / name
        with storage_errors(self.location):
            path.parent.mkdir(exist_ok=True)
            file = path.open("x+b", buffering=0)
        return SealedByRename(self._disk, file, path, self._root / sealed_as, location=self.location)

    def reopen(self, name: str, sealed_as: str, size: int) -> GrowingFile:
        """Open a file of an earlier process, and cut off what is half a line."""
        path = self._root / name
        with storage_errors(self.location):
            file = path.open("r+b", buffering=0)
            self._disk.cut(file, size)
        return SealedByRename(self._disk, file, path, self._root / sealed_as, location=self.location, size=size)

    def create_new(self, name: str, data: bytes) -> bool:
        """Create a small file. Only leases need this to be atomic, and they are for object stores."""
        if (self._root / name).exists():
            return False
        write(self, name, data)
        return True

    def delete(self, name: str) -> None:
        """Remove a file."""
        with storage_errors(self.location):
            self._disk.delete(self._root / name)

    def remove_unfinished(self, shard: str | None = None) -> None:
        """Remove temporary files."""
        with storage_errors(self.location):
            for folder in ("", *_FOLDERS):
                for path in (self._root / folder).glob(".*.tmp"):
                    if shard is None or f".{shard}." in path.name:
                        self._disk.delete(path)

    def local(self, name: str) -> Path:
        """Return the file itself."""
        return self._root / name

    def open(self, name: str) -> BinaryIO | None:
        """Open the file itself."""
        with storage_errors(self.location, "read"), contextlib.suppress(FileNotFoundError):
            return (self._root / name).open("rb", buffering=_READ_BUFFER)
        return None

    def close(self) -> None:
        """Do nothing: there are no copies."""


class ObjectStorage:
    """A directory in an object store, through an object that behaves like a `pathlib.Path`."""

    def __init__(self, root: Any, disk: Disk) -> None:
        self._root = root
        self._disk = disk
        self.location = str(root)
        self._cache = tempfile.TemporaryDirectory(prefix=_CACHE_PREFIX)
        # The kernel releases the lock when the process ends, also when it is killed: then the folder can be removed.
        lock = Path(self._cache.name, "lock")
        self._cache_lock = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
        fcntl.flock(self._cache_lock, fcntl.LOCK_EX)
        lock.rename(lock.with_name(_CACHE_LOCK))

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects whose names begin with that of *folder*."""
        with (
            store_errors(self.location, "read"),
            contextlib.suppress(FileNotFoundError, NotADirectoryError),  # a store has no folders, only longer names
        ):
            return sorted(f"{folder}/{entry.name}" for entry in self._path(folder).iterdir())
        return []

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, in one request: between two it could be replaced."""
        with store_errors(self.location, "read"), contextlib.suppress(FileNotFoundError):
            path = self._path(name)
            data: bytes = path.fs.cat_file(path.path)
            return data
        return None

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[FileWriter]:
        """Write a local file, and upload it."""
        copy = self._copy_of(name)
        with storage_errors(self.location):
            file = copy.open("wb")
        try:
            yield FileWriter(self._disk, file, self.location)
        finally:
            with storage_errors(self.location):
                file.close()
        with store_errors(self.location):
            self._disk.upload(copy, self._root / name)
            if not name.startswith(("parts/", "rows/")):  # these are read again in the same run
                copy.unlink()

    def append_to(self, name: str, sealed_as: str) -> GrowingFile:  # noqa: ARG002  # it has no name before
        """Begin a local file, which is uploaded when it is sealed."""
        copy = self._copy_of(sealed_as)
        with storage_errors(self.location):
            file = copy.open("x+b", buffering=0)
        return SealedByUpload(self._disk, file, copy, self._root / sealed_as, location=self.location)

    def reopen(self, name: str, sealed_as: str, size: int) -> GrowingFile:
        """Open the copy of a file that was left in a local directory, and copied into the store from there."""
        copy = self.local(name)
        with storage_errors(self.location):
            file = copy.open("r+b", buffering=0)
            self._disk.cut(file, size)
        growing = SealedByUpload(self._disk, file, copy, self._root / sealed_as, location=self.location, size=size)
        growing.source = self._root / name
        return growing

    def create_new(self, name: str, data: bytes) -> bool:
        """Create a small object, in one step where the store can."""
        with store_errors(self.location):
            return self._disk.create(self._root / name, data)

    def delete(self, name: str) -> None:
        """Remove an object."""
        with store_errors(self.location):
            self._disk.delete(self._root / name)

    def remove_unfinished(self, shard: str | None = None) -> None:  # noqa: ARG002  # a store has no unfinished objects
        """Remove the local copies of processes that were killed."""
        for lock in Path(tempfile.gettempdir()).glob(f"{_CACHE_PREFIX}*/{_CACHE_LOCK}"):
            with contextlib.suppress(OSError):  # it belongs to a running process or another user, or is gone by now
                handle = os.open(lock, os.O_WRONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent)
                finally:
                    os.close(handle)

    def local(self, name: str) -> Path:
        """Return a local copy, downloaded if there is none yet."""
        copy = self._copy_of(name)
        if not copy.exists():
            # Two threads may want it at the same time, and neither may see half of it.
            partial = copy.with_name(f"{copy.name}.{token_hex(4)}")
            with store_errors(self.location, "read"):
                with self._path(name).open("rb") as remote, partial.open("wb") as file:
                    shutil.copyfileobj(remote, file, 1 << 20)
                partial.replace(copy)
        return copy

    def open(self, name: str) -> BinaryIO | None:
        """Open the object: what is read of it is requested by its range."""
        with store_errors(self.location, "read"), contextlib.suppress(FileNotFoundError):
            return open_file(self._path(name))
        return None

    def _path(self, name: str) -> Any:
        path = self._root / name
        forget_listing(path)
        return path

    def _copy_of(self, name: str) -> Path:
        return Path(self._cache.name, name.replace("/", "%"))

    def close(self) -> None:
        """Remove the local copies."""
        os.close(self._cache_lock)
        self._cache.cleanup()
