"""Parquet, and tables in memory that can be read as Arrow: a few rows at a time."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import RAW, Row

#: Rows that are made Python's at a time. They are few, since a row may have megabytes.
_ROWS = 64
#: Under which pandas hands on an index that has no name.
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


def read_parquet(file: BinaryIO, path: str) -> Iterator[Row]:
    """Return the rows of a Parquet file, with times to the microsecond, as Python's are.

    Raises:
        InputError: pyarrow is not installed, or the file is damaged or names a column twice.
    """
    with _opened(file, path) as table:
        yield from _rows(table.iter_batches(batch_size=_ROWS), table.schema_arrow, path)


def read_parquet_rows(file: BinaryIO, path: str, places: Iterable[float]) -> tuple[int, list[Row]]:
    """Return how many rows a Parquet file has, and those at *places*, which are shares of it from 0 to 1.

    Only the groups of rows are read that these are in.

    Raises:
        InputError: see `read_parquet`.
    """
    rows: list[Row] = []
    with _opened(file, path) as table:
        total, begin = table.metadata.num_rows, 0
        wanted = sorted({min(total - 1, int(place * total)) for place in places}) if total else []
        for group in range(table.num_row_groups):
            end = begin + table.metadata.row_group(group).num_rows
            if here := [number for number in wanted if begin <= number < end]:
                found = _rows(_slices(table.iter_batches(_ROWS, [group]), begin, here), table.schema_arrow, path)
                rows += [replace(row, place=f"{path}, row {number}") for number, row in zip(here, found, strict=True)]
            begin = end
    return total, rows


def _slices(batches: Iterable[Any], begin: int, numbers: Iterable[int]) -> Iterator[Any]:
    """Return a slice with the one row for each number, which are sorted; the first batch begins with row *begin*."""
    left = deque(numbers)
    for batch in batches:
        while left and left[0] < begin + batch.num_rows:
            yield batch.slice(left.popleft() - begin, 1)
        begin += batch.num_rows


@contextmanager
def _opened(file: BinaryIO, path: str) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet  # heavy, and an extra
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow, which is not installed: pip install 'airflow-provider-ollama[parquet]'."
        ) from None
    try:
        # Old timestamps of Spark are outside of the years that nanoseconds can represent.
        with closing(parquet.ParquetFile(file, coerce_int96_timestamp_unit="us")) as table:
            yield table
    except ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from error


def read_table(table: Any) -> Iterator[Row]:
    """Return the rows of a table of pyarrow, pandas, polars or DuckDB.

    A named index of pandas is a column. One without a name, such as a filter leaves, is none.

    Args:
        table: has ``__arrow_c_stream__``, by which these libraries hand tables on.

    Raises:
        InputError: pyarrow is not installed, the table names a column twice, or Arrow has no type for one of its
            columns.
    """
    try:
        import pyarrow as pa  # heavy, and an extra
    except ImportError:
        raise InputError(
            "rows: a table needs pyarrow, which is not installed: pip install 'airflow-provider-ollama[parquet]'."
        ) from None
    try:
        stream = pa.RecordBatchReader.from_stream(table)
    except Exception as error:  # of any of these libraries; the text may quote a value
        raise InputError(
            f"rows: the table cannot be read as Arrow ({type(error).__name__}). Does one of its columns mix types, "
            "does it name one twice, or is it a single column and no table?"
        ) from None
    with stream as batches:
        schema = pa.schema([field for field in batches.schema if not _UNNAMED_INDEX.fullmatch(field.name)])
        few = (batch.slice(start, _ROWS) for batch in batches for start in range(0, batch.num_rows, _ROWS))
        yield from _rows((batch.select(schema.names) for batch in few), schema, "the table")


def _rows(batches: Iterable[Any], schema: Any, place: str) -> Iterator[Row]:
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{place} names a column twice: {', '.join(map(repr, schema.names))}.")
    readable = _for_python(schema)
    number = 0
    for batch in batches:
        for columns, fault in _rows_of(batch if readable == schema else batch.cast(readable, safe=False)):
            yield Row(columns, f"{place}, row {number}", fault)
            number += 1


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
