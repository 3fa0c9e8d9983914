"""The values and interfaces that all rooms of the batch share: rows, outcomes, the summary, queries and tables.

The values never change. From top to bottom: the input, the outcome of a row, the summary of a run, the tables that
results are written into, and values as plain data.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from math import isfinite
from os import PathLike
from typing import Any, Literal, Protocol, runtime_checkable

TaskName = Literal["generate", "chat", "embed"]

#: ``merge`` sends no requests: it puts the outcomes of all shards of a batch together. ``rehearse`` sends some rows.
Mode = Literal["all", "failed_only", "merge", "rehearse"]

OnTruncation = Literal["dead_letter", "fail", "flag"]

OnLongText = Literal["dead_letter", "truncate", "split"]

Status = Literal["ok", "failed"]

#: Class of the error of a row whose answer the results, or a table, cannot hold.
REFUSED = "RefusedByTable"
#: The reason of a run that came to its own end, in its summary.
COMPLETE = "complete"


# The input.

#: Columns that readers make: of a row that is only a text, and of one that cannot be read.
TEXT, RAW = "text", "raw"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    Attributes:
        columns: name to value, as the source has them (a Parquet date is a `datetime.date`).
        place: where it is in the input, for error texts: ``docs.jsonl, line 7``.
        fault: why it cannot be read; None if it can. A row with a fault has its text in the column ``raw``.
    """

    columns: dict[str, Any]
    place: str
    fault: str | None = None


@runtime_checkable
class Query(Protocol):
    """Rows that are fetched from somewhere else, such as a database."""

    @property
    def question(self) -> Mapping[str, Any]:
        """What is fetched, as plain data."""

    @property
    def occasion(self) -> str:
        """What it is fetched for, such as a DAG run: the same question is fetched again only for another occasion."""

    def fetch(self) -> Iterator[list[dict[str, Any]]]:
        """Return the rows, a bounded number at a time.

        Raises:
            DatabaseError: the query is wrong.
            DatabaseGoneError: the database does not answer, or the connection broke off.
        """


Rows = str | PathLike[str] | Iterable[str | PathLike[str] | Mapping[str, Any]] | Query
"""A file or a glob of files, several of these, the rows themselves, or a query that gives them."""

#: Suffixes of the files that rows can be read from, of documents (each is a row), and of compressed files with rows.
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
DOCUMENTS = (".txt", ".md", ".html", ".htm", ".pdf", ".docx")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_SUFFIXES = FORMATS + tuple(suffix + compression for suffix in FORMATS for compression in COMPRESSIONS)


def paths_of(rows: Any) -> list[Any] | None:
    """Return the paths and globs that *rows* are; None if they are rows themselves, or an iterator."""
    if isinstance(rows, str) or is_path(rows):
        return [rows]
    if isinstance(rows, list | tuple) and rows and all(map(names_file, rows)):
        return list(rows)
    return None


def is_path(value: Any) -> bool:
    """Return whether a value is a path object, local or of an object store."""
    return isinstance(value, PathLike) or hasattr(value, "iterdir")


def names_file(value: Any) -> bool:
    """Return whether a value is a path object, or a text that ends in a known suffix."""
    return value.lower().endswith(_SUFFIXES) if isinstance(value, str) else is_path(value)


