"""Results in other shapes than the lines of the parts: Parquet, and vectors as lists of numbers.

A table is written as it is read, a group of rows at a time; what it needs to know before its first row (the type of the
ids, the length of the vectors) is looked up in the rows to come.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from ollama_provider.batch.embedding import decode_vector
from ollama_provider.batch.errors import InputError, StorageError
from ollama_provider.batch.journal import AFTER_KEY
from ollama_provider.batch.sinks import JsonLines, Order, Results
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.storage import Writing

#: A group of rows, which memory holds, ends after so many rows or bytes of lines.
_ROWS, _BYTES = 1000, 8 << 20

#: Deeper values stay JSON text.
_DEEPEST = 8

_TEXTS = ("thinking", "done_reason", "model", "digest", "server", "server_version", "options_hash")
_COUNTS = ("prompt_tokens", "tokens", "attempts", "seed", "num_ctx")
_NUMBERS = ("seconds", "tokens_per_second")
_FLAGS = ("prompt_cut", "answer_cut")


def results_of(spec: BatchSpec) -> Results:
    """Return how the results of a batch are written.

    Raises:
        InputError: Parquet, and pyarrow is not installed.
    """
    if spec.format == "jsonl":
        return VectorLines() if spec.task == "embed" else JsonLines()
    try:
        import pyarrow.parquet  # noqa: F401  # heavy, and an extra
    except ImportError:
        raise InputError(
            "Parquet results need pyarrow, which is not installed: pip install 'airflow-provider-ollama[parquet]', or "
            'choose results="jsonl".'
        ) from None
    return ParquetTable(None if spec.task == "embed" else spec.schema(), vectors=spec.task == "embed")


def rows_of(line: bytes) -> Iterator[dict[str, Any]]:
    """Return the rows of the results that a vector's line of a part means: one, or one for each piece of its text."""
    row = from_json(line)
    spans, vectors = row.pop("spans", None), row["output"]
    if spans is None:
        yield row
        return
    for chunk, ((start, end), vector) in enumerate(zip(spans, vectors, strict=True)):
        yield row | {"output": vector, "chunk": chunk, "start": start, "end": end}


class VectorLines(JsonLines):
    """JSON lines with the numbers of the vectors, to the nine digits that tell one float32 from another."""

    def add(self, line: bytes, index: int, row_id: bytes) -> None:
        """See `Results`."""
        for row in rows_of(line):
            vector = row["output"]
            numbers = "null" if vector is None else f"[{','.join(map('{:.9g}'.format, decode_vector(vector)))}]"
            rest = {name: value for name, value in row.items() if name not in {"key", "output"}}
            head = f'{{"key":"{row["key"]}","index":{index},"id":'.encode()
            self._add(head, row_id, f',"output":{numbers},'.encode(), json.dumps(rest)[1:].encode(), b"\n")


class _File:
    """What pyarrow needs of a file to write into."""

    closed = False

    def __init__(self, file: Writing) -> None:
        self._file = file
        self._size = 0

    def write(self, data: Any) -> int:
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


