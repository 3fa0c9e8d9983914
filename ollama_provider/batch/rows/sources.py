"""Where rows come from: an iterable, or JSONL, CSV and Parquet files, read as they are needed.

A row that cannot be read is a `Row` with a fault, so that who asked decides whether it stops the batch.
"""

import csv
import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from ollama_provider.batch.errors import BatchError, InputError, StorageError
from ollama_provider.batch.records import Query, Row, Rows, names_file, paths_of
from ollama_provider.batch.store.storage import as_path, local_path

_WILDCARDS = frozenset("*?[")
#: Columns that this module makes: of a row that is only a text, and of one that cannot be read.
TEXT, RAW = "text", "raw"

#: Bytes of a line at most, and characters of a field of CSV. What is longer is no row but a file without line breaks.
_LONGEST = 1 << 26
#: Bytes of such a line that are kept, to tell it from others.
_SHOWN = 1000
_BOM = b"\xef\xbb\xbf"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
#: What will be the same the next time, and so is no failure of the store.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def read_rows(rows: Rows) -> Iterator[Row]:
    """Return the rows, each read when it is asked for.

    Args:
        rows: texts (each is a row with the one column ``text``) or mappings; or a file or a glob of files, which are
            read in the order of their names: a path, a ``file://`` URL, or an object that behaves like a
            `pathlib.Path` (Airflow's ``ObjectStoragePath``); or several of these, in the order given. Texts that all
            end in a known suffix are taken for files; as texts they are written ``{"text": …}``. A file that is
            called exactly so is meant before a glob is. The suffix tells the format: ``.jsonl`` or ``.ndjson`` (an
            object or a text a line), ``.csv`` (UTF-8, commas, first line the names), ``.parquet`` (needs pyarrow;
            times to the microsecond, since Python's know no more). A query is asked here and now; for a batch see
            `ollama_provider.batch.rows.snapshot`.

    Raises:
        InputError: no rows, no such file, a glob that matches none, an unknown suffix or protocol, another encoding
            or separator, or a file that cannot be read at all.
        StorageError: the disk or the store fails, which may pass.
    """
    paths = paths_of(rows)
    if paths is not None:
        return _read_files(paths)
    if isinstance(rows, Query):
        return _read_iterable(chain.from_iterable(rows.fetch()))
    _refuse_others(rows)
    return _read_iterable(rows) if isinstance(rows, list | tuple) else _read_iterator(iter(rows))  # type: ignore[arg-type]


def folder_of(rows: Any) -> Any | None:
    """Return the folder that the files lie in, below which a glob may look; None if there is no such one.

    Raises:
        InputError: they are in a store that cannot be read.
        StorageError: the store does not say.
    """
    folders = [_folder(path) for path in paths_of(rows) or ()]
    return folders[0] if len(set(map(str, folders))) == 1 else None


def _folder(pattern: Any) -> Any:
    with _readable(pattern):
        path = _path(pattern)
        if path.is_file():
            return path.parent
        while _WILDCARDS & set(str(path)) and not path.is_dir():
            path = path.parent
        return path


def _path(path: Any) -> Any:
    local = local_path(path)
    if local is not None:
        return local
    return as_path(path) if isinstance(path, str) else path


def _refuse_others(rows: Any) -> None:
    if rows is None:
        raise InputError("rows: they are None. Check the task or the template that they come from.")
    if isinstance(rows, Mapping):
        raise InputError("rows: they are one mapping, where a list of mappings or texts is due.")
    if hasattr(rows, "columns"):
        raise InputError('rows: a table would give its columns. Give its rows, such as frame.to_dict("records").')
    if hasattr(rows, "readline"):
        raise InputError("rows: an open file would give its lines as texts. Give its path.")
    if isinstance(rows, bytes | bytearray) or not isinstance(rows, Iterable):
        raise InputError(f"rows: a path, a list of texts, mappings or paths, or a query is due, not {rows!r:.40}.")


def find_files(pattern: Any) -> list[Any]:
    """Return the files that a path or glob means, sorted by name.

    Raises:
        InputError: there are none.
        StorageError: the store does not say.
    """
    with _readable(pattern):
        path = _path(pattern)
        if path.is_file():
            files = [path]
        elif _WILDCARDS & set(str(path)):
            files = _glob(path)
        else:
            raise InputError(_absent(path))
        if not files:
            raise InputError(f"No file matches {path}, so there are no rows.")
    for file in files:
        if file.suffix.lower() not in _READERS:
            raise InputError(f"{file} is of no known format: the suffix must be one of {', '.join(_READERS)}.")
    return files


def _absent(path: Any) -> str:
    if path.is_dir():
        return f"{path} is a folder. Name the files in it, such as {path}/*.jsonl."
    if path.exists():
        return f"{path} is no regular file, so rows cannot be read from it."
    return (
        f"There is no file {path} to read rows from. (Texts that end like file names are given as "
        '{"text": …}, so that they are not taken for files.)'
    )


def _glob(path: Any) -> list[Any]:
    parts = []
    # A folder that is called exactly so is meant, and no pattern.
    while _WILDCARDS & set(str(path)) and not path.is_dir():
        parts.append(path.name)
        path = path.parent
    return sorted((file for file in path.glob("/".join(reversed(parts))) if file.is_file()), key=str)


