"""Where rows come from: an iterable, or JSONL, CSV and Parquet files, read as they are needed.

A row that cannot be read is a `Row` with a fault, so that who asked decides whether it stops the batch.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import closing
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from pydantic_core import from_json

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import Row
from ollama_provider.batch.storage import local_path


@runtime_checkable
class Query(Protocol):
    """Rows that have to be asked for."""

    @property
    def question(self) -> Mapping[str, Any]:
        """What is asked, as plain data."""

    @property
    def occasion(self) -> str:
        """For what it is asked: the same question is asked again only for another occasion."""

    def fetch(self) -> Iterator[list[dict[str, Any]]]:
        """Ask, and return the rows, a bounded number at a time.

        Raises:
            DatabaseError: the question is wrong.
            DatabaseGoneError: there is no answer, or no further one.
        """


Rows = str | PathLike[str] | Iterable[str | Mapping[str, Any]] | Query
"""A file or a glob of files, the rows themselves, or a query that gives them."""

_WILDCARDS = frozenset("*?[")
#: Columns that this module makes: of a row that is only a text, and of one that cannot be read.
TEXT, RAW = "text", "raw"


def read_rows(rows: Rows) -> Iterator[Row]:
    """Return the rows, each read when it is asked for.

    Args:
        rows: texts (each is a row with the one column ``text``) or mappings; or a file or a glob of files, which are
            read in the order of their names: a path, a ``file://`` URL, or an object that behaves like a
            `pathlib.Path` (Airflow's ``ObjectStoragePath``). The suffix tells the format: ``.jsonl`` or ``.ndjson``
            (an object or a text a line), ``.csv`` (UTF-8, first line the names), ``.parquet`` (needs pyarrow). A query
            is asked here and now; for a batch see `ollama_provider.batch.snapshot`.

    Raises:
        InputError: no such file, a glob that matches none, an unknown suffix, or a file that cannot be read at all.
    """
    if is_path(rows):
        return chain.from_iterable(map(_read_file, find_files(rows)))
    if isinstance(rows, Query):
        return _read_iterable(chain.from_iterable(rows.fetch()))
    if isinstance(rows, Mapping):
        raise InputError("The rows are one mapping, where a list of mappings or texts is due.")
    return _read_iterable(rows)


def find_files(pattern: Any) -> list[Any]:
    """Return the files that a path or glob means, sorted by name.

    Raises:
        InputError: there are none.
    """
    local = local_path(pattern)
    if local is None and isinstance(pattern, str):
        from upath import UPath  # only who reads from a store by URL needs it

        pattern = UPath(pattern)
    path = pattern if local is None else local
    if not _WILDCARDS & set(str(path)) or (local is not None and local.is_file()):
        if not path.is_file():
            raise InputError(f"There is no file {path} to read rows from.")
        files = [path]
    else:
        files = _glob(path)
        if not files:
            raise InputError(f"No file matches {path}, so there are no rows.")
    for file in files:
        if file.suffix not in _READERS:
            raise InputError(f"{file} is of no known format: the suffix must be one of {', '.join(_READERS)}.")
    return files


def _glob(path: Any) -> list[Any]:
    parts = []
    while _WILDCARDS & set(str(path)):
        parts.append(path.name)
        path = path.parent
    return sorted((file for file in path.glob("/".join(reversed(parts))) if file.is_file()), key=str)


def _read_iterable(rows: Any) -> Iterator[Row]:
    for index, row in enumerate(rows):
        place = f"row {index}"
        if isinstance(row, str):
            yield Row({TEXT: row}, place)
        elif isinstance(row, Mapping):
            yield Row(row if type(row) is dict else dict(row), place)
        else:
            yield Row({RAW: repr(row)}, place, f"a row is a text or a mapping, not {type(row).__name__}")


def _read_file(path: Any) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            yield from _READERS[path.suffix](file, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    # Not the file itself: Airflow 2 wraps one of an object store in an object that cannot be iterated.
    return iter(file.readline, b"")


def _read_jsonl(file: BinaryIO, path: Any) -> Iterator[Row]:
    name = f"{path}, line "
    for number, line in enumerate(_lines(file), start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901  # what editors of Windows put before the first line
        if line.isspace():
            continue
        place = f"{name}{number}"
        try:
            value = from_json(line)
        except ValueError as error:
            yield Row({RAW: line.decode(errors="backslashreplace")}, place, f"this is not JSON: {_reason(error)}")
            continue
        if type(value) is dict:
            yield Row(value, place)
        elif isinstance(value, str):
            yield Row({TEXT: value}, place)
        else:
            raw = line.decode(errors="backslashreplace")
            yield Row({RAW: raw}, place, "a line must hold an object or a text")


def _reason(error: ValueError) -> str:
    return str(error).partition(" at line ")[0]


def _read_csv(file: BinaryIO, path: Any) -> Iterator[Row]:
    # Python's own bound is 128 kB a field.
    csv.field_size_limit(1 << 30)
    # A byte that is no UTF-8 becomes a lone surrogate, so that the line with it can be named.
    lines = (line.decode("utf-8", "surrogateescape") for line in _lines(file))
    reader = csv.reader(lines, strict=True)
    try:
        names = [name.removeprefix("\ufeff") for name in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{path} has no readable first line: {error}.") from error
    if len(set(names)) < len(names):
        raise InputError(f"{path} names a column twice: {', '.join(names)}.")
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row({RAW: ""}, f"{path}, line {start}", f"this is not CSV: {error}")
            continue
        if not values:
            continue
        place = f"{path}, line {start}"
        fault = _fault_of_csv(values, names)
        yield Row(dict(zip(names, values, strict=True)), place) if not fault else Row({RAW: repr(values)}, place, fault)


def _fault_of_csv(values: list[str], names: list[str]) -> str | None:
    if len(values) != len(names):
        return f"it has {len(values)} fields, where the first line names {len(names)}"
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return None


def _read_parquet(file: BinaryIO, path: Any) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet  # heavy, and an extra
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow, which is not installed: pip install 'airflow-provider-ollama[parquet]'."
        ) from None
    try:
        with closing(parquet.ParquetFile(file)) as table:
            number = 0
            # Few rows at a time: a row may have megabytes.
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield Row(row, f"{path}, row {number}")
                    number += 1
    except ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from error


_READERS = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def canonical(columns: Mapping[str, Any]) -> str:
    """Return the content of a row as one text, the same for the same content in every process."""
    return json.dumps(columns, sort_keys=True, default=repr)


def is_path(rows: Rows) -> bool:
    """Tell whether *rows* name files."""
    return isinstance(rows, str | PathLike) or hasattr(rows, "iterdir")


def count_rows(rows: Rows, check: Callable[[], object] = lambda: None) -> int | None:
    """Return how many rows there are, where that is cheap to know: for lists and for local files.

    For JSONL and CSV it is the number of lines, so a blank line or a line break within a field makes it too large; the
    true number is known when the input has been read.

    Args:
        rows: see `read_rows`.
        check: called now and then; may raise to give up.
    """
    if not is_path(rows):
        return len(rows) if isinstance(rows, Sized) else None
    try:
        files = find_files(rows)
        # Some versions of a path of an object store are a Path too.
        if any(hasattr(file, "fs") for file in files):
            return None
        return sum(_count_in_file(file, check) for file in files)
    except (OSError, InputError):
        return None


def _count_in_file(path: Path, check: Callable[[], object]) -> int:
    if path.suffix == ".parquet":
        from pyarrow import parquet  # heavy, and an extra

        return int(parquet.read_metadata(path).num_rows)
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            check()
            lines += piece.count(b"\n")
            last = piece[-1:]
    return lines + (last != b"\n") - (path.suffix == ".csv")
