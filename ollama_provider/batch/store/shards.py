"""A batch in shards: several runs in one directory, each with rows of its own, and a merge at the end.

A row belongs to the shard that its key names, so no two shards ask the same row, whatever the input's order, and equal
rows are asked once. All that a shard writes bears its name: ``parts/*.0of4.jsonl`` and ``shards/0of4.*`` (what
``batch.json``, ``summary.json`` and the lock are for a whole batch). To merge is to run the whole batch with everything
reused and nothing asked.
"""

import re
from collections.abc import Callable
from typing import Any

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.spec import SHARDS_FOLDER, Shard
from ollama_provider.batch.store.locks import Lock, open_lock
from ollama_provider.batch.store.storage import Storage

#: What shards write; other files in the folder are left alone.
_NAME = re.compile(rf"{SHARDS_FOLDER}/\d+of\d+\.(lock|batch\.json|summary\.json|progress\.json)")


def shards(count: int) -> list[list[int]]:
    """Return the arguments ``shard=`` of all shards of a batch, as ``expand(shard=shards(4))`` wants them."""
    return [[number, count] for number in range(count)]


class RunLock:
    """The right to run in a directory: as a whole, or as one shard beside others.

    A whole run takes the directory's lock and then looks whether a shard is at work; a shard takes its own and then
    looks whether a whole run is. Whoever comes second sees the first.

    Args:
        storage: the directory.
        shard: which; None for a whole run, a merge included.
    """

    def __init__(self, storage: Storage, shard: Shard | None) -> None:
        self._storage = storage
        self._shard = shard
        self._lock: Lock = open_lock(storage, None if shard is None else shard.lock_name)

    def take(self, pause: Callable[[float], None]) -> None:
        """Take it, or fail.

        Raises:
            DirectoryBusyError: another run has it, or one that it excludes is at work.
        """
        self._lock.take(pause)
        if self._shard is not None:
            open_lock(self._storage).probe(pause)
            self._storage.remove_unfinished(self._shard.name)
            return
        for name in _files(self._storage, "lock"):
            open_lock(self._storage, name).probe(pause)
        self._storage.remove_unfinished()

    def renew(self) -> None:
        """Show that we are alive."""
        self._lock.renew()

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


def batch_files(storage: Storage) -> list[str]:
    """Return the names of what the shards' runs wrote down of themselves."""
    return _files(storage, "batch.json")


def _files(storage: Storage, *kinds: str) -> list[str]:
    return [
        name
        for name in storage.names(SHARDS_FOLDER)
        if (match := _NAME.fullmatch(name)) is not None and match[1] in kinds
    ]


def forget(storage: Storage) -> None:
    """Remove what the shards wrote down of themselves, once they are merged: the next ones may be others."""
    for name in _files(storage, "batch.json", "summary.json", "progress.json"):
        storage.delete(name)


def check_same(mine: dict[str, Any], other: dict[str, Any], name: str, location: str) -> None:
    """Compare what two shards of a batch do.

    Raises:
        InputError: it is not the same; the differing settings are named.
    """
    differing = sorted(key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key))
    if differing:
        raise InputError(
            f"{location}/{name} belongs to a batch with other settings ({', '.join(differing)}). The shards of a batch "
            "must agree: merge the others first, or give these a directory of their own."
        )
