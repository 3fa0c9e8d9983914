"""Errors of a batch as a whole, apart from those of the server (`ollama_provider.api.errors`).

On the right: whether the same batch can succeed when it is started again.

::

    BatchError
    ├── InputError             the rows or the prompt's template are wrong                  no
    ├── DirectoryBusyError     another run is at work in the same directory                 later
    ├── StorageError           the directory cannot be read or written                      yes
    ├── SystemRefusedError     the operating system refused something else                  yes
    ├── DatabaseError          the query or the table is wrong                              no
    │   └── DatabaseGoneError  the database does not answer, or no longer                   yes
    ├── ModelChangedError      the model's digest is not the one it must be                 no
    ├── NoServerError          none of several servers can be used                          if one of them may come back
    └── TooManyFailedError     more rows failed than the batch tolerates                    it asks the failed rows
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ollama_provider.batch.records import Summary


class BatchError(Exception):
    """The batch failed. What its checkpoints hold is kept, and the next run goes on from there.

    Attributes:
        retryable: the same batch, started again, may succeed.
    """

    retryable: bool = False


class InputError(BatchError):
    """The rows are wrong, or the template that makes a prompt of a row, or the arguments contradict each other."""


class DirectoryBusyError(BatchError):
    """Another run is at work in the same directory."""

    retryable = True


class StorageError(BatchError):
    """The directory of the batch cannot be read or written. The text ends with what the operating system says."""

    retryable = True


class SystemRefusedError(BatchError):
    """The operating system refused something outside of the directory of the batch, such as one more open file."""

    retryable = True


class DatabaseError(BatchError):
    """The query is wrong, or the table for the results. The text ends with what the database says."""


class DatabaseGoneError(DatabaseError):
    """The database does not answer, or closed the connection."""

    retryable = True


class ModelChangedError(BatchError):
    """The digest of the server's model is not, or no longer, the one that this batch must be made with."""


class NoServerError(BatchError):
    """None of several servers can be used.

    Attributes:
        reasons: why not, by the URL of the server.
    """

    def __init__(self, what: str, reasons: Mapping[str, str], *, retryable: bool) -> None:
        self.what = what
        self.reasons = dict(reasons)
        self.retryable = retryable
        # An error of a server names it already.
        named = [reason if url in reason else f"{url}: {reason}" for url, reason in reasons.items()]
        super().__init__("\n* ".join((f"{what}:", *named)))

    def __reduce__(self) -> tuple[object, ...]:
        return _no_server, (self.what, self.reasons, self.retryable)


def _no_server(what: str, reasons: Mapping[str, str], retryable: bool) -> NoServerError:  # as pickled
    return NoServerError(what, reasons, retryable=retryable)


class TooManyFailedError(BatchError):
    """More rows failed than ``max_failed_rows`` or ``max_failed_ratio`` allow.

    Attributes:
        summary: of the run; None where it stopped early.
    """

    retryable = True

    def __init__(self, what: str, summary: "Summary | None" = None) -> None:
        self.summary = summary
        super().__init__(what)
