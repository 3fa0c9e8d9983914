"""The order of the input: which result belongs to which row, and with which id."""

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator
from datetime import date, time
from math import isfinite
from typing import IO, Any

from pydantic_core import from_json

from ollama_provider.batch.store.journal import Journal, State
from ollama_provider.batch.store.lines import escape_surrogates

_BUFFER = 1 << 20
#: Stands for a row without an outcome.
_MISSING = 2**32 - 1


class RowOrder:
    """The rows of the input in their order: for each the number of its key, and its id.

    A row takes four bytes of memory. The ids are in a temporary file, which is not needed after a crash.
    """

    def __init__(self, *, with_ids: bool) -> None:
        self._numbers = array("I")
        self._ids: IO[bytes] | None = tempfile.TemporaryFile(buffering=_BUFFER) if with_ids else None  # noqa: SIM115  # closed by close()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int | None, row_id: Any) -> None:
        """Append a row; *number* None is a row without an outcome."""
        self._numbers.append(_MISSING if number is None else number)
        if self._ids is not None:
            self._ids.write(as_json(row_id) + b"\n")

    def rows(self) -> Iterator[tuple[int, int, bytes]]:
        """Return index, number and id (as JSON) of each row that has an outcome."""
        if self._ids is not None:
            self._ids.seek(0)
        for index, number in enumerate(self._numbers):
            row_id = self._ids.readline()[:-1] if self._ids is not None else b"null"
            if number != _MISSING:
                yield index, number, row_id

    def count(self, journal: Journal) -> tuple[int, int]:
        """Return how many rows have a good result, and how many have failed."""
        found = Counter(map(journal.state, filter(_MISSING.__ne__, self._numbers)))
        return found[State.OK], found[State.FAILED] + found[State.FAILED_BEFORE]

    def close(self) -> None:
        """Remove the ids."""
        if self._ids is not None:
            self._ids.close()


def as_json(value: Any) -> bytes:
    r"""Return the value of an id column as strict JSON.

    Dates become ISO 8601, decimals text, bytes hex digits, and NaN null. Half a surrogate pair becomes its escape, such
    as ``\ud83d``. A value that JSON has no form for becomes the text that Python writes for it.
    """
    if isinstance(value, float) and not isfinite(value):
        return b"null"
    try:
        found = _ENCODE(value)
        if found[0] in "[{" or "\\ud" in found:  # else it is strict already
            from_json(found, allow_inf_nan=False)
    except (TypeError, ValueError, RecursionError):  # NaN, odd keys or half a pair somewhere inside, or too deep
        return _ENCODE(_description(value)).encode()
    return found.encode()


def _description(value: Any) -> str:
    try:
        return escape_surrogates(value if isinstance(value, str) else repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"a value of type {type(value).__name__} that has no text"


def _as_text(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else escape_surrogates(str(value))


_ENCODE = json.JSONEncoder(default=_as_text, allow_nan=False).encode
