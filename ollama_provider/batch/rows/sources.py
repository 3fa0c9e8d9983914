"""Where rows come from: an iterable, a query, or files (see `ollama_provider.batch.rows.formats`), read as needed.

A row that cannot be read becomes a `Row` with a fault. The caller decides whether it stops the batch.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import BatchError, InputError, StorageError
from ollama_provider.batch.records import DOCUMENTS, RAW, TEXT, Query, Row, Rows, names_file, paths_of
from ollama_provider.batch.rows.documents import MAX_SIZE, document_rows
from ollama_provider.batch.rows.formats import read_file, suffixes_of
from ollama_provider.batch.rows.parquet_files import read_table
from ollama_provider.batch.rows.text_files import printable
from ollama_provider.batch.store.disk import NO_RIGHTS
from ollama_provider.batch.store.storage import as_path, forget_listing, local_path, open_file

#: Formats whose rows can be counted without parsing or decompressing them.
_COUNTED = {(suffix, "") for suffix in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")}
_WILDCARDS = frozenset("*?[")
#: Errors of the input: they come again at the next attempt, unlike failures of a disk or a store.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def read_rows(rows: Rows, options: InputOptions = InputOptions()) -> Iterator[Row]:  # noqa: B008  # it never changes
    """Return the rows, each read when it is needed.

    Args:
        rows: one of these:

            - texts (each is a row with the one column ``text``) or mappings;
            - a file or a glob of files, which are read in the order of their names: a path, a ``file://`` URL, or an
              object that behaves like a `pathlib.Path` (Airflow's ``ObjectStoragePath``);
            - several of these, in the order given;
            - a table of pyarrow, pandas (2.2 or later), polars or DuckDB (needs pyarrow);
            - a query, which is fetched at once (a batch makes a snapshot of it, see
              `ollama_provider.batch.rows.snapshot`).

            Texts that all end in a known suffix are file names; as texts they are written ``{"text": …}``. If a file
            has exactly the name of a glob, the file is read. The suffix gives the format: ``.jsonl`` or ``.ndjson`` (an
            object or a text a line), ``.json`` (one list of these), ``.csv`` or ``.tsv`` (names in the first line),
            ``.parquet`` (needs pyarrow; times to the microsecond, as Python's are). All but the last may be compressed:
            ``.gz``, ``.bz2``, ``.xz``, ``.zst`` (needs pyarrow before Python 3.14). A document (``.txt``, ``.md``,
            ``.html``, ``.pdf``, ``.docx``) is a row with ``path``, ``name``, ``text`` and ``modified``; several are one
            glob, or path objects, since a text of a list may come from anybody.
        options: how text is written in the files.

    Raises:
        InputError: no rows, no such file, a glob that matches none, an unknown suffix or protocol, another encoding
            or separator, or a file that cannot be read at all, or not from some place on.
        StorageError: the disk or the store fails; another attempt may succeed.
    """
    paths = paths_of(rows)
    if paths is not None:
        return _read_files(paths, options)
    if isinstance(rows, Query):
        return _read_iterable(chain.from_iterable(rows.fetch()))
    if hasattr(rows, "__arrow_c_stream__"):
        return read_table(rows)
    _refuse_wrong_types(rows)
    return _read_iterable(rows) if isinstance(rows, list | tuple) else _read_iterator(iter(rows), options)  # type: ignore[arg-type]


def folder_of(rows: Any) -> Any | None:
    """Return the folder of the files, which is that before the first wildcard of a glob; None if there is not one.

    Raises:
        InputError: the files are in a store that cannot be read.
        StorageError: the store fails.
    """
    folders = [_folder(path) for path in paths_of(rows) or ()]
    return folders[0] if len(set(map(str, folders))) == 1 else None


def _folder(pattern: Any) -> Any:
    with readable(pattern):
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


def _refuse_wrong_types(rows: Any) -> None:
    if rows is None:
        raise InputError("rows: they are None. Check the task or the template that they come from.")
    if isinstance(rows, Mapping):
        raise InputError("rows: they are one mapping, where a list of mappings or texts is expected.")
    if hasattr(rows, "columns"):
        raise InputError(
            'rows: this table would give its columns. Give its rows, such as frame.to_dict("records"); of a lazy one, '
            "what its collect() returns."
        )
    if isinstance(rows, list | tuple) and rows and all(map(_may_be_a_document, rows)):
        raise InputError(
            "rows: they may be texts, or names of documents. Texts choose no files that are read: give documents as "
            'one path or glob, or as path objects, and texts as {"text": …}.'
        )
    if hasattr(rows, "readline"):
        raise InputError("rows: an open file would give its lines as texts. Give its path.")
    if isinstance(rows, bytes | bytearray) or not isinstance(rows, Iterable):
        raise InputError(f"rows: a path, a list of texts, mappings or paths, or a query is expected, not {rows!r:.40}.")


def _may_be_a_document(row: Any) -> bool:
    return isinstance(row, str) and row.lower().endswith(DOCUMENTS) and len(row.split()) == 1


def find_files(pattern: Any) -> list[Any]:
    """Return the files that a path or glob means, sorted by name.

    Raises:
        InputError: there are none.
        StorageError: the store fails.
    """
    with readable(pattern):
        path = _path(pattern)
        forget_listing(path)
        if path.is_file():
            files = [path]
        elif _WILDCARDS & set(str(path)):
            files = _glob(path)
        else:
            raise InputError(_why_absent(path))
        if not files:
            raise InputError(f"No file matches {path}, so there are no rows.")
    for file in files:
        suffixes_of(file)
    return files


def _why_absent(path: Any) -> str:
    if path.is_dir():
        return f"{path} is a folder. Name the files in it, such as {path}/*.jsonl."
    if path.exists():
        return f"{path} is not a regular file, so rows cannot be read from it."
    return (
        f"There is no file {path} to read rows from. (Texts that end like file names are given as "
        '{"text": …}, so that they are not taken for files.)'
    )


def _glob(path: Any) -> list[Any]:
    parts = []
    # A folder that has exactly this name is not a pattern.
    while _WILDCARDS & set(str(path)) and not path.is_dir():
        parts.append(path.name)
        path = path.parent
    return sorted((file for file in path.glob("/".join(reversed(parts))) if file.is_file()), key=str)


@contextmanager
def readable(path: Any) -> Iterator[None]:
    """Raise the batch's own errors in place of those of a disk, or of the library of a store."""
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
        reason = str(error.strerror or error).removesuffix(".")
        advice = f" {NO_RIGHTS}." if isinstance(error, PermissionError) and local_path(path) is None else ""
        raise (InputError if lasting else StorageError)(f"{path} cannot be read: {reason}.{advice}") from error
    except Exception as error:
        # The libraries of stores have errors of their own. Their texts may contain signed URLs, so they are left out.
        raise StorageError(f"{path} cannot be read: the store's library raised {type(error).__name__}.") from error


def _read_files(paths: Iterable[Any], options: InputOptions) -> Iterator[Row]:
    # All files are found before the first one is read.
    files = [file for path in paths for file in find_files(path)]
    return chain.from_iterable(_read_file(file, options) for file in files)


def _read_iterator(rows: Iterator[Any], options: InputOptions) -> Iterator[Row]:
    names = []
    for row in rows:
        names.append(row)
        if not names_file(row):
            break
    else:
        return (yield from _read_files(names, options))
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


def _read_file(path: Any, options: InputOptions) -> Iterator[Row]:
    suffix, _ = suffixes_of(path)
    if suffix in DOCUMENTS:
        yield from _read_document(path, suffix, options)
        return
    with readable(path), open_file(path) as file:
        yield from read_file(file, path, options)


def _read_document(path: Any, suffix: str, options: InputOptions) -> Iterator[Row]:
    name = printable(path)
    try:
        with readable(path), path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
            modified = _modified(path)
    except InputError as error:  # one document of many, which was removed or may not be read
        yield Row({RAW: ""}, name, str(error))
        return
    yield from document_rows(data, name, suffix, modified, options)


def _modified(path: Any) -> datetime | None:
    """Return when a file was written. Not every store tells."""
    try:
        seconds = path.stat().st_mtime
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) and seconds else None


def size_of(path: Any) -> int | None:
    """Return the bytes of a file. Not every store tells.

    Raises:
        InputError: it cannot be read.
        StorageError: the store fails.
    """
    with readable(path):
        try:
            size = path.stat().st_size
        except (AttributeError, KeyError, TypeError):
            return None
    return size if isinstance(size, int) else None


def count_rows(
    rows: Rows,
    check: Callable[[], object] = lambda: None,
    options: InputOptions = InputOptions(),  # noqa: B008  # it never changes
) -> int | None:
    """Return how many rows there are, for lists, documents and local files; None where counting would be expensive.

    For JSON lines and CSV it is the number of lines, so a blank line or a line break within a field makes it too large.
    The true number is known when the input has been read.

    Args:
        rows: see `read_rows`.
        check: called about once a megabyte; may raise to give up.
        options: see `read_rows`.
    """
    paths = paths_of(rows)
    if paths is None:
        return len(rows) if isinstance(rows, Sized) else None
    try:
        files = [file for path in paths for file in find_files(path)]
        if options.split_text is None and all(suffixes_of(file)[0] in DOCUMENTS for file in files):
            return len(files)
        # Some versions of a path of an object store are a Path too.
        if any(hasattr(type(file), "fs") or suffixes_of(file) not in _COUNTED for file in files):
            return None
        return sum(_count_in_file(file, check) for file in files)
    except (OSError, BatchError, ValueError, ImportError):  # reading the rows raises it again, with an explanation
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
    return lines + (last != b"\n") - (path.suffix.lower() in {".csv", ".tsv"})
