"""Files with one line or record for each row of the input: their interface, and JSON lines.

A line of a part holds all of a result but what is the row's own (index, id, kept columns), so most lines are copied as
bytes.
"""

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.store.disk import FileWriter
from ollama_provider.batch.store.lines import AFTER_KEY, decode_vector

#: A row of the results: its line of a part, its index in the input, and its id and kept columns as JSON members.
ResultRow = tuple[bytes, int, bytes]


class ResultsFile(ABC):
    """A file with all rows that is being written."""

    @abstractmethod
    def write(self, rows: Sequence[ResultRow]) -> Mapping[int, str]:
        """Write some rows.

        Returns:
            The rows that the file cannot hold, by their place in *rows*, with the reason. If there are any, none of
            *rows* is written.
        """

    def close(self) -> None:  # noqa: B027  # only for those that have something left
        """Write what is left."""

    def abandon(self) -> None:  # noqa: B027  # only for those that have something left
        """End without writing anything more: the file will be removed."""


@dataclass(frozen=True)
class ResultsFormat:
    """How the results of a batch are written.

    Attributes:
        name: of the file.
        open: begins a file. Its arguments are the file to write into, the order of all rows to come, and an iterator
            over their lines in the parts, for a format that depends on them.
    """

    name: str
    open: Callable[[FileWriter, RowOrder, Iterator[bytes]], ResultsFile]


class MisfitError(ValueError):
    """A value that its place in the results cannot hold.

    Args:
        what: is wrong with it.
        path: names of the fields that lead to it, from outside.
    """

    def __init__(self, what: str, *path: str) -> None:
        self.what = what
        self.path = path
        super().__init__(what)

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.what}" if self.path else self.what

    def inside(self, name: str) -> "MisfitError":
        """Return the error with the name of the field around the value."""
        return MisfitError(self.what, name, *self.path)


class JsonLines(ResultsFile):
    """The lines of the parts, with index, id and kept columns put after the key.

    Args:
        file: to write into.
    """

    def __init__(self, file: FileWriter) -> None:
        self._file = file

    def write(self, rows: Sequence[ResultRow]) -> Mapping[int, str]:
        """Write some rows; JSON lines can hold all of them."""
        pieces: list[bytes] = []
        for line, index, fields in rows:
            pieces += line[:AFTER_KEY], b',"index":%d,%b' % (index, fields), line[AFTER_KEY:]
        self._file.write(b"".join(pieces))
        return {}


class VectorLines(JsonLines):
    """JSON lines with the numbers of the vectors. Nine digits tell one float32 from another."""

    def write(self, rows: Sequence[ResultRow]) -> Mapping[int, str]:
        """Write some rows; those without a proper vector cannot be written."""
        pieces: list[bytes] = []
        refused: dict[int, str] = {}
        for place, (line, index, fields) in enumerate(rows):
            try:
                pieces += self._lines(line, index, fields)
            except MisfitError as error:
                refused[place] = str(error)
        if not refused:
            self._file.write(b"".join(pieces))
        return refused

    def _lines(self, line: bytes, index: int, fields: bytes) -> Iterator[bytes]:
        for row in vector_rows(line):
            vector = row["output"]
            numbers = "null" if vector is None else f"[{','.join(map('{:.9g}'.format, vector_numbers(vector)))}]"
            if "n" in numbers and vector is not None:  # nan, inf
                raise MisfitError(NOT_FINITE, "output")
            rest = {name: value for name, value in row.items() if name not in {"key", "output"}}
            yield f'{{"key":"{row["key"]}","index":{index},'.encode()
            yield fields
            yield f',"output":{numbers},'.encode() + json.dumps(rest)[1:].encode() + b"\n"


#: What is wrong with a vector that holds NaN or infinity.
NOT_FINITE = "a vector with NaN or infinity"


def vector_numbers(text: Any) -> "array[float]":
    """Return the numbers of a vector in a part.

    Raises:
        MisfitError: it is not a vector.
    """
    try:
        return decode_vector(text)
    except (TypeError, ValueError):
        raise MisfitError("not a vector", "output") from None


def vector_rows(line: bytes) -> Iterator[dict[str, Any]]:
    """Return the rows of the results for a line of a part with vectors: one, or one for each piece of its text.

    Raises:
        MisfitError: the outcome is a good one, but there is no vector, or not one for each piece.
    """
    row = from_json(line)
    spans, vectors = row.pop("spans", None), row["output"]
    if row["status"] == "ok" and not vectors:
        raise MisfitError("no vector", "output")
    if spans is None:
        yield row
        return
    if len(spans) != len(vectors):
        raise MisfitError("not a vector for each piece of the text", "output")
    for chunk, ((start, end), vector) in enumerate(zip(spans, vectors, strict=True)):
        yield row | {"output": vector, "chunk": chunk, "start": start, "end": end}
