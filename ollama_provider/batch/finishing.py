"""When nothing is left to ask: the results, the summary, and whether too many rows failed."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from ollama_provider.batch import shards, sinks
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.progress import Progress
from ollama_provider.batch.records import Summary
from ollama_provider.batch.run import Run
from ollama_provider.batch.spec import StoppedError
from ollama_provider.batch.storage import write

logger = logging.getLogger(__name__)

COMPLETE = "complete"


async def finish(
    run: Run,
    reason: str,
    results: sinks.Results,
    *,
    check: Callable[[], None],
    on_progress: Callable[[Progress], None],
) -> Summary:
    """Bring a run to its end: everything that it asked is sealed.

    Args:
        run: with nothing in flight.
        reason: `COMPLETE`, or why it ended early.
        results: how they are written.
        check: called now and then while they are written; raises what ends the run all the same.
        on_progress: called at the end.

    Raises:
        TooManyFailedError: more rows failed than are tolerated.
        DatabaseGoneError: the table was gone for longer than is tolerated.
        OSError: the results cannot be written.
    """
    delivered = None
    if reason == COMPLETE:
        try:
            delivered = await _deliver(run, results, check)
        except StoppedError as stopped:
            reason = str(stopped)
    if reason == COMPLETE and run.tally.skipped:
        reason = "rows that were never asked were left alone"
    summary = _summary(run, reason, delivered)
    if summary.complete:
        await asyncio.to_thread(write, run.storage, run.names.summary, summary.as_json())
        if run.shard is None:
            await asyncio.to_thread(shards.forget, run.storage)
    # What a table refused is known only now, and no row waits for another any more.
    progress = replace(
        run.progress(COMPLETE if summary.complete else "incomplete"),
        done=summary.ok + summary.failed,
        ok=summary.ok,
        failed=summary.failed,
        reused=summary.reused,
    )
    on_progress(progress)
    logger.info("%s", progress.line())
    await asyncio.to_thread(write, run.storage, run.names.progress, progress.as_json())
    if summary.complete and run.spec.limits.too_many(summary.failed, summary.rows):
        raise TooManyFailedError(
            f"{summary.failed} of {summary.rows} rows failed ({run.tally.reasons()}); all others have their results. "
            + (f"See {run.storage.location}/{sinks.FAILED}." if run.shard is None else "The merge lists them."),
            summary,
        )
    return summary


async def _deliver(run: Run, results: sinks.Results, check: Callable[[], None]) -> sinks.Written:
    """Write what belongs into the table and the results; return what failed, at the table too."""
    refused = await run.delivery.finish()
    run.tally.errors.update(error["class"] for error in refused.values())
    if run.shard is not None:  # its results come with the merge
        _, failed = run.order.count(run.journal)
        return sinks.Written(failed)
    written = await asyncio.to_thread(
        sinks.write_results, run.storage, run.journal, run.order, results, check, refused=refused
    )
    if written.refused:
        run.tally.errors[sinks.REFUSED] += written.refused
        logger.warning(
            "%d answers cannot be written into %s; their rows have failed (see %s), and the next run asks them again.",
            written.refused, results.name, sinks.FAILED,
        )  # fmt: skip
    return replace(written, refused_fresh=written.refused_fresh + run.delivery.refused_fresh)


def _summary(run: Run, reason: str, delivered: sinks.Written | None) -> Summary:
    seconds, tally = run.clock() - run.meter.began, run.tally
    progress = run.progress(reason)
    fresh = run.plan.ok
    if delivered is None:
        ok, failed = run.order.count(run.journal)
        rows = max(progress.total or 0, ok + failed)
        left = None if progress.total is None else rows - ok - failed
    else:
        rows, failed, left = len(run.order), delivered.failed, tally.skipped
        ok, fresh = rows - failed - left, fresh - delivered.refused_fresh
    return Summary(
        complete=reason == COMPLETE,
        reason=reason,
        directory=run.storage.location,
        rows=rows,
        ok=ok,
        failed=failed,
        reused=ok - fresh,
        written=run.delivery.written,
        skipped=tally.skipped,
        revalidated=tally.revalidated,
        ladder=tally.ladder,
        left=left,
        seconds_left=0.0 if left == 0 else progress.eta,
        requests=run.plan.sends,
        prompt_tokens=tally.prompt_tokens,
        tokens=tally.tokens,
        seconds=round(seconds, 3),
        tokens_per_second=round(tally.tokens / seconds, 1),
        concurrency=run.climb.target,
        errors=dict(tally.errors),
        provenance=run.sealing.provenance,
    )
