"""Results as a Parquet file, written a group of rows at a time.

What the file needs to know before its first row (the types of ids and kept columns, the length of the vectors) is
looked up in the rows to come. The columns follow from the schema and the input, never from an answer, so they are the
same every night. A row whose answer does not fit its column is refused, and all other rows are as they would be without
it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from pydantic_core import from_json

from ollama_provider.batch.results.json_lines import (
    NOT_FINITE,
    MisfitError,
    ResultRow,
    ResultsFile,
    ResultsFormat,
    vector_numbers,
    vector_rows,
)
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.store.disk import FileWriter
from ollama_provider.batch.store.lines import AFTER_KEY

PARQUET = "results.parquet"

#: Rows that are looked at to learn how long the vectors are. The most frequent length counts.
_SAMPLED_ROWS = 1000
#: Values at a greater depth of the schema stay JSON text.
_MAX_DEPTH = 8

_TEXTS = ("thinking", "done_reason", "model", "digest", "server", "server_version", "options_hash")
_COUNTS = ("prompt_tokens", "tokens", "attempts", "seed", "num_ctx")
_NUMBERS = ("seconds", "queue_seconds", "tokens_per_second")
_FLAGS = ("prompt_cut", "answer_cut")


def parquet_format(schema: Any, *, vectors: bool) -> ResultsFormat:
    """Return the format with a column for each field.

    Args:
        schema: JSON schema of an answer, which gives the output its type; None for text and vectors.
        vectors: the outputs are vectors, which become lists of float32 of one length.
    """
    return ResultsFormat(PARQUET, partial(ParquetFile, schema=schema, vectors=vectors))


class _Sink:
    """A file as pyarrow wants it to write into."""

    closed = False

    def __init__(self, file: FileWriter) -> None:
        self._file: FileWriter | None = file
        self._size = 0

    def write(self, data: Any) -> int:
        if self._file is not None:
            self._file.write(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        """Ignore what pyarrow still writes when it destroys its writer."""
        self._file = None


class ParquetFile(ResultsFile):
    """A Parquet file that is being written.

    Args:
        file: to write into.
        order: all rows to come.
        lines: their lines in the parts.
        schema: see `parquet_format`.
        vectors: see `parquet_format`.
    """

    def __init__(
        self, file: FileWriter, order: RowOrder, lines: Iterator[bytes], *, schema: Any, vectors: bool
    ) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._vectors = vectors
        if vectors:
            width = _vector_length(lines)
            output = pa.list_(pa.float32(), width) if width else pa.list_(pa.float32())
        else:
            output = pa.string() if schema is None else arrow_type(schema, schema)
        self._output = output
        self._fitter = _Fitter(output)
        id_type, self._kept_types = _own_types(order)
        kept = [("row", pa.struct(list(self._kept_types.items())))] if self._kept_types else []
        pieces = [(name, pa.int64()) for name in ("chunk", "start", "end")] if vectors else []
        self._columns = pa.schema(
            [
                ("key", pa.string()),
                ("index", pa.int64()),
                ("id", id_type),
                *kept,
                *pieces,
                ("status", pa.string()),
                ("output", output),
                *([("output_json", pa.string())] if self._fitter.may_leave_out else []),
                ("error_class", pa.string()),
                ("error_text", pa.string()),
                ("reply", pa.string()),
                *([("rungs", pa.list_(pa.string()))] if schema is not None else []),
                *((name, pa.string()) for name in _TEXTS),
                *((name, pa.int64()) for name in _COUNTS),
                *((name, pa.float64()) for name in _NUMBERS),
                *((name, pa.bool_()) for name in _FLAGS),
            ]
        )
        # Neither a dictionary nor compression helps floats, and both take more time than the writing.
        texts = [path for path in _paths(self._columns) if not path.startswith("output")] if vectors else True
        self._sink = _Sink(file)
        try:
            self._writer = parquet.ParquetWriter(
                pa.PythonFile(self._sink, mode="w"),
                self._columns,
                use_dictionary=texts,
                compression={path: _compression(path, vectors=vectors) for path in _paths(self._columns)},
            )
        except BaseException:
            self.abandon()
            raise

    def write(self, rows: Sequence[ResultRow]) -> Mapping[int, str]:
        """Write some rows as one record batch."""
        try:
            batch = self._batch(rows)
        except Exception:
            if misfits := self._misfits(rows, 0):
                return misfits
            raise
        self._writer.write_batch(batch)
        return {}

    def _misfits(self, rows: Sequence[ResultRow], first: int) -> dict[int, str]:
        """Return the rows that cannot be written, with the reason. They are found by trying each half."""
        try:
            self._batch(rows)
        except Exception as error:  # pyarrow raises errors of many classes
            if len(rows) > 1:
                half = len(rows) // 2
                return self._misfits(rows[:half], first) | self._misfits(rows[half:], first + half)
            return {first: str(error) if isinstance(error, MisfitError) else type(error).__name__}
        return {}

    def close(self) -> None:
        """Write the end of the file, which holds its schema and statistics."""
        self._writer.close()

    def abandon(self) -> None:
        """End without writing anything more."""
        self._sink.abandon()

    def _batch(self, lines: Sequence[ResultRow]) -> Any:
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        special: dict[str, list[Any]] = {"index": [], "id": [], "row": []}
        for line, index, fields in lines:
            found = list(vector_rows(line)) if self._vectors else [from_json(line)]
            rows += found
            own = from_json(b"{%b}" % fields)
            special["index"] += [index] * len(found)
            special["id"] += [_fit(own["id"], self._columns.field("id").type)] * len(found)
            special["row"] += [self._kept(own.get("row"))] * len(found)
        special["error_class"] = [(row["error"] or {}).get("class") for row in rows]
        special["error_text"] = [(row["error"] or {}).get("text") for row in rows]
        special["output"], special["output_json"] = self._outputs([row["output"] for row in rows])
        return pa.RecordBatch.from_arrays(
            [
                _column(special[field.name] if field.name in special else [row.get(field.name) for row in rows], field)
                for field in self._columns
            ],
            schema=self._columns,
        )

    def _kept(self, row: dict[str, Any] | None) -> dict[str, Any] | None:
        return row and {name: _fit(row.get(name), kind) for name, kind in self._kept_types.items()}

    def _outputs(self, outputs: list[Any]) -> tuple[Any, list[str | None]]:
        """Return the column ``output``, and for ``output_json`` the answers of which that leaves something out."""
        if self._vectors:
            return self._vector_column(outputs), []
        found, whole = [], []
        for output in outputs:
            try:
                value, left_out = self._fitter(output)
            except MisfitError as error:
                raise error.inside("output") from None
            found.append(value)
            whole.append(json.dumps(output) if left_out else None)
        return found, whole

    def _vector_column(self, outputs: list[Any]) -> Any:
        import pyarrow as pa
        from pyarrow import compute as pc

        if not pa.types.is_fixed_size_list(self._output):
            for output in outputs:
                if output is not None:
                    vector_numbers(output)
            return pa.nulls(len(outputs), self._output)
        width = self._output.list_size
        nothing = bytes(4 * width)
        vectors = []
        for output in outputs:
            numbers = None if output is None else vector_numbers(output)
            if numbers is not None and len(numbers) != width:
                raise MisfitError(f"a vector of {len(numbers)} numbers, where the others have {width}", "output")
            vectors.append(nothing if numbers is None else numbers.tobytes())
        values = pa.Array.from_buffers(pa.float32(), width * len(vectors), [None, pa.py_buffer(b"".join(vectors))])
        if not pc.all(pc.is_finite(values)).as_py():
            raise MisfitError(NOT_FINITE, "output")
        mask = pa.array([output is None for output in outputs]) if None in outputs else None
        return pa.FixedSizeListArray.from_arrays(values, type=self._output, mask=mask)


def _vector_length(lines: Iterator[bytes]) -> int | None:
    """Return the most frequent length of the first vectors; None where there are none."""
    found: Counter[int] = Counter()
    for line in islice(lines, _SAMPLED_ROWS):
        if line.startswith(b',"status":"ok"', AFTER_KEY):
            with suppress(MisfitError):
                found.update(len(vector_numbers(row["output"])) for row in vector_rows(line))
    return found.most_common(1)[0][0] if found else None


def _column(values: Any, field: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(values, field.type)
    except (ValueError, TypeError, OverflowError):
        raise MisfitError(f"a value that is not of type {field.type}", field.name) from None


def _paths(columns: Any) -> list[str]:
    """Return the names of the columns in the form that Parquet has for their leaves."""
    return [path for field in columns for path in _leaves(field.name, field.type)]


def _leaves(path: str, kind: Any) -> list[str]:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return _leaves(f"{path}.list.element", kind.value_type) if _is_list(kind) else [path]


def _compression(path: str, *, vectors: bool) -> str:
    return "none" if vectors and path.startswith("output") else "snappy"


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _own_types(order: RowOrder) -> tuple[Any, dict[str, Any]]:
    """Return the types of the id and of each kept column, which are those of the values in all rows."""
    ids, columns = _Values(), defaultdict[str, _Values](_Values)
    for _, _, fields in order.rows():
        own = from_json(b"{%b}" % fields)
        ids.add(own["id"])
        for name, value in (own.get("row") or {}).items():
            columns[name].add(value)
    return ids.arrow_type(), {name: values.arrow_type() for name, values in columns.items()}


class _Values:
    """What the JSON values of a column have in common."""

    def __init__(self) -> None:
        self._kinds: set[type] = set()
        self._exact = self._whole = True

    def add(self, value: Any) -> None:
        self._kinds.add(type(value))
        if type(value) is int:
            self._whole &= -(1 << 63) <= value < 1 << 63
            self._exact &= abs(value) <= 1 << 53

    def arrow_type(self) -> Any:
        """Return a type that holds all of them; text, with JSON for what is none, where no other does."""
        import pyarrow as pa

        kinds = self._kinds - {type(None)}
        if kinds == {int} and self._whole:
            return pa.int64()
        if kinds == {bool}:
            return pa.bool_()
        return pa.float64() if float in kinds and kinds <= {int, float} and self._exact else pa.string()


def _fit(value: Any, kind: Any) -> Any:
    return json.dumps(value) if kind == "string" and value is not None and not isinstance(value, str) else value


def arrow_type(schema: Any, root: Any, depth: int = 0) -> Any:
    """Return the Arrow type for the values of a JSON schema; that of JSON text where Arrow has none.

    Args:
        schema: of the value.
        root: the whole schema, into which a ``$ref`` points.
        depth: of the value. It is limited, since a schema that refers to itself has no end.
    """
    import pyarrow as pa

    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return pa.string()
    schema = _resolved(schema, root)
    simple = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    match schema:
        case {"type": "object", "properties": dict(properties)} if properties:
            return pa.struct({name: arrow_type(inner, root, depth + 1) for name, inner in properties.items()})
        case {"type": "array", "items": items}:
            return pa.list_(arrow_type(items, root, depth + 1))
        case {"type": str(name)} if name in simple:
            return simple[name]
    return pa.string()


def _resolved(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """Follow ``$ref``, and remove null from an ``anyOf``: every column may be null anyway."""
    for _ in range(10):  # a schema may refer to itself
        if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/$defs/"):
            schema = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
        elif options := [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]:
            if len(options) != 1:
                return {}
            schema = options[0]
        else:
            return schema
    return {}


class _Fitter:
    """Converts the values of a JSON answer to what their Arrow type takes.

    Args:
        kind: Arrow type of the answers.

    Attributes:
        may_leave_out: the type has objects, and an answer may have fields in them that the type does not name.
    """

    def __init__(self, kind: Any) -> None:
        import pyarrow as pa

        self.may_leave_out = False
        self._left_out = False
        self._fit = self._of(kind, pa.types)

    def __call__(self, value: Any) -> tuple[Any, bool]:
        """Return the converted value, and whether it leaves something of the answer out.

        Raises:
            MisfitError: the type cannot hold the value.
        """
        self._left_out = False
        return self._fit(value), self._left_out

    def _of(self, kind: Any, types: Any) -> Callable[[Any], Any]:
        if types.is_struct(kind):
            self.may_leave_out = True
            return partial(self._object, {field.name: self._of(field.type, types) for field in kind})
        if types.is_list(kind):
            return partial(_list, self._of(kind.value_type, types))
        if types.is_integer(kind):
            return _integer
        if types.is_floating(kind):
            return _number
        return _flag if types.is_boolean(kind) else _text

    def _object(self, fields: Mapping[str, Callable[[Any], Any]], value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise MisfitError("not an object")
        if not value.keys() <= fields.keys():
            self._left_out = True
        found = {}
        for name, fit in fields.items():
            try:
                found[name] = fit(value.get(name))
            except MisfitError as error:
                raise error.inside(name) from None
        return found


def _list(fit: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list):
        raise MisfitError("not a list")
    return [fit(each) for each in value]


def _integer(value: Any) -> Any:
    if value is None:
        return None
    # 7.0 is an integer in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise MisfitError("not an integer")
    if not -(1 << 63) <= value < 1 << 63:
        raise MisfitError("an integer over 64 bits")
    return int(value)


def _number(value: Any) -> Any:
    if value is None or type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise MisfitError("not a number")
    try:
        return float(value)
    except OverflowError:
        raise MisfitError("a number over 64 bits") from None


def _flag(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise MisfitError("not a boolean")
    return value


def _text(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else json.dumps(value)
