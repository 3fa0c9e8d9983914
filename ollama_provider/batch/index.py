"""Sixteen-byte keys to numbers, a million of them in some 35 MB.

A dict of bytes and ints needs five times as much, and a batch may have millions of rows. The keys are hashes already,
so their first bytes are as good a hash as any.
"""

from array import array
from sys import byteorder

_EMPTY = 0
KEY_BYTES = 16


class Index:
    """Numbers each key in the order of its first appearance and keeps one 64-bit value for it.

    A hash table with open addressing: `_table` holds number + 1 of a key, at the place its first bytes tell or behind.
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
