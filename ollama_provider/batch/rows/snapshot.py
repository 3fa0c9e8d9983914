"""Rows that come from outside are written into the directory first, and read from there.

So a retry sees the same rows, the other side is asked once, and no connection is open all night. The file is named
after question and occasion: another of either makes another file, which replaces it. What was answered before is found
by its content as ever, so a row that both have is not asked again.
"""

import json
import logging
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
_BUFFER = 1 << 20


def fetch_once(query: Query, storage: Storage, pause: Callable[[float], None], renew: Callable[[], None]) -> Path:
    """Return a local JSONL file with the rows of *query*, asking for them if it is not there yet.

    Shards that begin at the same time ask once: the others wait for the first.

    Args:
        query: what to ask.
        storage: the directory of the batch.
        pause: waits so many seconds; may raise to give up.
        renew: called after each chunk, to show that the run is alive.

    Raises:
        DatabaseError: see `Query.fetch`; nothing of the rows is kept then.
        OSError: they cannot be written.
    """
    question = json.dumps([plain(query.question), query.occasion], sort_keys=True)
    name = f"{_FOLDER}/{blake2b(question.encode(), digest_size=8).hexdigest()}.jsonl"
    lock = open_lock(storage, _LOCK)
    while True:
        try:
            lock.take(pause)
            break
        except DirectoryBusyError:
            pause(1.0)
    try:
        earlier = [found for found in storage.names(_FOLDER) if found.endswith(".jsonl")]
        if name in earlier:
            logger.info("The rows are those that were fetched before, in %s/%s.", storage.location, name)
        else:

            def alive() -> None:
                pause(0.0)
                renew()
                lock.renew()

            _fetch(query, storage, name, alive)
            for old in earlier:
                storage.delete(old)
    finally:
        lock.release()
    return storage.local(name)


def _fetch(query: Query, storage: Storage, name: str, alive: Callable[[], None]) -> None:
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
            alive()
        file.write(b"".join(lines))
    logger.info("%d rows were fetched into %s/%s.", count, storage.location, name)


def json_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON, ASCII alone; see `plain` for what JSON has no word for."""
    try:
        return _ENCODE(row).encode() + b"\n"
    except (ValueError, TypeError):  # NaN, or odd keys somewhere inside
        return _ENCODE(plain(row)).encode() + b"\n"


_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=plain).encode
