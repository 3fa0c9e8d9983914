"""Files of vectors, as JSON lines or Parquet. Rows are written as they arrive; a file is complete or absent."""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import IO, TypedDict

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError

#: Rows in a row group of Parquet, which are held in memory.
_ROW_GROUP = 1000


class Vector(TypedDict):
    """A row of the file. ``prompt_cut`` means that the text was longer than the context and was cut."""

    index: int
    text: str
    embedding: list[float]
    prompt_cut: bool


def writer_for(path: ObjectStoragePath) -> Callable[[IO[bytes], Iterable[Vector]], None]:
    """Return the function that writes the format of the path's suffix.

    Raises:
        InvalidRequestError: the suffix is neither ``.jsonl`` nor ``.parquet``, or pyarrow is not installed.
    """
    if path.suffix == ".jsonl":
        return _write_json_lines
    if path.suffix != ".parquet":
        raise InvalidRequestError(f"output_path: {path.name!r} must end in .jsonl or .parquet")
    try:
        import pyarrow.parquet  # noqa: F401  # optional, and slow to import
    except ImportError:
        raise InvalidRequestError(
            "output_path: Parquet needs pyarrow on the workers: pip install 'airflow-provider-ollama[parquet]'"
        ) from None
    return _write_parquet


def write_vectors(path: ObjectStoragePath, rows: Iterable[Vector]) -> None:
    """Write *rows* to *path* while iterating over them. If that raises an exception, there is no file.

    Raises:
        InvalidRequestError: as in `writer_for`, before the first row is read.
    """
    write = writer_for(path)
    if path.protocol in {"", "file"}:
        # Object stores need no folders.
        path.parent.mkdir(parents=True, exist_ok=True)
    # In a transaction of fsspec, the file appears when it is complete, and an exception discards it.
    with path.fs.transaction, path.open("wb") as file:
        write(file, rows)


def _write_json_lines(file: IO[bytes], rows: Iterable[Vector]) -> None:
    for row in rows:
        # ASCII, because readers that split lines by Unicode rules would break a text at U+0085 or U+2028.
        file.write(json.dumps(row).encode() + b"\n")


def _write_parquet(file: IO[bytes], rows: Iterable[Vector]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        {"index": pa.int64(), "text": pa.string(), "embedding": pa.list_(pa.float32()), "prompt_cut": pa.bool_()}
    )
    remaining = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
