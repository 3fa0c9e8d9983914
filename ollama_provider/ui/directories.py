"""A batch's directory, read by the API server, which may not be able to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch import BatchError, Storage, open_existing
from ollama_provider.operators._storage_paths import storage_path

T = TypeVar("T")

_ADVICE = (
    "The page needs a directory that the workers and the API server share: an object store, or a disk that is mounted "
    "under the same path on all of them. The API server needs its package and the right to read."
)


class UnreadableError(Exception):
    """The API server cannot read a batch's directory; the text says why, and what to do."""


def read_directory(location: str, function: Callable[..., T], *args: object) -> T:
    """Call *function* with the storage of a batch's directory, and return its result. It blocks.

    Args:
        location: URL of the directory.
        function: what to call.
        *args: its arguments after the storage.

    Raises:
        UnreadableError: the directory cannot be read here.
    """
    with opened(location) as storage:
        return function(storage, *args)


@contextmanager
def opened(location: str) -> Iterator[Storage]:
    """Open a batch's directory for the time of the block. It blocks.

    Args:
        location: URL of the directory.

    Raises:
        UnreadableError: the directory cannot be read here, or the block has met an error.
    """
    try:
        storage = open_existing(storage_path(location))
        try:
            yield storage
        finally:
            storage.close()
    except (BatchError, OllamaError) as error:
        raise UnreadableError(f"{str(error).removesuffix('.')}. {_ADVICE}") from error
    except Exception as error:  # whatever a file system or a file in it may raise: the page says so, and goes on
        # Not the error's own text, which may quote an answer or a credential.
        raise UnreadableError(f"{location} cannot be read here ({type(error).__name__}). {_ADVICE}") from error
