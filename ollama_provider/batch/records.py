"""What goes in, what comes out, and how it went: values that never change."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from math import isfinite
from os import PathLike
from typing import Any, Literal, Protocol, runtime_checkable

OnLongText = Literal["dead_letter", "truncate", "split"]


OnTruncation = Literal["dead_letter", "fail", "flag"]

TaskName = Literal["generate", "chat", "embed"]


#: ``merge`` asks nothing: it only puts together what the shards of a batch have.
Mode = Literal["all", "failed_only", "merge"]


Status = Literal["ok", "failed"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    Attributes:
        columns: name to value, as the source has them (a Parquet date is a `datetime.date`).
        place: where it stands, for people: ``docs.jsonl, line 7``.
        fault: why it cannot be read; such a row has its text in the column ``raw``.
    """

    columns: dict[str, Any]
    place: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the request for one key: the part of a result that does not depend on where the row stands.

    Attributes:
        key: 32 hex digits; see `ollama_provider.batch.store.journal`.
        status: ``ok`` or ``failed``.
        output: the answer; None for a failed row.
        error: ``{"class": …, "text": …}`` of a failed row.
        reply: the raw answer: of a failed row, where one came, and of every row with a schema.
        thinking: the model's reasoning, where it was asked for.
        prompt_tokens: tokens of the prompt; None if the server did not say.
        tokens: tokens generated, thinking included; None if the server did not say.
        seconds: from sending the request to its last token, of the attempt that counts.
        tokens_per_second: while generating, by the server's clock.
        attempts: how often it was asked; outages do not count.
        done_reason: why the model stopped: ``stop`` or ``length``.
        prompt_cut: the server dropped a part of the prompt.
        answer_cut: the answer ended at ``num_predict`` or at the end of the context.
        rungs: what was tried until the answer fitted the schema, or for nothing; see
            `ollama_provider.batch.requests.validation`.
        request: 32 hex digits for the request without its schema; where there is a schema, `reply` is kept in any case.
        spans: begin and end, in characters, of the pieces of a text that was longer than the context; `output` has a
            vector for each then.
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
    """What all rows of a run have in common: what it takes to explain a number a year later.

    Attributes:
        model: name as it was asked for.
        digest: 64 hex digits of the model's manifest; None if the server lists none.
        server: base URL, without credentials.
        server_version: as the server says it.
        options_hash: eight bytes of BLAKE2b over the options as they were sent, in hex.
        seed: ``options.seed``.
        num_ctx: the context that was asked for, in tokens, and given or chosen.
    """

    model: str
    digest: str | None
    server: str
    server_version: str
    options_hash: str
    seed: int | None
    num_ctx: int | None


@dataclass(frozen=True)
class Summary:
    """How a run went. It counts rows, not requests, and ``ok + failed + left`` are the `rows`.

    Attributes:
        complete: every row of the input has an outcome, and ``results.jsonl`` holds them all.
        reason: why the run ended: ``complete``, or what stopped it.
        directory: where the results are.
        rows: rows of the input; where the run ended early and nobody had counted them, those with an outcome.
        ok: rows with a good result, reused ones included.
        failed: rows that failed; those in ``failed.jsonl``, once all rows have an outcome.
        reused: of the good ones, those not asked in this run: the result was there, or is that of another row.
        written: rows written into a table in this run.
        skipped: of those that are left, the ones that ``mode="failed_only"`` or a merge left alone.
        revalidated: of the reused rows, those whose kept raw reply fits the schema, which is new.
        ladder: for each repair (see `batch.requests.validation`) of this run, the rows that it was ``tried`` for and
            those that it made ``good``.
        left: rows without an outcome; None where the input was not counted.
        seconds_left: for these, at the pace of this run; None where that is unknown.
        requests: requests that were sent for rows, repeated attempts included.
        prompt_tokens, tokens: of the rows answered in this run.
        seconds: from the start of the run to its end.
        tokens_per_second: tokens generated in a second of the run.
        concurrency: requests in flight at the end.
        errors: failed rows by class of error, of this run.
        provenance: model, digest, server, options.
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

    def as_json(self) -> bytes:
        """Return it as the content of ``summary.json``."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, fit for XCom."""
        return asdict(self)


@runtime_checkable
class Query(Protocol):
    """Rows that have to be asked for."""

    @property
    def question(self) -> Mapping[str, Any]:
        """What is asked, as plain data."""

    @property
    def occasion(self) -> str:
        """For what it is asked: the same question is asked again only for another occasion."""

    def fetch(self) -> Iterator[list[dict[str, Any]]]:
        """Ask, and return the rows, a bounded number at a time.

        Raises:
            DatabaseError: the question is wrong.
            DatabaseGoneError: there is no answer, or no further one.
        """


Rows = str | PathLike[str] | Iterable[str | PathLike[str] | Mapping[str, Any]] | Query
"""A file or a glob of files, several of these, the rows themselves, or a query that gives them."""

#: Of the files that rows can be read from.
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")


def paths_of(rows: Any) -> list[Any] | None:
    """Return the paths and globs that *rows* are; None if they are rows themselves, or an iterator."""
    if isinstance(rows, str) or is_path(rows):
        return [rows]
    if isinstance(rows, list | tuple) and rows and all(map(names_file, rows)):
        return list(rows)
    return None


def is_path(value: Any) -> bool:
    """Return whether a value is a path object, of this machine or of an object store."""
    return isinstance(value, PathLike) or hasattr(value, "iterdir")


def names_file(value: Any) -> bool:
    """Return whether a value is a path object, or a text that ends in a known suffix."""
    return value.lower().endswith(SUFFIXES) if isinstance(value, str) else is_path(value)


def plain(value: Any) -> Any:  # noqa: PLR0911  # a table
    """Return a value as plain data, the same in every process and for every setting of a session.

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


class Table(Protocol):
    """Where good results go besides the directory."""

    @property
    def row_columns(self) -> Sequence[str]:
        """Columns of the input that it takes."""

    @property
    def target(self) -> Mapping[str, Any]:
        """Which table, and what of a result goes into which column, as plain data."""

    def open(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> None:
        """Make sure, before the first request, that results can be written.

        Args:
            examples: the first rows of the input.
            id_column: see `BatchSpec`.

        Raises:
            DatabaseError: they cannot.
            DatabaseGoneError: nobody knows, since the database does not answer.
        """

    def of_row(self, own: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return what does not come from the model: the values of the table's key, and all such values.

        Args:
            own: ``index``, ``id``, ``key`` and ``row`` of a result.
        """

    def write(self, results: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        """Insert or update a row for each result, and make that last.

        Args:
            results: lines of ``results.jsonl``, and ``row`` with the columns of the input.

        Returns:
            The refused ones, by their place in *results*, with the reason; all others are written.

        Raises:
            DatabaseError: nothing more can be written.
            DatabaseGoneError: some of them may be written; the same call may succeed later.
        """

    def close(self) -> None:
        """Close the connection; twice does no harm."""
