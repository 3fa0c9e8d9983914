"""Before the first row: what the server and the model are, and what is fixed for a run."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch.errors import (
    BatchError,
    StorageError,
    SystemRefusedError,
    TooManyFailedError,
)
from ollama_provider.batch.records import Query, Rows, Summary
from ollama_provider.batch.requests import preflight
from ollama_provider.batch.requests.preflight import ModelControl, RunSetup
from ollama_provider.batch.results import files
from ollama_provider.batch.results.parquet import results_of
from ollama_provider.batch.results.progress import Progress
from ollama_provider.batch.rows.reader import RowReader
from ollama_provider.batch.rows.snapshot import fetch_once
from ollama_provider.batch.scheduling.state import Run, open_run
from ollama_provider.batch.scheduling.workers import Feed, Group, Workers
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.stop import StoppedError, StopSignal
from ollama_provider.batch.store import manifest, shards
from ollama_provider.batch.store.storage import Storage, open_storage, write
from ollama_provider.batch.window import closing_time


async def prepare(run: Run, sample: Sequence[str], host: str, control: ModelControl) -> RunSetup:
    """Return what is fixed for the run, and put its outcomes down to that.

    Args:
        run: in its beginning.
        sample: the first prompts.
        host: base URL of the server.
        control: asks the server; not for a merge, which has what its shards had fixed.

    Raises:
        InputError: there is nothing to merge, or it was made with other settings.
        ModelChangedError: a digest is not the demanded one.
        OllamaError: the server does not say, or a model cannot do what is asked.
    """
    if run.spec.mode == "merge":
        return _merged(run)
    name, _ = preflight.split_model(run.spec.model)
    setup = preflight.run_setup(run.spec, sample, run.manifest.num_ctx, host, await control.describe(name))
    run.manifest = replace(run.manifest, num_ctx=setup.num_ctx)
    run.checkpoints.set_provenance(setup.provenance)
    if run.spec.fallback_model is None:
        return setup
    name, _ = preflight.split_model(run.spec.fallback_model)
    replies = await control.describe(name)
    fallback = preflight.fallback_provenance(run.spec.fallback_model, setup.task, setup.provenance, replies, host)
    return replace(setup, fallback=fallback)


def _merged(run: Run) -> RunSetup:
    provenance = manifest.merged_provenance(run.storage, run.manifest, run.spec.common())
    task = preflight.task_of(run.spec)
    run.checkpoints.set_provenance(provenance)
    return RunSetup(
        task,
        preflight.keys_of(task, provenance.digest),
        preflight.validator_of(run.spec, task, provenance.server, provenance.server_version),
        provenance,
        run.manifest.num_ctx,
    )


async def begin(run: Run) -> None:
    """Write down what the run is about to do.

    Raises:
        InputError: it is a shard's, and beside it are shards of a batch with other settings.
    """
    provenance = run.checkpoints.provenance
    run.manifest = replace(
        run.manifest,
        settings=run.spec.settings(),
        common=run.spec.common(),
        provenance=None if provenance is None else vars(provenance),
    )
    await asyncio.to_thread(manifest.begin, run.storage, run.manifest, run.names)


# FROM batch.finishing: When nothing is left to ask: the results, the summary, and whether too many rows failed.

logger = logging.getLogger(__name__)

COMPLETE = "complete"


async def finish(
    run: Run,
    reason: str,
    results: files.Results,
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
        StorageError: the results cannot be written.
    """
    delivered = None
    if reason == COMPLETE:
        try:
            delivered = await _deliver(run, results, check)
        except StoppedError as stopped:
            reason = str(stopped)
    if reason == COMPLETE and run.counters.skipped:
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
            f"{summary.failed} of {summary.rows} rows failed ({run.counters.reasons()}); "
            "all others have their results. "
            + (f"See {run.storage.location}/{files.FAILED}." if run.shard is None else "The merge lists them."),
            summary,
        )
    return summary


async def _deliver(run: Run, results: files.Results, check: Callable[[], None]) -> files.Written:
    """Write what belongs into the table and the results; return what failed, at the table too."""
    refused = {} if run.table_writer is None else await run.table_writer.finish()
    run.counters.errors.update(error["class"] for error in refused.values())
    if run.shard is not None:  # its results come with the merge
        _, failed = run.order.count(run.journal)
        return files.Written(failed)
    written = await asyncio.to_thread(
        files.write_results, run.storage, run.journal, run.order, results, check, refused=refused
    )
    if written.refused:
        run.counters.errors[files.REFUSED] += written.refused
        logger.warning(
            "%d answers cannot be written into %s; their rows have failed (see %s), and the next run asks them again.",
            written.refused, results.name, files.FAILED,
        )  # fmt: skip
    if run.table_writer is None:
        return written
    return replace(written, refused_fresh=written.refused_fresh + run.table_writer.refused_fresh)


