"""The formats of files with rows: JSON lines, CSV and Parquet, read row by row.

A row that cannot be read becomes a `Row` with a fault. The caller decides whether it stops the batch.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO

from pydantic_core import from_json

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import RAW, TEXT, Row

#: Maximum bytes of a line, and characters of a field of CSV. A file with a longer one has no line breaks.
_MAX_LINE = 1 << 26
#: Bytes that are kept of a line that is too long, to tell it from others.
_KEPT = 1000
_BOM = b"\xef\xbb\xbf"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _readlines(file: BinaryIO) -> Iterator[bytes]:
    # Airflow 2 wraps a file of an object store in an object that cannot be iterated, so the lines are read.
    return iter(partial(file.readline, _MAX_LINE), b"")


def _is_too_long(line: bytes, file: BinaryIO) -> bool:
    """Return whether the line is longer than what was read of it, and skip the rest of it."""
    if len(line) < _MAX_LINE or line.endswith(b"\n"):
        return False
    for rest in iter(partial(file.readline, 1 << 20), b""):
        if rest.endswith(b"\n"):
            break
    return True


_TOO_LONG = f"the line is longer than {_MAX_LINE >> 20} MB"


def _first_line(line: bytes, path: Any) -> bytes:
    """Return the first line of a file without the byte order mark that editors of Windows write.

    Raises:
        InputError: the file is UTF-16.
    """
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or (line[:1] == b"\0") != (line[1:2] == b"\0"):
        raise InputError(
            f"{path} is UTF-16, and text is read as UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 old > new."
        )
    return line.removeprefix(_BOM)


def _printable(path: Any) -> str:
    # A file name need not be UTF-8, and what is written about its rows must be.
    return str(path).encode("utf-8", "backslashreplace").decode()


def _read_jsonl(file: BinaryIO, path: Any) -> Iterator[Row]:
    name = f"{_printable(path)}, line "
    for number, line in enumerate(_readlines(file), start=1):
        if number == 1:
            line = _first_line(line, path)  # noqa: PLW2901
        if not line or line.isspace():
            continue
        place = f"{name}{number}"
        try:
            value = from_json(line)
        except ValueError as error:
            if _is_too_long(line, file):
                yield Row({RAW: line[:_KEPT].decode(errors="backslashreplace")}, place, _TOO_LONG)
                continue
            fault = "a list begins here, and each line must hold an object" if line.strip() == b"[" else _reason(error)
            yield Row({RAW: line.decode(errors="backslashreplace")}, place, f"this is not JSON: {fault}")
            continue
        if type(value) is dict:
            yield Row(value, place)
        elif isinstance(value, str):
            yield Row({TEXT: value}, place)
        else:
            raw = line.decode(errors="backslashreplace")
            found = {list: "a list", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
            yield Row({RAW: raw}, place, f"a line must hold an object or a text, and this is {found}")


def _reason(error: ValueError) -> str:
    return str(error).partition(" at line ")[0]


class _TextLines:
    """Lines for the CSV reader. A byte that is not UTF-8 becomes a lone surrogate, so that its row can be found."""

    def __init__(self, first: str, file: BinaryIO) -> None:
        self._first: str | None = first
        self._file = file
        #: Lines so far.
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number += 1
        if self._first is not None:
            first, self._first = self._first, None
            return first
        line = self._file.readline(_MAX_LINE)
        if not line:
            raise StopIteration
        if _is_too_long(line, self._file):
            raise csv.Error(_TOO_LONG)
        return line.decode("utf-8", "surrogateescape")


def _read_csv(file: BinaryIO, path: Any) -> Iterator[Row]:
    # Python's own limit is 128 kB a field.
    csv.field_size_limit(_MAX_LINE)
    path = _printable(path)
    first = _first_line(file.readline(_MAX_LINE), path).decode("utf-8", "surrogateescape")
    _refuse_separators(first, path)
    lines = _TextLines(first, file)
    reader = csv.reader(lines, strict=True)
    try:
        names = next((names for names in reader if names), [])
    except csv.Error as error:
        raise InputError(f"{path} has no readable first line: {error}.") from error
    if not all(map(_is_utf8, names)):
        raise InputError(f"{path}: its first line is not UTF-8. Save the file as UTF-8.")
    if len(set(names)) < len(names):
        raise InputError(f"{path} names a column twice: {', '.join(map(repr, names))}.")
    while True:
        start = lines.number + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error) or (str(error) == _TOO_LONG and lines.number > start):
                # What follows is the rest of the field, and must not be read as rows.
                raise InputError(
                    f"{path}, line {start}: a field that begins here is longer than {_MAX_LINE >> 20} MB. Is its quote "
                    "closed?"
                ) from None
            words = "a quote that opens here is never closed" if "end of data" in str(error) else str(error)
            yield Row({RAW: ""}, f"{path}, line {start}", f"this is not CSV: {words}")
            continue
        if not values:
            continue
        place = f"{path}, line {start}"
        fault = _fault_of_csv(values, names)
        yield Row(dict(zip(names, values, strict=True)), place) if not fault else Row({RAW: repr(values)}, place, fault)


def _fault_of_csv(values: list[str], names: list[str]) -> str | None:
    if len(values) != len(names):
        return f"it has {len(values)} fields, where the first line names {len(names)}"
    return None if all(map(_is_utf8, values)) else "it is not UTF-8: save the file as UTF-8"


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_separators(line: str, path: Any) -> None:
    names = re.sub(r'"[^"]*"', "", line)
    found = next((words for sign, words in _SEPARATORS.items() if sign in names), None)
    if found and "," not in names:
        raise InputError(
            f"{path}: its first line separates the names with {found}, and CSV is read with commas. Write the file "
            "with commas, or as JSON lines."
        )


def _read_parquet(file: BinaryIO, path: Any) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet  # heavy, and an extra
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow, which is not installed: pip install 'airflow-provider-ollama[parquet]'."
        ) from None
    path = _printable(path)
    try:
        # Old timestamps of Spark are outside of the years that nanoseconds can represent.
        with closing(parquet.ParquetFile(file, coerce_int96_timestamp_unit="us")) as table:
            schema = table.schema_arrow
            if len(set(schema.names)) < len(schema.names):
                raise InputError(f"{path} names a column twice: {', '.join(map(repr, schema.names))}.")
            readable = _for_python(schema)
            number = 0
            # Few rows at a time: a row may have megabytes.
            for batch in table.iter_batches(batch_size=64):
                for columns, fault in _rows_of(batch if readable == schema else batch.cast(readable, safe=False)):
                    yield Row(columns, f"{path}, row {number}", fault)
                    number += 1
    except ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from error


def _rows_of(batch: Any) -> Iterable[tuple[dict[str, Any], str | None]]:
    try:
        return [(row, None) for row in batch.to_pylist()]
    except Exception:  # a value that Python cannot represent; pyarrow has no error class for that
        return map(partial(_row_of, batch), range(batch.num_rows))


def _row_of(batch: Any, number: int) -> tuple[dict[str, Any], str | None]:
    columns: dict[str, Any] = {}
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = values[number].as_py()
        except Exception as error:
            fault = f"Python cannot represent the value of its column {name!r} ({values.type}): {type(error).__name__}"
            return {RAW: repr(columns)}, fault
    return columns, None


def _for_python(schema: Any) -> Any:
    """Return a schema with microseconds in place of nanoseconds, which Python's times do not have."""
    import pyarrow as pa

    return pa.schema([field.with_type(_type_for_python(field.type)) for field in schema], schema.metadata)


def _type_for_python(kind: Any) -> Any:  # noqa: PLR0911  # a table
    import pyarrow as pa
    from pyarrow import types

    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_struct(kind):
        return pa.struct([field.with_type(_type_for_python(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_type_for_python(kind.value_type)))
    if types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_type_for_python(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_type_for_python(kind.value_type)), kind.list_size)
    if types.is_map(kind):
        return pa.map_(_type_for_python(kind.key_type), kind.item_field.with_type(_type_for_python(kind.item_type)))
    return kind


#: By suffix.
READERS: dict[str, Callable[[BinaryIO, Any], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
