"""What the answers of a rehearsal say of the night: how long it takes, what fits, what fails. No network, no clock."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from statistics import fmean

from ollama_provider.batch.rehearsal.calls import Call, Parallel, busy_seconds
from ollama_provider.batch.rehearsal.estimate import mean_seconds, tokens_by_length
from ollama_provider.batch.rehearsal.result import ContextUse, Failure, Night, RehearsedRow, Spread
from ollama_provider.batch.report.advice import advice
from ollama_provider.batch.rows.sampling import RowSample
from ollama_provider.batch.spec import BatchSpec

#: When the night begins whose end is told.
_BEGINS = time(22)
#: Rows whose time must be known.
_LEAST = 3


def spread(values: Sequence[int]) -> Spread | None:
    """Return how tokens are spread over rows; None without any."""
    if not values:
        return None
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95)]
    return Spread(at[0], at[1], ordered[-1])


def night(
    spec: BatchSpec,
    sample: RowSample[int],
    rows: Sequence[RehearsedRow],
    calls: Sequence[Call],
    at_a_time: Parallel | None,
) -> Night | None:
    """Return how long the whole input takes; None where too little is known.

    Args:
        spec: the batch.
        sample: of its rows.
        rows: those of the sample, with what became of them.
        calls: requests that were sent for rows.
        at_a_time: how many requests were worked on; None if that is not known.
    """
    if at_a_time is None or not sample.lengths:
        return None
    mean_length = fmean(sample.lengths)
    slowest = 60 / spec.pace.requests_per_minute if spec.pace.requests_per_minute else 0.0
    if spec.embedding is not None:
        # A request is for many rows, and does not tell how long it waited.
        asked = sum(row.fresh for row in rows)
        if not calls or not asked:
            return None
        each = mean_seconds([0.0] * len(calls), busy_seconds(calls), 0.0).times(len(calls) / asked)
        slowest *= len(calls) / asked
        at_a_time = Parallel(1.0, waited=True)
    else:
        known = [
            (row.length, max(0.0, row.seconds - (row.queue_seconds or 0.0)))
            for row in rows
            if row.length is not None and (row.seconds or (row.status == "ok" and row.seconds is not None))
        ]
        if len(known) < min(_LEAST, len(rows)) or not known:
            return None
        each = mean_seconds([length for length, _ in known], [seconds for _, seconds in known], mean_length)
        # Requests that failed, or that were repeated with another answer in mind, took time as well.
        in_all = sum(call.ended - call.started for call in calls)
        counted = sum(max(0.0, (row.seconds or 0.0) - (row.queue_seconds or 0.0)) for row in rows if row.fresh)
        each = each.times(max(1.0, in_all / counted) if counted else 1.0)
    whole = each.times(1 / at_a_time.requests, least=slowest).times(sample.total)
    window = _window(spec)
    answered = [row.tokens for row in rows if row.tokens is not None]
    pace = sample.total / whole.seconds if whole.seconds else 0.0
    return Night(
        seconds=round(whole.seconds, 1),
        low=round(whole.low, 1),
        high=round(whole.high, 1),
        ends=_clock(whole.seconds),
        earliest=_clock(whole.low),
        latest=_clock(whole.high),
        requests_at_a_time=round(at_a_time.requests, 3),
        waited=at_a_time.waited,
        rows_per_second=round(pace, 4),
        tokens_per_second=round(pace * fmean(answered), 1) if answered else 0.0,
        window=window,
        fits=None if window is None else whole.high <= window,
    )


def _window(spec: BatchSpec) -> float | None:
    """Return for how many seconds a night is that begins at 22:00; None where it has no such end."""
    match spec.window.stop_at:
        case timedelta() as lasting:
            return lasting.total_seconds()
        case time() as ends:
            minutes = (ends.hour - _BEGINS.hour) * 60 + ends.minute - _BEGINS.minute
            return 60.0 * (minutes % (24 * 60) or 24 * 60)
        case _:
            return None


def _clock(seconds: float) -> str:
    """Return the time of day so long after 22:00, with the days in between in front."""
    begins = datetime(1, 1, 1, _BEGINS.hour, _BEGINS.minute)  # noqa: DTZ001  # any day
    ends = begins + timedelta(seconds=min(seconds, 1e10))
    days = (ends.date() - begins.date()).days
    return f"{f'+{days} d ' if days else ''}{ends:%H:%M}"


def context_use(
    spec: BatchSpec, num_ctx: int | None, rows: Sequence[RehearsedRow], sample: RowSample[int]
) -> ContextUse | None:
    """Return whether prompts and answers fit into the context; None where that is not known.

    Args:
        spec: the batch.
        num_ctx: size of the context, in tokens.
        rows: those of the sample, with what became of them.
        sample: of all rows.
    """
    known = [
        (row.length, row.prompt_tokens)
        for row in rows
        if row.prompt_tokens and row.length is not None and not row.prompt_cut
    ]
    if num_ctx is None or not known:
        return None
    empty, each = tokens_by_length([length for length, _ in known], [tokens for _, tokens in known])
    prompts = [empty + each * length for length in sample.lengths]
    longest = max([*prompts, *(tokens for _, tokens in known)])
    answers = [row.tokens or 0 for row in rows]
    limit = spec.options.num_predict
    answer = limit if limit is not None and limit > 0 else max(answers)
    answered = [row for row in rows if row.tokens is not None]
    return ContextUse(
        num_ctx=num_ctx,
        needed=round(longest) + answer,
        too_long=sum(tokens > num_ctx for tokens in prompts) / len(prompts) if prompts else 0.0,
        answers_cut=sum(row.answer_cut for row in answered) / len(answered) if answered else 0.0,
    )


def failures(rows: Sequence[RehearsedRow]) -> tuple[Failure, ...]:
    """Return why rows failed, the most frequent reason first."""
    failed = [row for row in rows if row.status == "failed"]
    first = {row.error_class: row.error or "" for row in reversed(failed)}
    counts = Counter(row.error_class for row in failed)
    return tuple(
        Failure(kind or "unknown", count, first[kind], advice(kind or "")) for kind, count in counts.most_common()
    )


def failing(rows: Sequence[RehearsedRow], context: ContextUse | None, spec: BatchSpec) -> float:
    """Return the share of all rows that is expected to fail; see `RehearsalResult`."""
    asked = [row for row in rows if row.status is not None]
    fair = [row for row in asked if row.represents_others] or asked
    share = sum(row.status == "failed" for row in fair) / len(fair) if fair else 0.0
    too_long = context.too_long if context is not None and spec.failures.on_truncation != "flag" else 0.0
    return max(share, too_long)
