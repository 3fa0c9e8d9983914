"""The directory of a batch: a local one, or one in an object store.

A file appears whole or not at all. Locally it is written beside its place, forced to the disk and renamed; in an object
store it is made in a local temporary file and uploaded, since an upload becomes visible when it is complete.

Everything that changes anything goes through the six methods of `Disk`: a test that dies at the k-th of them has died
at every point where a crash can happen.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from ollama_provider.batch.errors import StorageError


class Disk:
    """The only hands that change anything."""

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Append *data* to an open file."""
        file.write(data)

    def sync(self, file: BinaryIO) -> None:
        """Bring what was written to the disk itself."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Put *source* in the place of *target*, which makes it visible, and make that last."""
        source.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def upload(self, source: Path, target: Any) -> None:
        """Copy a local file to *target* of an object store."""
        with source.open("rb") as file:
            remote = target.open("wb")
            try:
                shutil.copyfileobj(file, remote, 1 << 20)
            except BaseException:
                # Closing would make what came so far visible as if it were all.
                with contextlib.suppress(Exception):
                    remote.discard()
                raise
            remote.close()

    def create(self, target: Any, data: bytes) -> bool:
        """Make a small object if there is none; return False if there is one.

        S3 (``If-None-Match``), Google Cloud Storage (generation 0) and Azure do this in one step where their fsspec
        library is of 2025 or later; elsewhere it is a look and then a write.
        """
        try:
            target.fs.pipe_file(target.path, data, mode="create")
        except FileExistsError:
            return False
        except (AttributeError, TypeError, NotImplementedError, OSError):  # the store, or its library, does not know it
            if target.exists():
                return False
            with target.open("wb") as remote:
                remote.write(data)
        return True

    def delete(self, target: Any) -> None:
        """Remove a file or object; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            target.unlink()


class FileWriter:
    """A file that is being made. It appears under its name when the ``with`` block of `Storage.create` ends well."""

    def __init__(self, disk: Disk, file: BinaryIO) -> None:
        self._disk = disk
        self._file = file

    def write(self, data: bytes) -> None:
        """Append *data*; callers put small pieces together first."""
        self._disk.write(self._file, data)


class Storage(Protocol):
    """What the batch needs of a directory. Names are relative, with ``/`` between folder and file."""

    #: For people.
    location: str

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in *folder*, such as ``parts/a.jsonl``; none if it is not there."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it is not there."""

    def create(self, name: str) -> contextlib.AbstractContextManager[FileWriter]:
        """Make a file that replaces an older one when the block ends well; after an exception nothing has changed."""

    def create_new(self, name: str, data: bytes) -> bool:
        """Make a small file if there is none of that name; return False if there is one."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def remove_unfinished(self, shard: str | None = None) -> None:
        """Remove what processes left that were killed while they wrote. Call it with the lock taken.

        Args:
            shard: only what this shard has left, such as ``2of4``; None for all.
        """

    def local(self, name: str) -> Path:
        """Return a local file with the content of *name*, which never changes once it is there."""

    def close(self) -> None:
        """Remove what was kept for a while."""


#: Of a batch's directory.
_FOLDERS = ("parts", "shards", "rows", "written")
#: A folder on this machine with what a run keeps of an object store, and the lock in it that its process holds.
_KEPT, _ALIVE = "ollama-batch-", ".lock"


def write(storage: Storage, name: str, data: bytes) -> None:
    """Make a small file."""
    with storage.create(name) as file:
        file.write(data)


def open_storage(location: str | os.PathLike[str] | Any, disk: Disk | None = None) -> Storage:
    """Return the directory at *location*, made if it is not there.

    Args:
        location: a local path, a ``file://`` URL, or an object that behaves like a `pathlib.Path` and leads elsewhere
            (Airflow's ``ObjectStoragePath``, ``upath.UPath``). Another URL is given to ``upath.UPath``. A `Storage` is
            itself.
        disk: what does the changing; tests give one that fails.

    Raises:
        StorageError: it cannot be made or written.
    """
    if isinstance(location, LocalStorage | ObjectStorage):
        return location
    disk = disk or Disk()
    try:
        path = local_path(location)
        if path is not None:
            return LocalStorage(path, disk)
        if isinstance(location, str):
            from upath import UPath  # only who writes to a store by URL needs it

            location = UPath(location)
        return ObjectStorage(location, disk)
    except OSError as error:
        raise StorageError(f"The directory {location} cannot be used: {error.strerror or error}") from error


def as_path(location: str) -> Any:
    """Return the path, here or in an object store, that a text means."""
    path = local_path(location)
    if path is not None:
        return path
    from upath import UPath  # only who leads to a store by URL needs it

    return UPath(location)


def local_path(location: Any) -> Path | None:
    """Return the path on this machine that *location* means; None if it leads elsewhere."""
    if isinstance(location, str):
        if "://" not in location:
            return Path(location)
        url = urlsplit(location)
        return Path(unquote(url.path)) if url.scheme == "file" else None
    if isinstance(location, Path) and not hasattr(location, "fs"):
        return location
    return Path(location.path) if getattr(location, "protocol", None) in {"", "file", "local"} else None


class LocalStorage:
    """A directory of this machine, or one mounted here."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._root = root
        self._disk = disk
        self.location = str(root)
        (root / "parts").mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK) or not os.access(root / "parts", os.W_OK):
            raise PermissionError(13, "Permission denied", str(root))

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
            return sorted(f"{folder}/{each.name}" for each in entries if each.name[0] != "." and each.is_file())
        return []

    def read(self, name: str) -> bytes | None:
        """See `Storage`."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[FileWriter]:
        """See `Storage`."""
        target = self._root / name
        beside = target.with_name(f".{target.name}.tmp")
        target.parent.mkdir(exist_ok=True)
        try:
            with beside.open("wb") as file:
                yield FileWriter(self._disk, file)
                self._disk.sync(file)
            self._disk.rename(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._disk.delete(beside)
            raise

    def create_new(self, name: str, data: bytes) -> bool:
        """See `Storage`."""
        if (self._root / name).exists():
            return False
        write(self, name, data)
        return True

    def delete(self, name: str) -> None:
        """See `Storage`."""
        self._disk.delete(self._root / name)

    def remove_unfinished(self, shard: str | None = None) -> None:
        """See `Storage`."""
        for folder in ("", *_FOLDERS):
            for path in (self._root / folder).glob(".*.tmp"):
                if shard is None or f".{shard}." in path.name:
                    self._disk.delete(path)

    def local(self, name: str) -> Path:
        """See `Storage`."""
        return self._root / name

    def close(self) -> None:
        """See `Storage`."""


class ObjectStorage:
    """A directory in an object store, through an object that behaves like a `pathlib.Path`."""

    def __init__(self, root: Any, disk: Disk) -> None:
        self._root = root
        self._disk = disk
        self.location = str(root)
        self._kept = tempfile.TemporaryDirectory(prefix=_KEPT)
        # The kernel gives the lock back when the process ends, however it ends: then the folder can be removed.
        lock = Path(self._kept.name, "lock")
        self._alive = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        lock.rename(lock.with_name(_ALIVE))

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        try:
            return sorted(f"{folder}/{entry.name}" for entry in (self._root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):  # a store has no folders, only names with slashes
            return []

    def read(self, name: str) -> bytes | None:
        """See `Storage`."""
        try:
            with (self._root / name).open("rb") as file:
                data: bytes = file.read()
                return data
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[FileWriter]:
        """See `Storage`."""
        beside = Path(self._kept.name, name.replace("/", "%"))
        with beside.open("wb") as file:
            yield FileWriter(self._disk, file)
        self._disk.upload(beside, self._root / name)
        if not name.startswith(("parts/", "rows/")):  # these are read again in the same run
            beside.unlink()

    def create_new(self, name: str, data: bytes) -> bool:
        """See `Storage`."""
        return self._disk.create(self._root / name, data)

    def delete(self, name: str) -> None:
        """See `Storage`."""
        self._disk.delete(self._root / name)

    def remove_unfinished(self, shard: str | None = None) -> None:  # noqa: ARG002  # a store keeps no half object
        """See `Storage`; here it is what killed processes kept on this machine."""
        for lock in Path(tempfile.gettempdir()).glob(f"{_KEPT}*/{_ALIVE}"):
            with contextlib.suppress(OSError):  # another's, or gone by now
                handle = os.open(lock, os.O_WRONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent)
                finally:
                    os.close(handle)

    def local(self, name: str) -> Path:
        """See `Storage`."""
        kept = Path(self._kept.name, name.replace("/", "%"))
        if not kept.exists():
            # Two threads may want it at once, and neither half of it.
            coming = kept.with_name(f"{kept.name}.{token_hex(4)}")
            with (self._root / name).open("rb") as remote, coming.open("wb") as file:
                shutil.copyfileobj(remote, file, 1 << 20)
            coming.replace(kept)
        return kept

    def close(self) -> None:
        """See `Storage`."""
        os.close(self._alive)
        self._kept.cleanup()
