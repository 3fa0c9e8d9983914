"""The order of the input: which result belongs to which row, with which id and which columns."""

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from ollama_provider.batch.store.journal import Journal, State
from ollama_provider.batch.store.json_values import as_json

_BUFFER = 1 << 20
#: Stands for a row without an outcome.
_MISSING = 2**32 - 1


class RowOrder:
    """The rows of the input in their order: for each the number of its key, its id and its columns for the results.

    A row takes four bytes of memory. Ids and columns are in a temporary file, which is not needed after a crash: the
    next run reads the input again.

    Args:
        with_fields: rows have an id, or columns that are kept.
    """

    def __init__(self, *, with_fields: bool) -> None:
        self._numbers = array("I")
        self._fields: IO[bytes] | None = tempfile.TemporaryFile(buffering=_BUFFER) if with_fields else None  # noqa: SIM115  # closed by close()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int | None, row_id: Any, kept: bytes = b"") -> None:
        """Append a row.

        Args:
            number: of its key; None for a row without an outcome.
            row_id: value of its id column; None if there is none.
            kept: its columns for the results, as JSON; empty if there are none.
        """
        self._numbers.append(_MISSING if number is None else number)
        if self._fields is not None:
            self._fields.write(b'"id":%b%b\n' % (as_json(row_id), b',"row":%b' % kept if kept else b""))

    def rows(self) -> Iterator[tuple[int, int, bytes]]:
        """Return for each row that has an outcome its index, its number, and the members ``id`` and ``row`` as JSON."""
        if self._fields is not None:
            self._fields.seek(0)
        for index, number in enumerate(self._numbers):
            fields = self._fields.readline()[:-1] if self._fields is not None else b'"id":null'
            if number != _MISSING:
                yield index, number, fields

    def count(self, journal: Journal) -> tuple[int, int]:
        """Return how many rows have a good result, and how many have failed."""
        found = Counter(map(journal.state, filter(_MISSING.__ne__, self._numbers)))
        return found[State.OK], found[State.FAILED] + found[State.FAILED_BEFORE]

    def close(self) -> None:
        """Remove the temporary file."""
        if self._fields is not None:
            self._fields.close()
