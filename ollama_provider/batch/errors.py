"""What can go wrong with a batch as a whole, apart from Ollama's own errors (`ollama_provider.api.errors`).

::

    BatchError
    ├── InputError             the rows or the prompt's template are wrong            hopeless
    ├── DirectoryBusyError     another run is at work in the same directory           again, later
    ├── StorageError           the directory cannot be read or written                again
    ├── DatabaseError          rows cannot be read from a database, or results not written into it       hopeless
    │   └── DatabaseGoneError  the database does not answer, or no longer            again
    ├── ModelChangedError      the model's digest is not the one it must be           hopeless
    ├── SystemRefusedError     the operating system refused something else than the directory           again
    └── TooManyFailedError     more rows failed than the batch tolerates              again: asks the failed rows only
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ollama_provider.batch.records import Summary


class BatchError(Exception):
    """The batch did not come to a good end. What was sealed is kept, and the next run goes on from there.

    Attributes:
        retryable: the same batch, started again, may succeed.
    """

    retryable: ClassVar[bool] = False


class InputError(BatchError):
    """The rows, or the template that makes a prompt of a row, are wrong; nothing was sent for them."""


class DirectoryBusyError(BatchError):
    """Another run is at work in the same directory."""

    retryable = True


class StorageError(BatchError):
    """The directory of the batch cannot be read or written; the operating system's words follow."""

    retryable = True


class SystemRefusedError(BatchError):
    """The operating system refused something that is not in the directory of the batch; its words follow."""

    retryable = True


class DatabaseError(BatchError):
    """The query is wrong, or the table that results go to; the database's words follow."""


class DatabaseGoneError(DatabaseError):
    """The database does not answer, or broke off."""

    retryable = True


class ModelChangedError(BatchError):
    """The server's model is not, or no longer, the one that this batch is made with."""


class TooManyFailedError(BatchError):
    """More rows failed than ``max_failed_rows`` or ``max_failed_ratio`` allow.

    Attributes:
        summary: what was done all the same.
    """

    retryable = True

    def __init__(self, what: str, summary: "Summary | None" = None) -> None:
        self.summary = summary
        super().__init__(what)