@contextmanager
def _readable(path: Any) -> Iterator[None]:
    """Make errors of ours of those that a disk, or the library of a store, raises."""
    try:
        yield
    except BatchError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no file {path} to read rows from.") from None
    except ImportError as error:
        raise InputError(
            f"{path} cannot be read: {error}. It needs the fsspec driver of its protocol; in Airflow the driver of "
            "s3:// comes with pip install 'apache-airflow-providers-amazon[s3fs]'."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        lasting = isinstance(error, _LASTING) or error.errno in _LASTING_NUMBERS
        raise (InputError if lasting else StorageError)(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # The libraries of stores have errors of their own, whose texts may hold addresses with a signature.
        raise StorageError(f"{path} cannot be read: the store's library raised {type(error).__name__}.") from error


def _read_files(paths: Iterable[Any]) -> Iterator[Row]:
    # All are looked for before the first is read.
    return chain.from_iterable(map(_read_file, [file for path in paths for file in find_files(path)]))


def _read_iterator(rows: Iterator[Any]) -> Iterator[Row]:
    names = []
    for row in rows:
        names.append(row)
        if not names_file(row):
            break
    else:
        return (yield from _read_files(names))
    yield from _read_iterable(chain(names, rows))


def _read_iterable(rows: Any) -> Iterator[Row]:
    for index, row in enumerate(rows):
        place = f"row {index}"
        if isinstance(row, str):
            yield Row({TEXT: row}, place)
        elif isinstance(row, Mapping):
            if all(isinstance(name, str) for name in row):
                yield Row(row if type(row) is dict else dict(row), place)
            else:
                yield Row({RAW: repr(row)}, place, "the names of columns must be texts")
        else:
            yield Row({RAW: repr(row)}, place, f"a row is a text or a mapping, not {type(row).__name__}")


def _read_file(path: Any) -> Iterator[Row]:
    with _readable(path), path.open("rb") as file:
        yield from _READERS[path.suffix.lower()](file, path)


def _readlines(file: BinaryIO) -> Iterator[bytes]:
    # Not the file itself: Airflow 2 wraps one of an object store in an object that cannot be iterated.
    return iter(partial(file.readline, _LONGEST), b"")


def _is_too_long(line: bytes, file: BinaryIO) -> bool:
    """Tell whether there is more of the line than was read, and go to its end."""
    if len(line) < _LONGEST or line.endswith(b"\n"):
        return False
    for rest in iter(partial(file.readline, 1 << 20), b""):
        if rest.endswith(b"\n"):
            break
    return True


_TOO_LONG = f"the line is longer than {_LONGEST >> 20} MB"


def _first_line(line: bytes, path: Any) -> bytes:
    """Return the first line of a file without the mark that editors of Windows put before it.

    Raises:
        InputError: it is UTF-16.
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
                yield Row({RAW: line[:_SHOWN].decode(errors="backslashreplace")}, place, _TOO_LONG)
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
    """Lines for the CSV reader. A byte that is no UTF-8 becomes a lone surrogate, so that its row can be named."""

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
        line = self._file.readline(_LONGEST)
        if not line:
            raise StopIteration
        if _is_too_long(line, self._file):
            raise csv.Error(_TOO_LONG)
        return line.decode("utf-8", "surrogateescape")


def _read_csv(file: BinaryIO, path: Any) -> Iterator[Row]:
    # Python's own bound is 128 kB a field.
    csv.field_size_limit(_LONGEST)
    path = _printable(path)
    first = _first_line(file.readline(_LONGEST), path).decode("utf-8", "surrogateescape")
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
                # What follows is the rest of a field, and must not be taken for rows.
                raise InputError(
                    f"{path}, line {start}: a field that begins here is longer than {_LONGEST >> 20} MB. Is its quote "
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
        # Spark's old times reach beyond the years that nanoseconds can count.
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
    except Exception:  # one value that Python cannot hold; pyarrow has no class for that
        return map(partial(_row_of, batch), range(batch.num_rows))


def _row_of(batch: Any, number: int) -> tuple[dict[str, Any], str | None]:
    columns: dict[str, Any] = {}
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = values[number].as_py()
        except Exception as error:
            fault = f"Python cannot hold the value of its column {name!r} ({values.type}): {type(error).__name__}"
            return {RAW: repr(columns)}, fault
    return columns, None


def _for_python(schema: Any) -> Any:
    """Return a schema with microseconds in the place of nanoseconds, which Python's times do not have."""
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


_READERS = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def canonical(columns: Mapping[str, Any]) -> str:
    """Return the content of a row as one text, the same for the same content in every process."""
    return json.dumps(columns, sort_keys=True, default=repr)


def count_rows(rows: Rows, check: Callable[[], object] = lambda: None) -> int | None:
    """Return how many rows there are, where that is cheap to know: for lists and for local files.

    For JSONL and CSV it is the number of lines, so a blank line or a line break within a field makes it too large; the
    true number is known when the input has been read.

    Args:
        rows: see `read_rows`.
        check: called now and then; may raise to give up.
    """
    paths = paths_of(rows)
    if paths is None:
        return len(rows) if isinstance(rows, Sized) else None
    try:
        files = [file for path in paths for file in find_files(path)]
        # Some versions of a path of an object store are a Path too.
        if any(hasattr(file, "fs") for file in files):
            return None
        return sum(_count_in_file(file, check) for file in files)
    except (OSError, BatchError, ValueError, ImportError):  # whoever reads the rows says what is wrong
        return None


def _count_in_file(path: Path, check: Callable[[], object]) -> int:
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet  # heavy, and an extra

        return int(parquet.read_metadata(path).num_rows)
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            check()
            lines += piece.count(b"\n")
            last = piece[-1:]
    return lines + (last != b"\n") - (path.suffix.lower() == ".csv")