# The outcome of a row.


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of the request for one key: the part of a result that is the same for all rows with this key.

    Attributes:
        key: 32 hex digits; see `ollama_provider.batch.store.keys`.
        status: ``ok`` or ``failed``.
        output: the answer; None for a failed row.
        error: ``{"class": …, "text": …}`` of a failed row.
        reply: the raw answer, of every row with a schema and of a failed row that was answered.
        thinking: the model's reasoning, where it was requested.
        prompt_tokens: tokens of the prompt; None if the server did not report it.
        tokens: tokens generated, thinking included; None if the server did not report it.
        seconds: from sending the request to its last token, in the last attempt.
        queue_seconds: of these, those that the request waited for a free slot of the server, by its clock; None where
            it was not reported: for vectors, and by versions before this field.
        tokens_per_second: while generating, by the server's clock.
        attempts: how often the request was sent; server outages do not count.
        done_reason: why the model stopped: ``stop`` or ``length``.
        prompt_cut: whether the server dropped a part of the prompt.
        answer_cut: whether the answer ended at ``num_predict`` or at the end of the context.
        rungs: what was tried until the answer fitted the schema, or for nothing; see
            `ollama_provider.batch.requests.validation`.
        request: the request key, 32 hex digits: of the request without its schema, where there is one.
        spans: start and end, in characters, of the pieces of a text that was longer than the context; `output` has a
            vector for each piece then.
    """

    key: str
    status: Status
    output: Any = None
    error: dict[str, str] | None = None
    reply: str | None = None
    thinking: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    queue_seconds: float | None = None
    tokens_per_second: float | None = None
    attempts: int = 0
    done_reason: str | None = None
    prompt_cut: bool = False
    answer_cut: bool = False
    rungs: tuple[str, ...] = ()
    request: str | None = None
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Provenance:
    """What all rows of a run have in common, so that a result can be explained a year later.

    Attributes:
        model: name as it was requested.
        digest: 64 hex digits of the model's manifest; None if the server lists none.
        server: base URL, without credentials.
        server_version: as the server reports it.
        options_hash: eight bytes of BLAKE2b over the options as they were sent, in hex.
        seed: ``options.seed``.
        num_ctx: the requested context size in tokens, which the user gave or the batch chose.
    """

    model: str
    digest: str | None
    server: str
    server_version: str
    options_hash: str
    seed: int | None
    num_ctx: int | None


# The summary of a run.


@dataclass(frozen=True)
class ServerShare:
    """What one of the servers of a run did.

    Attributes:
        server: base URL, without credentials.
        rows: that got their outcome from it in this run.
        tokens: generated for them.
        tokens_per_second: of these, in a second of the run.
        concurrency: requests that may be in flight; 0 while it gets no rows.
        seconds_out: for which it was out of service.
        discarded: requests whose row was answered by another server first.
        reason: why it is left out, or out of service now; empty if it is not.
    """

    server: str
    rows: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    concurrency: int = 0
    seconds_out: float = 0.0
    discarded: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Summary:
    """What a run did. It counts rows, not requests, and ``ok + failed + left`` are the `rows`.

    Attributes:
        complete: whether every row of the input has an outcome, and ``results.jsonl`` has them all.
        reason: why the run ended: ``complete``, or what stopped it.
        directory: where the results are.
        rows: rows of the input; where the run ended early and the input was not counted, those with an outcome.
        ok: rows with a good result, reused ones included.
        failed: rows that failed; those in ``failed.jsonl``, once all rows have an outcome.
        reused: the good rows without a request in this run: their result was stored already, or is that of an equal
            row.
        written: rows written into a table in this run.
        skipped: of the rows that are left, those that ``mode="failed_only"`` or a merge does not send.
        revalidated: of the reused rows, those whose stored raw reply fits a schema that has changed.
        ladder: for each repair (see `batch.requests.validation`) of this run, the rows that it was ``tried`` for and
            those that it made ``good``.
        left: rows without an outcome; None where the input was not counted.
        seconds_left: for the rows that are left, at the pace of this run; None where that is unknown.
        requests: requests that were sent for rows, retries included.
        prompt_tokens, tokens: of the rows answered in this run.
        seconds: from the start of the run to its end.
        tokens_per_second: tokens generated in a second of the run.
        concurrency: requests in flight at the end.
        errors: failed rows of this run, by class of error.
        provenance: model, digest, options, and the server: the first one in the list that took part.
        servers: the share of each server, in the order of the connection; empty for a merge, which asks none.
    """

    complete: bool
    reason: str
    directory: str
    rows: int = 0
    ok: int = 0
    failed: int = 0
    reused: int = 0
    written: int = 0
    skipped: int = 0
    revalidated: int = 0
    ladder: dict[str, dict[str, int]] = field(default_factory=dict)
    left: int | None = None
    seconds_left: float | None = None
    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    concurrency: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    provenance: Provenance | None = None
    servers: tuple[ServerShare, ...] = ()

    def as_json(self) -> bytes:
        """Return the content of ``summary.json``."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, fit for XCom, which knows no tuples."""
        return asdict(self) | {"servers": [asdict(share) for share in self.servers]}


# The tables that results are written into.


@dataclass(frozen=True, slots=True)
class Vectors:
    """What is known of the vectors of a batch before its first row is asked.

    Attributes:
        length: numbers in each; None if no row has one and none may be asked for, as in a merge.
        in_pieces: a long text may have several: ``on_long_text="split"``.
    """

    length: int | None
    in_pieces: bool


class Table(Protocol):
    """A table that good results are written into, besides the directory."""

    @property
    def row_columns(self) -> Sequence[str]:
        """Columns of the input that the table needs."""

    @property
    def target(self) -> Mapping[str, Any]:
        """The name of the table, and which field of a result goes into which column, as plain data."""

    def open(
        self, examples: Sequence[Mapping[str, Any]], id_column: str | None, vectors: "Vectors | None" = None
    ) -> None:
        """Check, before the first row is asked, that results can be written.

        Args:
            examples: the first rows of the input.
            id_column: see `BatchSpec`.
            vectors: what is known of them, where the results are vectors.

        Raises:
            DatabaseError: results cannot be written.
            DatabaseGoneError: the database does not answer.
        """

    def of_row(self, own: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the values that do not come from the model: those of the table's key, and all of them.

        Args:
            own: ``index``, ``id``, ``key`` and ``row`` of a result.
        """

    def write(self, results: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        """Insert or update a row for each result, and commit.

        Args:
            results: lines of ``results.jsonl``, and ``row`` with the columns of the input. A vector is an array of
                floats. A text that was split has, instead of one, ``pieces``: ``output``, ``chunk``, ``start`` and
                ``end`` of each.

        Returns:
            The results that the table refused, by their place in *results*, with the reason. All others are written.

        Raises:
            DatabaseError: no results can be written any more.
            DatabaseGoneError: some of them may be written. The same call may succeed later.
        """

    def close(self) -> None:
        """Close the connection. A second call does nothing."""


# Values as plain data.


def plain(value: Any) -> Any:  # noqa: PLR0911  # a table
    """Return a value as plain data, which is the same in every process and for all session settings of a database.

    Dates and times become ISO 8601 (those with a time zone in UTC), decimals, UUIDs, intervals and whatever else there
    is become their text, bytes become hex digits; NaN and infinite numbers, decimal ones included, become null.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else None
        case Decimal():
            return str(value) if value.is_finite() else None
        case datetime() if value.tzinfo is not None:
            return value.astimezone(UTC).isoformat()
        case date() | time():
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case Mapping():
            return {str(name): plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case set() | frozenset():
            return sorted((plain(inner) for inner in value), key=str)
        case _:
            return str(value)


def canonical_json(columns: Mapping[str, Any]) -> str:
    """Return the content of a row as one text, which is the same for the same content in every process."""
    return json.dumps(columns, sort_keys=True, default=repr)
