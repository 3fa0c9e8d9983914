"""The end of a batch: ``results.jsonl`` or ``results.parquet``, and ``failed.jsonl``, in the order of the input.

The parts hold outcomes in the order in which they came. The order of the input is one number a row, so the results are
a streaming merge: look up the outcome, copy its line, and put index, id and kept columns into it. Neither rows nor
outcomes are ever in memory together.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import REFUSED
from ollama_provider.batch.results.json_lines import JsonLines, ResultRow, ResultsFile, ResultsFormat, VectorLines
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.parquet import PARQUET, parquet_format
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.store.journal import Journal, PartReader, State
from ollama_provider.batch.store.lines import AFTER_KEY
from ollama_provider.batch.store.storage import Storage

RESULTS, FAILED = "results.jsonl", "failed.jsonl"


#: Rows, or bytes of their lines, that are written at a time; a group of rows in Parquet.
_ROWS, _BYTES = 1000, 8 << 20


def results_format(spec: BatchSpec) -> ResultsFormat:
    """Return how the results of a batch are written.

    Raises:
        InputError: Parquet is wanted, and pyarrow is not installed.
    """
    vectors = spec.task == "embed"
    if spec.format == "jsonl":
        return json_lines_format(vectors=vectors)
    try:
        import pyarrow.parquet  # noqa: F401  # heavy, and an extra
    except ImportError:
        raise InputError(
            "Parquet results need pyarrow, which is not installed: pip install 'airflow-provider-ollama[parquet]', or "
            'choose results="jsonl".'
        ) from None
    return parquet_format(None if vectors else spec.schema(), vectors=vectors)


def json_lines_format(*, vectors: bool) -> ResultsFormat:
    """Return the format with a line for each row, or for each piece of a long text."""
    kind = VectorLines if vectors else JsonLines
    return ResultsFormat(RESULTS, lambda file, order, lines: kind(file))  # noqa: ARG005  # a line needs no other


def _as_failed(line: bytes, error: dict[str, str]) -> bytes:
    """Return the line of a good outcome as that of a failed one, with the answer as its raw reply.

    Of an outcome that has failed already only error and reply are kept, since the rest is what could not be written.
    """
    given = json.loads(line)
    found = {"key": given["key"], "status": "failed", "output": None, "error": error, "reply": given.get("reply")}
    if given["status"] == "ok":
        output = given["output"]
        found = given | found | {"reply": output if isinstance(output, str) else json.dumps(output)}
        found.pop("spans", None)
    return json.dumps(found, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Written:
    """How many rows of the results failed.

    Attributes:
        failed: rows that failed, including those that the results cannot hold.
        refused: good outcomes that the results cannot hold. The next run asks them again.
        refused_fresh: how many of these were asked in this run.
    """

    failed: int
    refused: int = 0
    refused_fresh: int = 0


def write_results(
    storage: Storage,
    journal: Journal,
    order: RowOrder,
    results: ResultsFormat,
    check: Callable[[], None] = lambda: None,
    *,
    refused: Mapping[int, dict[str, str]] = MappingProxyType({}),
) -> Written:
    """Write the results and ``failed.jsonl``, with one line or record for each row, in the order of the input.

    Args:
        storage: the directory.
        journal: every outcome in it must be in a part.
        order: the rows.
        results: format of the file with all rows. An older file in another format is removed.
        check: called between groups of rows; may raise to end the writing.
        refused: rows, by index, that the table of the batch has refused, with the error.

    Raises:
        StorageError: one of the files could not be written, or a part was damaged during the run. The older files are
            still there then.
    """
    parts = PartReader(storage, journal)
    failures = 0
    unfit: dict[int, bytes] = {}
    try:
        with storage.create(results.name) as results_file, storage.create(FAILED) as failed_file:
            failed = JsonLines(failed_file)
            lines = (parts.line(*journal.place(number)) for _, number, _ in order.rows())
            writer = results.open(results_file, order, lines)
            try:
                for numbers, rows in _groups(parts, journal, order, refused):
                    unfit |= _write_group(writer, numbers, rows, results.name)
                    failing = [row for row in rows if not row[0].startswith(b',"status":"ok"', AFTER_KEY)]
                    failed.write(failing)
                    failures += len(failing)
                    check()
                writer.close()
            except BaseException:
                writer.abandon()
                raise
        for name in {RESULTS, PARQUET} - {results.name}:
            storage.delete(name)
    finally:
        parts.close()
    # Only now, because the results are made of what the journal says.
    good = {number: line for number, line in unfit.items() if journal.state(number) is State.OK}
    fresh = sum(map(journal.is_from_this_run, good))
    for number, line in good.items():
        journal.mark_refused(number, line)
    if journal.end_part():
        journal.seal_parts()
    return Written(failures, len(good), fresh)


def _write_group(results: ResultsFile, numbers: list[int], rows: list[ResultRow], name: str) -> dict[int, bytes]:
    """Write some rows; those that the file cannot hold become failed ones in *rows*.

    Returns:
        The lines of these, by the number of their key.
    """
    unfit: dict[int, bytes] = {}
    while misfits := results.write(rows):
        for place, why in misfits.items():
            line, index, fields = rows[place]
            line = _as_failed(line, {"class": REFUSED, "text": f"{name}: {why}"})
            rows[place] = line, index, fields
            unfit[numbers[place]] = line
    return unfit


def _groups(
    parts: PartReader, journal: Journal, order: RowOrder, refused: Mapping[int, dict[str, str]]
) -> Iterator[tuple[list[int], list[ResultRow]]]:
    """Return all rows that have an outcome, in groups, with the numbers of their keys."""
    numbers: list[int] = []
    rows: list[ResultRow] = []
    size = 0
    for index, number, fields in order.rows():
        line = parts.line(*journal.place(number))
        if index in refused:
            line = _as_failed(line, refused[index])
        numbers.append(number)
        rows.append((line, index, fields))
        size += len(line) + len(fields)
        if len(rows) >= _ROWS or size >= _BYTES:
            yield numbers, rows
            numbers, rows, size = [], [], 0
    if rows:
        yield numbers, rows
