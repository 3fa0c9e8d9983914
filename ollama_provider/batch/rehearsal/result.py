"""What a rehearsal found, as one value of plain data. No network, no clock."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

#: Characters of an answer, or of an error, that are kept.
_TEXT = 1000


@dataclass(frozen=True)
class RehearsedRow:
    """A row of the sample, and what became of it.

    Attributes:
        why: it is in the sample: ``first``, ``last``, ``shortest``, ``longest`` or ``random``.
        place: where it is in the input: ``docs.jsonl, line 7``.
        id: value of the id column; None if there is none.
        fresh: it was asked now; otherwise its outcome was there.
        length: bytes of its prompt; None if it has none.
        status: ``ok`` or ``failed``; None if it was not asked, since the rehearsal ended before.
        output: the beginning of the answer; of vectors, None.
        error_class, error: of a failed row.
        prompt_tokens, tokens, seconds, queue_seconds, attempts, answer_cut, prompt_cut: see
            `ollama_provider.batch.records.Outcome`.
        repairs: that were tried since its answer did not fit the schema.
    """

    why: str
    place: str
    id: Any
    fresh: bool = False
    length: int | None = None
    status: str | None = None
    output: str | None = None
    error_class: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    queue_seconds: float | None = None
    attempts: int = 0
    answer_cut: bool = False
    prompt_cut: bool = False
    repairs: int = 0

    @property
    def represents_others(self) -> bool:
        """It was not chosen for being odd."""
        return self.why not in {"shortest", "longest"}

    @property
    def misfits(self) -> bool:
        """Its first answer was not what the schema asks for."""
        return bool(self.repairs) or self.error_class == "InvalidOutputError"


@dataclass(frozen=True)
class Spread:
    """Tokens of the rows that were answered."""

    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class Night:
    """How long the whole input takes at the pace of the rehearsal.

    Attributes:
        seconds: expected.
        low, high: the range in which it is expected to be nine times of ten.
        ends, earliest, latest: when that is, if it begins at 22:00; a day later begins with ``+1 d``.
        requests_at_a_time: that the servers worked on.
        waited: requests had to wait for a slot, so more at a time would not be faster. Otherwise the night may be
            faster, since it tries more at a time than a rehearsal has rows for.
        rows_per_second, tokens_per_second: expected; tokens are those of answers.
        window: seconds from 22:00 until the batch is stopped, where it has such a time; None otherwise.
        fits: even the longest time of the range fits into the window; None without one.
    """

    seconds: float
    low: float
    high: float
    ends: str
    earliest: str
    latest: str
    requests_at_a_time: float
    waited: bool
    rows_per_second: float
    tokens_per_second: float
    window: float | None
    fits: bool | None


@dataclass(frozen=True)
class ContextUse:
    """Whether prompts and answers fit into the context.

    Attributes:
        num_ctx: size of the context that was asked with, in tokens; the night asks with the same.
        needed: tokens of the longest prompt that was looked at (estimated from its length, where it was not asked), and
            of the longest answer or of ``num_predict``.
        too_long: share of prompts, from 0 to 1, that do not fit, of those that were looked at.
        answers_cut: share of the answers that ended at ``num_predict`` or at the end of the context.
    """

    num_ctx: int
    needed: int
    too_long: float
    answers_cut: float


@dataclass(frozen=True)
class Memory:
    """Where the model was while it answered, in bytes; `fits`: as a whole in the memory of GPUs."""

    size: int
    in_vram: int
    fits: bool


@dataclass(frozen=True)
class Failure:
    """Rows that failed for the same reason; *text* is the error of the first."""

    error: str
    count: int
    text: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class RehearsalResult:
    """What a rehearsal found.

    Attributes:
        model, digest, server, server_version: see `Provenance`.
        directory: where the answers are kept, which the night will use.
        prompt: of the first row that has one, in full; None where none has.
        rows: the sample.
        total: rows of the whole input.
        counted: they were counted; otherwise `total` is an estimate.
        looked_at: rows that the sample was chosen from, and the lengths of prompts measured.
        prompt_tokens, tokens: of prompts and answers; None where no row was answered.
        night: None where too little was measured.
        context: None where the server did not report tokens, or chose the context.
        memory: None where no server says.
        failures: the most frequent first.
        failing: share of rows expected to fail, from 0 to 1: of the rows of the sample that were not chosen for being
            the shortest or the longest, those that failed; or of the prompts that were looked at, those that are too
            long, if these are more.
        stopped: why the rehearsal ended before all rows were asked; empty if it did not.
    """

    model: str
    digest: str | None
    server: str
    server_version: str
    directory: str
    prompt: str | None
    rows: tuple[RehearsedRow, ...]
    total: int
    counted: bool
    looked_at: int
    prompt_tokens: Spread | None
    tokens: Spread | None
    night: Night | None
    context: ContextUse | None
    memory: Memory | None
    failures: tuple[Failure, ...]
    failing: float
    stopped: str = ""

    @property
    def failed(self) -> int:
        """Rows of the sample that failed."""
        return sum(row.status == "failed" for row in self.rows)

    @property
    def misfits(self) -> int:
        """Rows of the sample whose first answer was not what the schema asks for."""
        return sum(row.misfits for row in self.rows)

    @property
    def repaired(self) -> int:
        """Of the `misfits`, those that are good in the end."""
        return sum(row.misfits and row.status == "ok" for row in self.rows)

    @property
    def row_seconds(self) -> float | None:
        """Seconds of a row on average, without the wait for a slot; None where no row was answered."""
        seconds = [max(0.0, row.seconds - (row.queue_seconds or 0.0)) for row in self.rows if row.seconds]
        return fmean(seconds) if seconds else None

    def as_dict(self, *, prompt: bool, answers: bool) -> dict[str, Any]:
        """Return plain data, fit for JSON and XCom, with or without prompt and answers.

        What a `Summary` has as well is under the same names: ``rows`` are those of the whole input, and the batch is
        not ``complete``. Those of the sample are under ``sample``.
        """
        sample = [asdict(row) | ({} if answers else {"output": None}) for row in self.rows]
        found = asdict(self)
        del found["total"]
        return found | {
            "complete": False,
            "reason": self.stopped or f"a rehearsal of {len(self.rows)} rows",
            "rows": self.total,
            "ok": sum(row.status == "ok" for row in self.rows),
            "failed": self.failed,
            "misfits": self.misfits,
            "repaired": self.repaired,
            "row_seconds": self.row_seconds,
            "prompt": self.prompt if prompt else None,
            "sample": sample,
            "failures": [asdict(failure) for failure in self.failures],
        }


def rehearsed_row(
    why: str, place: str, row_id: Any, line: Mapping[str, Any] | None, *, length: int | None, fresh: bool, vectors: bool
) -> RehearsedRow:
    """Return a row of the sample.

    Args:
        why: see `SampledRow`.
        place: see `Row`.
        row_id: value of its id column.
        line: of a part; None if there is none.
        length: bytes of its prompt.
        fresh: it was asked now.
        vectors: the answer is not shown.
    """
    if line is None:
        return RehearsedRow(why, place, row_id, length=length)
    output, error = line.get("output"), line.get("error") or {}
    if output is not None and not isinstance(output, str):
        output = json.dumps(output, ensure_ascii=False)
    return RehearsedRow(
        why=why,
        place=place,
        id=row_id,
        fresh=fresh,
        length=length,
        status=line["status"],
        output=None if vectors or output is None else _beginning(output),
        error_class=error.get("class"),
        error=_beginning(error.get("text") or "") if error else None,
        prompt_tokens=line.get("prompt_tokens"),
        tokens=line.get("tokens"),
        seconds=line.get("seconds"),
        queue_seconds=line.get("queue_seconds"),
        attempts=line.get("attempts") or 0,
        answer_cut=bool(line.get("answer_cut")),
        prompt_cut=bool(line.get("prompt_cut")),
        repairs=len(line.get("rungs") or ()),
    )


def _beginning(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} …"