class ParquetTable:
    """``results.parquet``: a column for each field, the output typed by the schema of the answers.

    Args:
        schema: JSON schema of an answer; None for text and vectors.
        vectors: the outputs are vectors, which become lists of float32 of one length.
    """

    name = "results.parquet"

    def __init__(self, schema: Any, *, vectors: bool) -> None:
        self._schema = schema
        self._vectors = vectors
        self._group: list[tuple[dict[str, Any], int, Any]] = []
        self._size = 0

    def open(self, file: Writing, order: Order, lines: Iterator[bytes]) -> None:
        """See `Results`."""
        import pyarrow as pa
        from pyarrow import parquet

        self._group, self._size = [], 0
        width = self._width(lines) if self._vectors else None
        if self._vectors:
            output = pa.list_(pa.float32(), width) if width else pa.list_(pa.float32())
        else:
            output = pa.string() if self._schema is None else arrow_type(self._schema, self._schema)
        self._output = output
        pieces = [(name, pa.int64()) for name in ("chunk", "start", "end")] if self._vectors else []
        self._columns = pa.schema(
            [
                ("key", pa.string()),
                ("index", pa.int64()),
                ("id", _id_type(order)),
                *pieces,
                ("status", pa.string()),
                ("output", output),
                ("error_class", pa.string()),
                ("error_text", pa.string()),
                ("reply", pa.string()),
                *([("rungs", pa.list_(pa.string()))] if self._schema is not None else []),
                *((name, pa.string()) for name in _TEXTS),
                *((name, pa.int64()) for name in _COUNTS),
                *((name, pa.float64()) for name in _NUMBERS),
                *((name, pa.bool_()) for name in _FLAGS),
            ]
        )
        # Neither a dictionary nor compression helps floats, and both take more time than the writing.
        texts = [name for name in self._columns.names if name != "output"] if self._vectors else True
        self._writer = parquet.ParquetWriter(
            pa.PythonFile(_File(file), mode="w"),
            self._columns,
            use_dictionary=texts,
            compression={path: _compression(path, vectors=self._vectors) for path in _paths(self._columns)},
        )

    def _width(self, lines: Iterator[bytes]) -> int | None:
        for line in lines:
            if line.startswith(b',"status":"ok"', AFTER_KEY):
                output = from_json(line)["output"]
                return len(decode_vector(output if isinstance(output, str) else output[0]))
        return None

    def add(self, line: bytes, index: int, row_id: bytes) -> None:
        """See `Results`."""
        for row in rows_of(line) if self._vectors else [from_json(line)]:
            self._group.append((row, index, from_json(row_id)))
        self._size += len(line)
        if len(self._group) >= _ROWS or self._size >= _BYTES:
            self._write()

    def close(self) -> None:
        """See `Results`."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa

        if not self._group:
            return
        rows = [row for row, _, _ in self._group]
        special = {
            "index": [index for _, index, _ in self._group],
            "id": [self._as_id(row_id) for _, _, row_id in self._group],
            "error_class": [(row["error"] or {}).get("class") for row in rows],
            "error_text": [(row["error"] or {}).get("text") for row in rows],
        }
        arrays = []
        for field in self._columns:
            if field.name == "output":
                arrays.append(self._outputs([row["output"] for row in rows]))
            else:
                values = special.get(field.name) or [row.get(field.name) for row in rows]
                arrays.append(pa.array(values, field.type))
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._columns))
        self._group, self._size = [], 0

    def _as_id(self, value: Any) -> Any:
        if value is None or self._columns.field("id").type != "string":
            return value
        return value if isinstance(value, str) else json.dumps(value)

    def _outputs(self, outputs: list[Any]) -> Any:
        import pyarrow as pa

        if not self._vectors:
            return pa.array([_fitted(output, self._output) for output in outputs], self._output)
        if not pa.types.is_fixed_size_list(self._output):
            return pa.nulls(len(outputs), self._output)
        width = self._output.list_size
        nothing = bytes(4 * width)
        vectors = [nothing if output is None else decode_vector(output).tobytes() for output in outputs]
        if any(len(vector) != 4 * width for vector in vectors):
            raise StorageError("The vectors are not equally long, so they make no table. Was the model changed?")
        values = pa.Array.from_buffers(pa.float32(), width * len(vectors), [None, pa.py_buffer(b"".join(vectors))])
        mask = pa.array([output is None for output in outputs]) if None in outputs else None
        return pa.FixedSizeListArray.from_arrays(values, type=self._output, mask=mask)


def _paths(columns: Any) -> list[str]:
    """Return the columns as Parquet names their leaves."""
    return [f"{field.name}.list.element" if _is_list(field.type) else field.name for field in columns]


def _compression(path: str, *, vectors: bool) -> str:
    return "none" if vectors and path.startswith("output") else "snappy"


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _id_type(order: Order) -> Any:
    import pyarrow as pa

    kinds = {type(from_json(row_id)) for _, _, row_id in order.rows()} - {type(None)}
    return pa.int64() if kinds == {int} else pa.float64() if kinds and kinds <= {int, float} else pa.string()


def arrow_type(schema: Any, root: Any, depth: int = 0) -> Any:
    """Return the Arrow type of what fits a JSON schema; a text with its JSON where none says it.

    Args:
        schema: of the value.
        root: the whole schema, which ``$ref`` leads into.
        depth: how deep the value stands; a schema that refers to itself has no end.
    """
    import pyarrow as pa

    if not isinstance(schema, dict) or depth > _DEEPEST:
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
    """Follow ``$ref``, and take null out of an ``anyOf``: every column may be null anyway."""
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


def _fitted(value: Any, kind: Any) -> Any:
    """Return a value as its type takes it: JSON text where the type is text and the value is none."""
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_fitted(each, kind.value_type) for each in value]
    if kind == pa.string() and not isinstance(value, str):
        return json.dumps(value)
    return value
