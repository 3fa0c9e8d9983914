"""What changes files: the calls of the operating system in one place, and files that are being written.

Two kinds of files are written. One appears whole, under its name, when all of it is there (`FileWriter`). The other
grows piece by piece (`GrowingFile`): what was appended survives the end of the process at once, and the end of the
machine from the moment that the file is *sealed*, which forces it to the disk and gives it its final name.
"""

import contextlib
import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ollama_provider.batch.errors import StorageError

#: What a refusal of an object store means.
NO_RIGHTS = "The credentials are wrong, or lack the right to list, read, write and delete there"


def storage_error(error: OSError, location: str, done: Literal["read", "written"] = "written") -> StorageError:
    """Return what an error of the operating system means to the batch.

    Args:
        error: what was refused.
        location: of the directory.
        done: what was tried with the directory.
    """
    reason = error.strerror or str(error) or type(error).__name__
    return StorageError(
        f"{location} cannot be {done}: {reason}. What was written there before is kept, and the next run continues "
        "from it."
    )


@contextlib.contextmanager
def storage_errors(location: str, done: Literal["read", "written"] = "written") -> Iterator[None]:
    """Raise a `StorageError` in place of an error of the operating system; see `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, location, done) from error


@contextlib.contextmanager
def store_errors(location: str, done: Literal["read", "written"] = "written") -> Iterator[None]:
    """Do the same for an object store, whose library has errors of its own. Their texts may contain signed URLs."""
    with storage_errors(location, done):
        try:
            yield
        except PermissionError as error:
            raise PermissionError(errno.EACCES, f"{error.strerror or error}. {NO_RIGHTS}") from error
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"the store's library raised {type(error).__name__}") from error


class Disk:
    """All operations that change a directory. Errors of the operating system pass through."""

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Append *data* to an open file."""
        file.write(data)

    def append(self, file: FileIO, data: bytes, place: int) -> None:
        """Write *data* at *place* of a file, which is where the last complete append ended.

        A write that fails half-way (a full disk) leaves a piece there, which the next append writes over.
        """
        rest = memoryview(data)
        while rest:
            done = os.pwrite(file.fileno(), rest, place)
            rest, place = rest[done:], place + done

    def cut(self, file: FileIO, size: int) -> None:
        """Cut off what comes after the first *size* bytes of a file."""
        file.truncate(size)

    def sync(self, file: BinaryIO | FileIO) -> None:
        """Force what was written to the disk."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Rename *source* to *target*, which makes it visible, and force that to the disk."""
        source.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def upload(self, source: Path, target: Any) -> None:
        """Copy a local file to *target* in an object store."""
        with source.open("rb") as file:
            remote = target.open("wb")
            try:
                shutil.copyfileobj(file, remote, 1 << 20)
            except BaseException:
                # Closing it would make the part that was sent visible as if it were the whole file.
                with contextlib.suppress(Exception):
                    remote.discard()
                raise
            remote.close()

    def create(self, target: Any, data: bytes) -> bool:
        """Create a small object if there is none; return False if there is one.

        S3 (``If-None-Match``), Google Cloud Storage (generation 0) and Azure do this in one step where their fsspec
        library is of 2025 or later. Elsewhere the object is looked for first and then written.
        """
        try:
            target.fs.pipe_file(target.path, data, mode="create")
        except FileExistsError:
            return False
        except (
            AttributeError,
            TypeError,
            NotImplementedError,
            OSError,
        ):  # the store, or its library, cannot do it
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
    """A file that is being written. It appears under its name when the ``with`` block of `Storage.create` ends well."""

    def __init__(self, disk: Disk, file: BinaryIO, location: str) -> None:
        self._disk = disk
        self._file = file
        self._location = location

    def write(self, data: bytes) -> None:
        """Append *data*. There is no buffer here: callers join small pieces first.

        Raises:
            StorageError: it cannot be written.
        """
        with storage_errors(self._location):
            self._disk.write(self._file, data)


class GrowingFile(ABC):
    """A file that grows by appending. It is complete when it is sealed.

    An append is a plain write, without a buffer in the process and without waiting for the disk: some microseconds. The
    kernel has it then, so it survives when the process is killed. It is done by the thread that has the data, so that
    the data is safe before anything follows from it.

    Args:
        disk: makes the changes.
        file: open for reading and writing, without a buffer.
        path: of the file while it grows.
        target: what it is when it is sealed.
        location: of the directory, for errors.
        size: of what is in the file already, in bytes.
    """

    def __init__(self, disk: Disk, file: FileIO, path: Path, target: Any, *, location: str, size: int = 0) -> None:
        self._disk = disk
        self._file = file
        self._path = path
        self._target = target
        self._location = location
        self._refused = b""
        #: Bytes that were appended.
        self.size = size

    def append(self, data: bytes) -> None:
        """Append *data*.

        Raises:
            StorageError: it cannot be written. It is tried once more with the next append, or when the file is sealed.
        """
        data = self._refused + data
        self._refused = data
        with storage_errors(self._location):
            self._disk.append(self._file, data, self.size)
        self._refused = b""
        self.size += len(data)

    def _append_refused(self) -> None:
        if self._refused:
            self.append(b"")

    def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Change lines in place.

        Args:
            change: returns what to write in place of a line, of the same length. Lines end with a line feed.

        Raises:
            StorageError: the file cannot be read or written.
        """
        self._append_refused()
        with storage_errors(self._location):
            if self._file.closed:  # it could not get its final name
                self._file = self._path.open("r+b", buffering=0)
            self._file.seek(0)
            before = self._file.readall() or b""
            after = b"".join(map(change, BytesIO(before)))
            if after != before:
                self._disk.append(self._file, after, 0)

    def discard(self) -> None:
        """Remove the file.

        Raises:
            StorageError: it cannot be removed.
        """
        with storage_errors(self._location):
            self._file.close()
            self._disk.delete(self._path)

    @abstractmethod
    def seal(self) -> None:
        """Complete the file: from now on it has its final name, and survives the end of the machine.

        Raises:
            StorageError: it cannot be completed, and is as it was before.
        """


class SealedByRename(GrowingFile):
    """A file in a directory of this machine."""

    _lost: StorageError | None = None

    def seal(self) -> None:
        """Force it to the disk, and rename it."""
        if self._lost is not None:
            raise self._lost
        if not self._file.closed:
            self._append_refused()
            try:
                with storage_errors(self._location):
                    self._disk.sync(self._file)
                    self._file.close()  # a network file system may say only now that it has no room
            except StorageError as error:
                # The kernel tells of it once: a second attempt would seem to succeed, without the data.
                self._lost = error
                raise
        with storage_errors(self._location):
            self._disk.rename(self._path, self._target)


class SealedByUpload(GrowingFile):
    """A local file that becomes an object of a store."""

    #: Object that the local file is a copy of, and that the sealed one replaces; None if there is none.
    source: Any = None

    def seal(self) -> None:
        """Upload it. The local file stays, since it is read again in the same run."""
        if not self._file.closed:
            self._append_refused()
        with store_errors(self._location):
            self._file.close()
            self._disk.upload(self._path, self._target)
            if self.source is not None:
                self._disk.delete(self.source)
