"""What was written into a table before, so that it is not written again.

Of each row of the table: whose result it has. A crash between the table's commit and the note in the ledger makes the
next run write those rows once more, which an upsert makes harmless; the other way round cannot happen.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b
from secrets import token_hex
from struct import Struct
from typing import Any

from ollama_provider.batch.index import KEY_BYTES, Index
from ollama_provider.batch.sources import canonical
from ollama_provider.batch.storage import Storage, write

_FOLDER = "written"
#: Which row of the table, and what it has.
_NOTE = Struct(f"<{KEY_BYTES}sQ")
_NEW = 1
_NAME = re.compile(rf"{_FOLDER}/(\d+)-[0-9a-f]{{8}}")


class Ledger:
    """The notes in a directory, 35 bytes of memory a row.

    Args:
        storage: the directory.
        table: says which table and columns, as plain data: what was written elsewhere or otherwise does not count.
    """

    def __init__(self, storage: Storage, table: Mapping[str, Any]) -> None:
        self._storage = storage
        self._seed = blake2b(canonical(table).encode(), digest_size=KEY_BYTES)
        self._index = Index()
        self._notes: list[bytes] = []
        files = sorted((int(match[1]), name) for name in storage.names(_FOLDER) if (match := _NAME.fullmatch(name)))
        # Two runs that write at the same time take the same numbers, and no row in common.
        self._next = 1 + max((number for number, _ in files), default=0)
        for _, name in files:
            notes = storage.read(name) or b""
            # A note that is damaged stands for nothing: its row is written once more, which does no harm.
            for place, content in _NOTE.iter_unpack(notes[: len(notes) // _NOTE.size * _NOTE.size]):
                self._index[self._index.number(place)] = content

    def place(self, identity: Any) -> bytes:
        """Return what stands for the row of the table with this key."""
        digest = self._seed.copy()
        digest.update(canonical({"": identity}).encode())
        return digest.digest()

    @staticmethod
    def content(key: str, values: Any) -> int:
        """Return what stands for a result, and for what the row itself gives to the table."""
        digest = blake2b(key.encode(), digest_size=8)
        digest.update(canonical({"": values}).encode())
        return int.from_bytes(digest.digest(), "little") & ~_NEW

    def has(self, place: bytes, content: int) -> bool:
        """Tell whether the table's row has this content already."""
        return self._index[self._index.number(place)] & ~_NEW == content

    def note(self, place: bytes, content: int) -> bool:
        """Note what was written; tell whether this very run wrote another content to the same row before."""
        number = self._index.number(place)
        before = self._index[number]
        self._index[number] = content | _NEW
        self._notes.append(_NOTE.pack(place, content))
        return bool(before & _NEW) and before & ~_NEW != content

    def save(self) -> None:
        """Write the notes down that came since the last call."""
        if self._notes:
            write(self._storage, f"{_FOLDER}/{self._next:08d}-{token_hex(4)}", b"".join(self._notes))
            self._next += 1
            self._notes = []
