"""Vectors in a file: JSON lines or Parquet, written as they come, and there as a whole or not at all."""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import IO, TypedDict

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError

#: Rows that Parquet keeps together, and memory holds.
_ROW_GROUP = 1000


class Vector(TypedDict):
    """A row of the file. ``prompt_cut``: the text was longer than the context, so a part of it does not count."""

    index: int
    text: str
    embedding: list[float]
    prompt_cut: bool


def writer_for(path: ObjectStoragePath) -> Callable[[IO[bytes], Iterable[Vector]], None]:
    """Return what writes the format that the path's suffix says.

    Raises:
        InvalidRequestError: it is neither ``.jsonl`` nor ``.parquet``, or pyarrow is not installed.
    """
    if path.suffix == ".jsonl":
        return _write_json_lines
    if path.suffix != ".parquet":
        raise InvalidRequestError(f"output_path: {path.name!r} must end in .jsonl or .parquet")
    try:
        import pyarrow.parquet  # noqa: F401  # heavy, optional, and for this one suffix
    except ImportError:
        raise InvalidRequestError(
            "output_path: Parquet needs pyarrow on the workers: pip install 'airflow-provider-ollama[parquet]'"
        ) from None
    return _write_parquet


def write_vectors(path: ObjectStoragePath, rows: Iterable[Vector]) -> None:
    """Write *rows* to *path* as they come; if one fails to come, there is no file.

    Raises:
        InvalidRequestError: see `writer_for`; nothing has been taken from *rows* then.
    """
    write = writer_for(path)
    if path.protocol in {"", "file"}:
        # Object stores have no folders to make.
        path.parent.mkdir(parents=True, exist_ok=True)
    # Within fsspec's transaction a file appears when it is complete; an exception drops it.
    with path.fs.transaction, path.open("wb") as file:
        write(file, rows)


def _write_json_lines(file: IO[bytes], rows: Iterable[Vector]) -> None:
    for row in rows:
        # ASCII: readers that split lines as Unicode does would break a text at U+0085 or U+2028.
        file.write(json.dumps(row).encode() + b"\n")


def _write_parquet(file: IO[bytes], rows: Iterable[Vector]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        {"index": pa.int64(), "text": pa.string(), "embedding": pa.list_(pa.float32()), "prompt_cut": pa.bool_()}
    )
    left = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(left, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
