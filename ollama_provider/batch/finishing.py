"""The end of a run: the results, the summary, and the report."""

import asyncio
import contextlib
import logging
from dataclasses import replace

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import (
    BatchError,
    TooManyFailedError,
)
from ollama_provider.batch.opening import Run
from ollama_provider.batch.records import COMPLETE, REFUSED, Summary
from ollama_provider.batch.report.history import What
from ollama_provider.batch.results import files
from ollama_provider.batch.results.json_lines import ResultsFormat
from ollama_provider.batch.scheduling.background import LockRenewal
from ollama_provider.batch.stop import StoppedError
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.storage import write

logger = logging.getLogger(__name__)


async def finish(run: Run, reason: str, results: ResultsFormat, renewal: LockRenewal) -> Summary:
    """Write the results and the summary of a run whose outcomes are all stored.

    Args:
        run: with no request in flight.
        reason: `COMPLETE`, or why it ended early: then there are no results to write.
        results: how they are written.
        renewal: of the lock.

    Raises:
        TooManyFailedError: more rows failed than are tolerated.
        DatabaseGoneError: the table was gone for longer than is tolerated.
        StorageError: the results cannot be written.
    """
    written = None
    if reason == COMPLETE:
        try:
            written = await _write_results(run, results, renewal)
        except StoppedError as stopped:
            reason = str(stopped)
    if reason == COMPLETE and run.counters.skipped:
        reason = "rows that were never asked were left alone"
    summary = _summary(run, reason, written)
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
    run.on_progress(progress)
    logger.info("%s", progress.line())
    await asyncio.to_thread(write, run.storage, run.names.progress, progress.as_json())
    if summary.complete and run.spec.failures.too_many(summary.failed, summary.rows):
        raise TooManyFailedError(
            f"{summary.failed} of {summary.rows} rows failed ({run.counters.reasons()}); "
            "all others have their results. "
            + (f"See {run.storage.location}/{files.FAILED}." if run.shard is None else "The merge lists them."),
            summary,
        )
    return summary


async def _write_results(run: Run, results: ResultsFormat, renewal: LockRenewal) -> files.Written:
    """Write what is left for the table, and the results; return what failed in the end, at the table too."""
    refused: dict[int, dict[str, str]] = {}
    if run.table is not None:
        refused = await run.table.finish()
    run.counters.errors.update(error["class"] for error in refused.values())
    if run.shard is not None:  # its files come with the merge
        _, failed = run.order.count(run.journal)
        return files.Written(failed + len(refused), refused_fresh=0 if run.table is None else run.table.refused_fresh)

    def check() -> None:
        run.stop.check()
        renewal.check()

    written = await asyncio.to_thread(
        files.write_results, run.storage, run.journal, run.order, results, check, refused=refused
    )
    if written.refused:
        run.counters.errors[REFUSED] += written.refused
        logger.warning(
            "%d answers cannot be written into %s; their rows have failed (see %s), and the next run asks them again.",
            written.refused, results.name, files.FAILED,
        )  # fmt: skip
    if run.table is not None:
        return replace(written, refused_fresh=written.refused_fresh + run.table.refused_fresh)
    return written


def _summary(run: Run, reason: str, written: files.Written | None) -> Summary:
    seconds, counters, plan = run.now() - run.meter.began, run.counters, run.scheduler.plan
    progress = run.progress(reason)
    fresh = plan.ok
    if written is None:
        ok, failed = run.order.count(run.journal)
        rows = max(progress.total or 0, ok + failed)
        left = None if progress.total is None else rows - ok - failed
    else:
        rows, failed, left = len(run.order), written.failed, counters.skipped
        ok, fresh = rows - failed - left, fresh - written.refused_fresh
    return Summary(
        complete=reason == COMPLETE,
        reason=reason,
        directory=run.storage.location,
        rows=rows,
        ok=ok,
        failed=failed,
        reused=ok - fresh,
        written=0 if run.table is None else run.table.written,
        skipped=counters.skipped,
        revalidated=counters.revalidated,
        ladder=counters.repairs,
        left=left,
        seconds_left=0.0 if left == 0 else progress.eta,
        requests=plan.sends,
        prompt_tokens=counters.prompt_tokens,
        tokens=counters.tokens,
        seconds=round(seconds, 3),
        tokens_per_second=round(counters.tokens / seconds, 1),
        concurrency=sum(server.concurrency.target for server in plan.servers if server.ready),
        errors=dict(counters.errors),
        provenance=run.checkpoints.provenance,
        servers=progress.servers,
    )


async def end_report(
    run: Run, renewal: LockRenewal, summary: Summary | None, *, error: BaseException | None = None
) -> None:
    """Write how the run ended, and the report, unless another run has the directory by now. Nothing is raised."""
    with contextlib.suppress(BatchError, OSError):
        renewal.check()
        reason = "" if summary is None else summary.reason
        if error is not None:
            expected = isinstance(error, BatchError | OllamaError)
            reason = str(error) if expected else f"an unexpected {type(error).__name__}; see the log"
            if summary is None:  # else it was written with the summary
                progress = run.progress("failed").as_json()
                await asyncio.to_thread(write, run.storage, run.names.progress, progress)
        run.sample_history()
        what: What = "ended" if error is None else "failed"
        # Otherwise outcomes may not be in sealed parts, or an earlier one counts until its row has another.
        journal = run.journal if summary is not None and summary.complete else None
        await asyncio.to_thread(
            run.report.end, run.now(), what, reason, servers=run.shares(run.now()), places=run.places, journal=journal
        )
