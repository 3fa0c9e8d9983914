"""The formats of files with rows, by the suffixes of their names."""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import COMPRESSIONS, DOCUMENTS, FORMATS, Row
from ollama_provider.batch.rows.compression import decompressed
from ollama_provider.batch.rows.csv_files import read_csv
from ollama_provider.batch.rows.json_files import read_json_lines, read_json_list
from ollama_provider.batch.rows.parquet_files import read_parquet
from ollama_provider.batch.rows.text_files import as_utf8, printable

_TEXT_READERS: dict[str, Callable[[BinaryIO, str, InputOptions], Iterator[Row]]] = {
    ".jsonl": lambda file, path, _: read_json_lines(file, path),
    ".ndjson": lambda file, path, _: read_json_lines(file, path),
    ".json": lambda file, path, _: read_json_list(file, path),
    ".csv": lambda file, path, options: read_csv(file, path, options, ","),
    ".tsv": lambda file, path, options: read_csv(file, path, options, "\t"),
}


def suffixes_of(path: Any) -> tuple[str, str]:
    """Return the suffix of a file that says its format, and that of its compression (empty for none).

    Raises:
        InputError: the format is unknown.
    """
    name = PurePosixPath(path.name.lower())
    compression = name.suffix if name.suffix in COMPRESSIONS else ""
    suffix = PurePosixPath(name.stem).suffix if compression else name.suffix
    if suffix in DOCUMENTS and not compression:
        return suffix, ""
    if suffix not in FORMATS:
        raise InputError(
            f"The format of {path} is unknown: the suffix must be one of {', '.join(FORMATS)}, after which may follow "
            f"{', '.join(COMPRESSIONS)}, or that of a document: {', '.join(DOCUMENTS)}."
        )
    if suffix == ".parquet" and compression:
        raise InputError(f"{path}: Parquet is compressed inside. Decompress the file around it.")
    return suffix, compression


def read_file(file: BinaryIO, path: Any, options: InputOptions) -> Iterator[Row]:
    """Return the rows of an open file.

    A row that cannot be read becomes a `Row` with a fault. The caller decides whether it stops the batch.

    Args:
        file: with its bytes as they are stored.
        path: its name says the format.
        options: how text is written in it.

    Raises:
        InputError: it cannot be read at all, or not from some place on.
    """
    suffix, compression = suffixes_of(path)
    name = printable(path)
    if suffix == ".parquet":
        yield from read_parquet(file, name)
        return
    with decompressed(file, name, compression) as content:
        yield from _TEXT_READERS[suffix](as_utf8(content, options.encoding), name, options)
