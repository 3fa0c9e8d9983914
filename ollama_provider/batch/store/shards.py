"""A batch in shards: several runs in one directory, each with rows of its own, and a merge at the end.

The key of a row decides which shard it belongs to. So no two shards ask the same row, in whatever order the input is,
and equal rows are asked once. The files of a shard bear its name: ``parts/*.0of4.jsonl``, and ``shards/0of4.*`` in
place of ``batch.json``, ``summary.json``, ``progress.json`` and the lock of a whole batch. A merge is a run of the
whole batch that sends no requests: it reuses the outcomes of all shards.
"""

import re
from collections.abc import Callable
from typing import Any

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.spec import SHARDS_FOLDER, Shard
from ollama_provider.batch.store.locks import Lock, open_lock
from ollama_provider.batch.store.storage import Storage

#: The files of shards; others in the folder are ignored.
_NAME = re.compile(rf"{SHARDS_FOLDER}/(\d+)of(\d+)\.(lock|(?:batch|summary|progress|history|prompts)\.json)")


def shards(count: int) -> list[list[int]]:
    """Return the arguments ``shard=`` of all shards of a batch, as ``expand(shard=shards(4))`` wants them."""
    return [[number, count] for number in range(count)]


class RunLock:
    """The lock of a run: of a whole batch, or of one shard beside others.

    A whole run takes the directory's lock and then probes those of the shards. A shard takes its own lock and then
    probes that of the directory. Whichever comes second sees the first.

    Args:
        storage: the directory.
        shard: the shard that runs; None for a whole batch, also for a merge.
    """

    def __init__(self, storage: Storage, shard: Shard | None) -> None:
        self._storage = storage
        self._shard = shard
        self._lock: Lock = open_lock(storage, None if shard is None else shard.lock_name)

    def take(self, pause: Callable[[float], None]) -> None:
        """Take the lock and remove what killed runs left behind, or fail.

        Args:
            pause: waits so many seconds; may raise to give up.

        Raises:
            DirectoryBusyError: another run has the lock, or one that this lock excludes is at work.
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
        """Show that this run is alive."""
        self._lock.renew()

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


def found(storage: Storage) -> list[Shard]:
    """Return the shards that have run since the last merge."""
    numbers = (_NAME.fullmatch(name) for name in manifest_names(storage))
    return sorted((Shard(int(match[1]), int(match[2])) for match in numbers if match), key=lambda shard: shard.number)


def manifest_names(storage: Storage) -> list[str]:
    """Return the names of the manifests of all shards."""
    return _files(storage, "batch.json")


def _files(storage: Storage, *kinds: str) -> list[str]:
    return [
        name
        for name in storage.names(SHARDS_FOLDER)
        if (match := _NAME.fullmatch(name)) is not None and match[3] in kinds
    ]


def forget(storage: Storage) -> None:
    """Remove what the shards kept for themselves, after a merge: the next shards may have other settings."""
    for name in _files(storage, "batch.json", "summary.json", "progress.json", "history.json", "prompts.json"):
        storage.delete(name)


def require_same_settings(mine: dict[str, Any], other: dict[str, Any], name: str, location: str) -> None:
    """Compare the settings of two shards of a batch.

    Args:
        mine: settings of this run.
        other: settings of another shard.
        name: of the other shard's manifest.
        location: of the directory.

    Raises:
        InputError: they differ; the text names the settings.
    """
    differing = sorted(key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key))
    if differing:
        raise InputError(
            f"{location}/{name} belongs to a batch with other settings ({', '.join(differing)}). The shards of a batch "
            "must agree: merge the others first, or give these a directory of their own."
        )
