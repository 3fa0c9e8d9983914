"""What goes in, what comes out, and how it went: values that never change."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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
        key: 32 hex digits; see `ollama_provider.batch.journal`.
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
        rungs: what was tried until the answer fitted the schema, or for nothing; see `ollama_provider.batch.forms`.
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
        ladder: for each rung (see `ollama_provider.batch.forms`) of this run, the rows that it was ``tried`` for and
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
