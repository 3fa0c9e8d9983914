"""A snapshot of the rows of a query: they are written into the directory first, and read from there.

So a retry reads the same rows, the database is queried once, and no connection is open during the run. The name of the
file is a hash of the query and its occasion (such as a DAG run). Another query, or another occasion, makes a new
snapshot, which replaces the earlier one. Outcomes are found by the content of a row, so a row that both snapshots have
is not asked again.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ollama_provider.batch.errors import DirectoryBusyError
from ollama_provider.batch.records import Query, plain
from ollama_provider.batch.store.locks import open_lock
from ollama_provider.batch.store.storage import Storage

logger = logging.getLogger(__name__)

_FOLDER, _LOCK = "rows", "rows/.lock"
#: The files of snapshots; others in the folder are ignored.
_NAME = re.compile(rf"{_FOLDER}/[0-9a-f]{{16}}\.jsonl")
_BUFFER = 1 << 20
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=plain).encode


def fetch_once(query: Query, storage: Storage, pause: Callable[[float], None], renew: Callable[[], None]) -> Path:
    """Return a local JSONL file with the rows of *query*. They are fetched if there is no snapshot yet.

    Shards that begin at the same time fetch once: the others wait for the first.

    Args:
        query: gives the rows.
        storage: the directory of the batch.
        pause: waits so many seconds; may raise to give up.
        renew: called after each chunk of rows, to renew the lock of the run.

    Raises:
        DatabaseError: see `Query.fetch`; no snapshot is kept then.
        StorageError: the snapshot cannot be written.
    """
    identity = json.dumps([plain(query.question), query.occasion], sort_keys=True)
    name = f"{_FOLDER}/{blake2b(identity.encode(), digest_size=8).hexdigest()}.jsonl"
    lock = open_lock(storage, _LOCK)
    while True:
        try:
            lock.take(pause)
            break
        except DirectoryBusyError:
            pause(1.0)
    try:
        earlier = list(filter(_NAME.fullmatch, storage.names(_FOLDER)))
        if name in earlier:
            logger.info("Reading the rows that were fetched before, from %s/%s.", storage.location, name)
        else:

            def after_chunk() -> None:
                pause(0.0)  # raises if the run shall stop
                renew()
                lock.renew()

            _fetch(query, storage, name, after_chunk)
            for old in earlier:
                storage.delete(old)
    finally:
        lock.release()
    return storage.local(name)


def _fetch(query: Query, storage: Storage, name: str, after_chunk: Callable[[], None]) -> None:
    count = 0
    with storage.create(name) as file:
        lines: list[bytes] = []
        size = 0
        for rows in query.fetch():
            for row in rows:
                lines.append(json_line(row))
                size += len(lines[-1])
                if size >= _BUFFER:
                    file.write(b"".join(lines))
                    lines, size = [], 0
            count += len(rows)
            after_chunk()
        file.write(b"".join(lines))
    logger.info("Fetched %d rows into %s/%s.", count, storage.location, name)


def json_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON in ASCII; `plain` says what becomes of values that JSON does not have."""
    try:
        return _ENCODE(row).encode() + b"\n"
    except (ValueError, TypeError):  # a NaN, or keys that are not texts, somewhere inside
        return _ENCODE(plain(row)).encode() + b"\n"