def _summary(run: Run, reason: str, delivered: files.Written | None) -> Summary:
    seconds, counters = run.clock() - run.meter.began, run.counters
    progress = run.progress(reason)
    fresh = run.plan.ok
    if delivered is None:
        ok, failed = run.order.count(run.journal)
        rows = max(progress.total or 0, ok + failed)
        left = None if progress.total is None else rows - ok - failed
    else:
        rows, failed, left = len(run.order), delivered.failed, counters.skipped
        ok, fresh = rows - failed - left, fresh - delivered.refused_fresh
    return Summary(
        complete=reason == COMPLETE,
        reason=reason,
        directory=run.storage.location,
        rows=rows,
        ok=ok,
        failed=failed,
        reused=ok - fresh,
        written=0 if run.table_writer is None else run.table_writer.written,
        skipped=counters.skipped,
        revalidated=counters.revalidated,
        ladder=counters.repairs,
        left=left,
        seconds_left=0.0 if left == 0 else progress.eta,
        requests=run.plan.sends,
        prompt_tokens=counters.prompt_tokens,
        tokens=counters.tokens,
        seconds=round(seconds, 3),
        tokens_per_second=round(counters.tokens / seconds, 1),
        concurrency=run.climb.target,
        errors=dict(counters.errors),
        provenance=run.checkpoints.provenance,
    )


# FROM batch.engine: Does what the plan says, N at a time. `run_batch` is the way in. Rows are read in one thread, parts


#: Seconds between two calls of `on_progress`.
_TICK = 1.0


def run_batch(
    spec: BatchSpec,
    settings: Settings,
    directory: Any,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: StopSignal | None = None,
    listener: Listener | None = None,
) -> Summary:
    """Run a batch to its end, or until it is told to stop. The next run in the same directory goes on from there.

    Args:
        spec: what to do.
        settings: the server, and how to treat it.
        directory: where the results go; see `ollama_provider.batch.store.storage.open_storage`.
        on_progress: called every second and at the end.
        stop: ends the run early, within some seconds.
        listener: told of the client's events.

    Returns:
        How it went. ``complete`` is False when it was told to stop, and when ``mode="failed_only"`` left rows alone.

    Raises:
        BatchError: see the tree in `ollama_provider.batch.errors`.
        OllamaError: one that fails every row, or an outage that outlasted ``limits.max_outage``.
    """
    stop = stop or StopSignal()
    storage = open_storage(directory)
    lock = shards.RunLock(storage, spec.the_shard())
    try:
        now = datetime.now(UTC)
        closing = closing_time(spec.stop_at, spec.timezone, now=now, due=spec.due) if spec.stop_at is not None else None
        if closing is not None and closing <= now:
            logger.warning("The window closed at %s, before this run began: no row is asked.", closing)
            return Summary(
                complete=False,
                reason=f"the window had closed at {closing.isoformat(timespec='minutes')}, before this run began",
                directory=storage.location,
            )
        lock.take(stop.pause)
        rows = fetch_once(spec.rows, storage, stop.pause, lock.renew) if isinstance(spec.rows, Query) else spec.rows
        return asyncio.run(
            _Engine(
                spec,
                rows,
                settings,
                storage,
                closing=closing,
                renew_lock=lock.renew,
                on_progress=on_progress,
                stop=stop,
                listener=listener,
            ).run()
        )
    except StoppedError as stopped:  # before anything was done
        return Summary(complete=False, reason=str(stopped), directory=storage.location)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise SystemRefusedError(
            f"The operating system refused something outside of the directory: {reason} ({type(error).__name__})."
        ) from error
    finally:
        with contextlib.suppress(StorageError):
            lock.release()
        storage.close()


