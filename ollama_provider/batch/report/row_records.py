"""Records of a Parquet file, read from any row on: of each group of rows only the columns that are shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, BinaryIO

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.report.row_lines import Line, Step, read_cursor
from ollama_provider.batch.results.parquet import PARQUET
from ollama_provider.batch.store.storage import Storage

#: Rows that are read at a time.
_ROWS = 200
_COLUMNS = (
    "key", "index", "id", "start", "end", "status", "output", "output_json", "error_class", "error_text", "reply",
    "attempts", "tokens", "seconds",
)  # fmt: skip


def can_be_read() -> bool:
    """Return whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


class ParquetRecords:
    """The rows of ``results.parquet``.

    Args:
        storage: the directory.
        file: open for reading; it is closed with the last step.
        vectors: the answers are vectors, which are not read.

    Raises:
        StorageError: it is no Parquet file.
    """

    def __init__(self, storage: Storage, file: BinaryIO, *, vectors: bool) -> None:
        from pyarrow import parquet

        self._where = f"{storage.location}/{PARQUET}"
        self._file = file
        with self._errors():
            self._parquet = parquet.ParquetFile(file)
            groups = self._parquet.metadata
            self._ends = list(accumulate(groups.row_group(number).num_rows for number in range(groups.num_row_groups)))
        self._rows = self._ends[-1] if self._ends else 0
        left_out = {"output", "output_json"} if vectors else set()
        names = self._parquet.schema_arrow.names
        self._columns = [name for name in _COLUMNS if name in names and name not in left_out]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # pyarrow raises errors of many classes
            raise StorageError(
                f"{self._where} cannot be read ({type(error).__name__}). Is it what the batch has written? Run the "
                "batch again: it writes the file anew, and asks no row that has a good answer."
            ) from error

    def knows(self, cursor: str) -> bool:
        """Return whether a cursor is a place in this file."""
        found = read_cursor(cursor)
        return found is not None and found[0] == str(self._rows)

    def steps(self, cursor: str) -> Iterator[Step]:
        """Read on from a cursor, or from the beginning.

        Raises:
            StorageError: the file cannot be read.
        """
        _, first = read_cursor(cursor) or ("", 0)
        with self._errors(), self._file:
            begin = 0
            for number, end in enumerate(self._ends):
                if first < end:
                    yield from self._steps_of_group(number, begin, first)
                begin = end

    def _steps_of_group(self, number: int, begin: int, first: int) -> Iterator[Step]:
        place = begin
        for batch in self._parquet.iter_batches(_ROWS, row_groups=[number], columns=self._columns):
            skipped = max(0, min(first - place, batch.num_rows))
            place += skipped
            for record in batch.slice(skipped).to_pylist():
                place += 1
                line = _line(record)
                yield Step(line, f"{self._rows}:{place}", place / self._rows, is_damaged=line is None)


def _line(record: dict[str, Any]) -> Line | None:
    whole = record.pop("output_json", None)
    kind, text = record.pop("error_class", None), record.pop("error_text", None)
    record["error"] = {"class": kind, "text": text or ""} if kind else None
    if whole is not None:  # the answer has more fields than the column
        record["output"] = whole
    try:
        return Line.model_validate(record)
    except ValueError:
        return None
