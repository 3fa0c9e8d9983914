"""Keys: sixteen bytes that say which rows are the same work, and a compact table of them.

Two rows are the same work if and only if these are the same: the digest of the model, the rendered request (prompt,
system message, reasoning), the options, the schema of the answer, and the images.

These play no part: position, file and id of the row, the name of the model, the server, ``keep_alive``, time and number
of the attempt. A context size that the batch chose by itself plays none either; one that the user gave does. Nor does
what is tried when an answer does not fit the schema, since it asks for the same.

Where there is a schema, the *request key* covers the same except the schema. Every line keeps the raw reply under it.
When the schema changes, the kept replies are validated again, and only rows whose reply does not fit are asked again.
What a pydantic class checks beyond its JSON schema is code, and part of no key.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from sys import byteorder
from typing import Any

KEY_BYTES = 16
_EMPTY = 0


class Keys:
    """Makes the keys of a run."""

    def __init__(self, digest: str, request: Mapping[str, Any], schema: Any = None) -> None:
        """Set what all rows have in common.

        Args:
            digest: of the model; its name where the server lists no digest.
            request: everything in the request that affects the answer, except prompt, images and schema.
            schema: of the answer; None for text.
        """
        shared = json.dumps({"model": digest, **request}, sort_keys=True, separators=(",", ":"))
        self._shared = hashlib.blake2b(shared.encode(), digest_size=KEY_BYTES)
        self._schema = b"" if schema is None else json.dumps(schema, sort_keys=True).encode()

    def key(self, prompt: str, images: Sequence[str] = ()) -> bytes:
        """Return the key of a request: sixteen bytes."""
        return self.key_and_request_key(prompt, images)[0]

    def key_and_request_key(self, prompt: str, images: Sequence[str] = ()) -> tuple[bytes, bytes | None]:
        """Return the key of a request, and its request key where there is a schema."""
        request = self._hash(b"p", prompt, *images)
        if not self._schema:
            return request, None
        return hashlib.blake2b(request + self._schema, digest_size=KEY_BYTES).digest(), request

    def without_request(self, content: str) -> bytes:
        """Return the key of a row that is never sent, because it cannot be read or rendered."""
        return self._hash(b"u", content)

    def _hash(self, kind: bytes, *texts: str) -> bytes:
        digest = self._shared.copy()
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%b%d:%b" % (kind, len(data), data))
        return digest.digest()


class Index:
    """Numbers each key in the order of its first appearance, and keeps one 64-bit value for it.

    A million keys take some 35 MB; a dict of bytes and ints takes five times as much, and a batch may have millions of
    rows. It is a hash table with open addressing: `_table` holds number + 1 of a key, at the place that its first bytes
    give, or after it. The keys are hashes already, so their first bytes are as good a hash as any.
    """

    def __init__(self) -> None:
        self._keys = bytearray()
        self._values = array("Q")
        self._table = array("I", bytes(4 * 1024))
        self._mask = 1023

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: int) -> int:
        return self._values[number]

    def __setitem__(self, number: int, value: int) -> None:
        self._values[number] = value

    def values(self) -> "array[int]":
        """Return the values of all keys as they are now, in the order of their numbers."""
        return self._values[:]

    def number(self, key: bytes) -> int:
        """Return the number of *key*, a new one (with value 0) if it was not known."""
        table, mask, keys = self._table, self._mask, self._keys
        place = int.from_bytes(key[:8], byteorder) & mask
        while (entry := table[place]) != _EMPTY:
            start = (entry - 1) * KEY_BYTES
            if keys[start : start + KEY_BYTES] == key:
                return entry - 1
            place = (place + 1) & mask
        number = len(self._values)
        table[place] = number + 1
        keys += key
        self._values.append(0)
        if number * 3 > mask * 2:
            self._grow()
        return number

    def find(self, key: bytes) -> int | None:
        """Return the number of *key*; None if it is not known. This may run in another thread than everything else."""
        table, keys = self._table, self._keys
        mask = len(table) - 1
        place = int.from_bytes(key[:8], byteorder) & mask
        while (entry := table[place]) != _EMPTY:
            start = (entry - 1) * KEY_BYTES
            if keys[start : start + KEY_BYTES] == key:
                return entry - 1
            place = (place + 1) & mask
        return None

    def key(self, number: int) -> bytes:
        """Return the key that has *number*."""
        return bytes(self._keys[number * KEY_BYTES : (number + 1) * KEY_BYTES])

    def _grow(self) -> None:
        size = 2 * len(self._table)
        mask = size - 1
        table = array("I", bytes(4 * size))
        words = array("Q", bytes(self._keys))
        for number in range(len(self._values)):
            place = words[2 * number] & mask
            while table[place] != _EMPTY:
                place = (place + 1) & mask
            table[place] = number + 1
        self._table, self._mask = table, mask