class _Engine:
    """What happens in a run, from the first look at the directory to the end of all that waits."""

    def __init__(
        self,
        spec: BatchSpec,
        rows: Rows,
        settings: Settings,
        storage: Storage,
        *,
        closing: datetime | None,
        renew_lock: Callable[[], None],
        on_progress: Callable[[Progress], None] | None,
        stop: StopSignal,
        listener: Listener | None,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._storage = storage
        self._closing = closing
        self._renew_lock = renew_lock
        self._on_progress = on_progress or (lambda _: None)
        self._stop = stop
        self._listener = listener
        self._model, _ = preflight.split_model(spec.model)
        self._rows = rows
        self._reader = RowReader(spec, rows)
        self._results = results_of(spec)
        self._lost: Exception | None = None

    async def run(self) -> Summary:
        self._group = Group()
        keeper = asyncio.create_task(self._keep_lock())
        try:
            self._run = await open_run(
                self._spec,
                self._storage,
                pause=self._stop.pause,
                look_up_digest=lambda: self._control.digest(self._model),
            )
            self._feed = Feed(self._run, self._rows, self._reader, self._group)
            try:
                return await self._connected()
            finally:
                self._feed.close()
                await self._run.close()
        finally:
            keeper.cancel()

    async def _connected(self) -> Summary:
        timeouts = self._settings.timeouts.model_copy(update={"first_token": self._spec.load_timeout})
        patient = self._settings.model_copy(update={"timeouts": timeouts})
        once = self._settings.model_copy(update={"max_attempts": 1})
        async with (
            AsyncClient(patient, listener=self._listener) as control,
            AsyncClient(once, listener=self._listener, concurrency=self._run.climb.most) as self._client,
        ):
            self._control = ModelControl(control)
            self._stop.subscribe(partial(asyncio.get_running_loop().call_soon_threadsafe, self._on_stop))
            try:
                reason = await self._work_until_over()
            finally:
                if self._spec.unload_after and self._run.plan.sends:
                    await self._control.unload(self._model)
            return await finish(self._run, reason, self._results, check=self._check, on_progress=self._on_progress)

    async def _work_until_over(self) -> str:
        """Work until something ends it; whatever that was, close the requests and seal what there is."""
        self._group.spawn(self._work_through())
        try:
            await self._group.over
        except StoppedError as stopped:
            return str(stopped)
        except TooManyFailedError:
            # The batch ended by itself: what failed is asked again by the next run.
            await asyncio.to_thread(manifest.save, self._storage, self._run.manifest.next_pass(), self._run.names)
            raise
        finally:
            await self._group.close()
            await self._run.checkpoints.close()
        return COMPLETE

    async def _work_through(self) -> None:
        run = self._run
        sample = await self._feed.sample()
        if self._closing is not None:
            self._group.spawn(self._close_at(self._closing))
        if sample is None:
            await begin(run)
            self._group.end()
            return
        if run.table_writer is not None:
            await run.table_writer.open(self._reader.examples, self._spec.id_column)
        setup = await prepare(run, sample, self._settings.base_url, self._control)
        await begin(run)
        self._workers = Workers(run, setup, self._client, self._control, self._group)
        self._group.spawn(run.checkpoints.write_periodically(self._spec.checkpoint_every, self._sealed))
        if run.table_writer is not None:
            self._group.spawn(run.table_writer.run(self._workers.hungry.set))
        self._group.spawn(self._report())
        await self._feed.give(self._workers, setup)

    def _sealed(self) -> None:
        if self._run.table_writer is not None:
            self._run.table_writer.on_checkpoint()
        self._workers.wake()

    async def _report(self) -> None:
        run = self._run
        due = run.clock() + self._spec.report_every
        while True:
            await asyncio.sleep(min(_TICK, self._spec.report_every))
            progress = run.progress("running")
            self._on_progress(progress)
            if run.clock() >= due:
                due += self._spec.report_every
                logger.info("%s", progress.line())
                await self._write_report(progress)

    async def _write_report(self, progress: Progress) -> None:
        report = (self._storage, self._run.names.progress, progress.as_json())
        writing = asyncio.create_task(asyncio.to_thread(write, *report))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on, and the end writes a report of its own, to the same file.
            await writing
            raise

    # What ends a run early

    async def _keep_lock(self) -> None:
        """Show that the run is alive, to its very end: also while a model loads, or while the results are written."""
        while self._lost is None:
            await asyncio.sleep(_TICK)
            try:
                await asyncio.to_thread(self._renew_lock)
            except (BatchError, OSError) as error:
                self._lost = error
                self._group.end(error)

    def _check(self) -> None:
        """Raise what ends a run while its results are written."""
        self._stop.check()
        if self._lost is not None:
            raise self._lost

    def _on_stop(self) -> None:
        self._group.end(StoppedError(self._stop.reason))

    async def _close_at(self, closing: datetime) -> None:
        """Send no row any more from that moment on; end when what is in flight is back."""
        await asyncio.sleep((closing - datetime.now(UTC)).total_seconds())
        plan = self._run.plan
        plan.closed = True
        logger.info("The window closes: no new rows, %d requests are still in flight.", plan.in_flight)
        while plan.in_flight:
            await self._workers.wait()
        self._group.end(StoppedError(f"the window closed at {closing.isoformat(timespec='minutes')}"))
