"""One run of a batch, from its first look at the directory to the summary.

The first functions tell it from top to bottom:

1. `run_batch` takes the lock of the directory, and fetches the rows if they come from a query.
2. `_run` opens the directory and the connections to the server.
3. `request_all` checks server and model, and sends requests until every row has an outcome in a checkpoint.
4. `_finish` writes results, summary and the last progress.

What they need stands below them.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch.errors import (
    BatchError,
    InputError,
    StorageError,
    SystemRefusedError,
    TooManyFailedError,
)
from ollama_provider.batch.records import REFUSED, Query, Rows, ServerShare, Summary, Vectors
from ollama_provider.batch.report.history import What
from ollama_provider.batch.report.run_report import RunReport
from ollama_provider.batch.requests import preflight
from ollama_provider.batch.requests.preflight import RunSetup
from ollama_provider.batch.results import files
from ollama_provider.batch.results.json_lines import ResultsFormat, vector_numbers, vector_rows
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.progress import Counters, Progress, ProgressMeter
from ollama_provider.batch.results.table import TableWriter, WrittenKeys
from ollama_provider.batch.rows.reader import RowReader
from ollama_provider.batch.rows.snapshot import fetch_once
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.scheduling.availability import leave_out_changed
from ollama_provider.batch.scheduling.background import LockRenewal, background_tasks, close_window, renewing
from ollama_provider.batch.scheduling.connections import Server, connect
from ollama_provider.batch.scheduling.input_queue import InputQueue, estimate_total
from ollama_provider.batch.scheduling.joining import Joining
from ollama_provider.batch.scheduling.outcomes import OutcomeRecorder
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.scheduling.workers import Workers
from ollama_provider.batch.spec import BatchSpec, Names, Shard
from ollama_provider.batch.stop import StoppedError, StopSignal
from ollama_provider.batch.store import manifest as manifests
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.checkpoints import Checkpoints
from ollama_provider.batch.store.journal import Journal, State
from ollama_provider.batch.store.manifest import Manifest
from ollama_provider.batch.store.storage import Storage, open_storage, write
from ollama_provider.batch.window import closing_time

logger = logging.getLogger(__name__)

COMPLETE = "complete"

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
    trace_rows: float = 0.0,
) -> Summary:
    """Run a batch until every row has an outcome, or until it is told to stop.

    The next run in the same directory goes on where this one ended.

    Args:
        spec: what to do.
        settings: the servers, and how to treat them.
        directory: where the results go; see `ollama_provider.batch.store.storage.open_storage`.
        on_progress: called every second and at the end.
        stop: ends the run early, within some seconds.
        listener: told of the client's events.
        trace_rows: probability that a request for a row gets a span, 0 to 1, where tracing with OpenTelemetry is on.

    Returns:
        How it went. ``complete`` is False when it was told to stop, when its window closed, and when
        ``mode="failed_only"`` or a merge left rows alone that were never asked.

    Raises:
        BatchError: see the tree in `ollama_provider.batch.errors`.
        OllamaError: one that fails every row, or an outage that outlasted ``failures.max_outage``. With several servers
            it is a `NoServerError`, which lists them.
    """
    if spec.mode == "rehearse":
        raise InputError('mode: a batch with "rehearse" is run by rehearse_batch, not by run_batch.')
    stop = stop or StopSignal()
    with open_directory(directory, spec.the_shard()) as (storage, lock):
        closing = _window_end(spec)
        if closing is not None and closing <= datetime.now(UTC):
            logger.warning("The window closed at %s, before this run began: no row is requested.", closing)
            return Summary(
                complete=False,
                reason=f"the window had closed at {closing.isoformat(timespec='minutes')}, before this run began",
                directory=storage.location,
            )
        try:
            lock.take(stop.pause)
            rows = fetch_once(spec.rows, storage, stop.pause, lock.renew) if isinstance(spec.rows, Query) else spec.rows
            return asyncio.run(
                _run(
                    spec,
                    rows,
                    settings,
                    storage,
                    lock,
                    closing=closing,
                    on_progress=on_progress or (lambda _: None),
                    stop=stop,
                    listener=listener,
                    trace_rows=trace_rows,
                )
            )
        except StoppedError as stopped:  # before anything was done
            return Summary(complete=False, reason=str(stopped), directory=storage.location)


@contextlib.contextmanager
def open_directory(directory: Any, shard: Shard | None) -> Iterator[tuple[Storage, shards.RunLock]]:
    """Open the directory of a batch, and its lock, which is not taken yet; close both at the end.

    Args:
        directory: see `ollama_provider.batch.store.storage.open_storage`.
        shard: that the run does; None for a whole batch.

    Raises:
        StorageError: it cannot be used.
        SystemRefusedError: raised in the block for what the operating system refuses elsewhere.
    """
    storage = open_storage(directory)
    lock = shards.RunLock(storage, shard)
    try:
        yield storage, lock
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise SystemRefusedError(
            f"The operating system refused something outside of the directory: {reason} ({type(error).__name__})."
        ) from error
    finally:
        with contextlib.suppress(StorageError):
            lock.release()
        storage.close()


async def _run(
    spec: BatchSpec,
    rows: Rows,
    settings: Settings,
    storage: Storage,
    lock: shards.RunLock,
    *,
    closing: datetime | None,
    on_progress: Callable[[Progress], None],
    stop: StopSignal,
    listener: Listener | None,
    trace_rows: float,
) -> Summary:
    """Open the directory, send requests until every row has an outcome, and write the results."""
    reader, results = RowReader(spec, read_rows(rows, spec.input_options)), files.results_format(spec)
    async with (
        renewing(lock) as renewal,
        connect(spec, settings, listener, trace_rows) as servers,
        open_run(spec, storage, servers, on_progress, stop) as run,
    ):
        try:
            try:
                reason = await request_all(run, reader, rows, renewal, closing=closing)
            finally:
                await unload(spec, servers)
            summary = await _finish(run, reason, results, renewal)
        except BaseException as error:
            await _end_report(run, renewal, getattr(error, "summary", None), error=error)
            raise
        await _end_report(run, renewal, summary)
        return summary


async def unload(spec: BatchSpec, servers: Sequence[Server]) -> None:
    """Unload the model from the servers that have loaded it, if the batch is to do that at its end."""
    if spec.window.unload_after:
        name, _ = preflight.split_model(spec.model)
        loaded = [server.control for server in servers if server.control.has_loaded]
        await asyncio.gather(*(control.unload(name) for control in loaded))


async def request_all(
    run: "Run", reader: RowReader, rows: Any, renewal: LockRenewal, *, closing: datetime | None
) -> str:
    """Send requests until every row has an outcome or something ends the run. All outcomes are stored then.

    Args:
        run: before its first request.
        reader: of the rows.
        rows: that it reads, so that they can be counted.
        renewal: of the lock.
        closing: when no request is sent any more; None for no such time.

    Returns:
        `COMPLETE`, or why the run was stopped.
    """
    spec, manifest, scheduler = run.spec, run.manifest, run.scheduler
    joining = Joining(scheduler, run.servers, spec)
    queue = InputQueue(
        reader,
        scheduler,
        run.journal,
        checkpoints=run.checkpoints,
        order=run.order,
        table=run.table,
        counters=run.counters,
        meter=run.meter,
        mode=spec.mode,
    )
    try:
        async with queue, background_tasks() as start:
            start(run.stop.wait())
            start(renewal.wait())
            sample = await queue.sample()
            if closing is not None:
                start(close_window(scheduler, closing))
            if sample is None:
                await _begin(run, manifest)
                return COMPLETE
            if run.table is not None and spec.embedding is None:
                await run.table.open(sample.rows, spec.id_column)
            setups = await _prepare(run, joining, sample.prompts)
            _, setup = setups[0]
            if run.table is not None and spec.embedding is not None:
                # Not before, since its column must be as long as the vectors of the model.
                vectors = Vectors(
                    await _vector_length(run, setups, sample.prompts), spec.embedding.on_long_text == "split"
                )
                await run.table.open(sample.rows, spec.id_column, vectors)
            manifest = await _begin(run, replace(manifest, num_ctx=setup.num_ctx))
            await _seal_left_open(run, [setup for _, setup in setups])
            start(run.checkpoints.make_periodically(spec.pace.checkpoint_every, partial(_on_checkpoint, run)))
            if run.table is not None:
                start(run.table.run(scheduler.want_rows))
            start(_report(run))
            start(_refresh_report(run))
            start(estimate_total(rows, spec.input_options, run.shard, run.meter))
            start(queue.fill(setup, OutcomeRecorder(run.checkpoints, run.counters, setup, run.report)))
            begun = [server for server, _ in setups]
            for server in run.servers:
                if server not in begun and spec.mode != "merge":
                    start(_join_later(run, joining, server, setup.num_ctx))
            async with asyncio.TaskGroup() as group:
                working = [group.create_task(_workers(run, server, its_setup).run()) for server, its_setup in setups]
                await scheduler.wait_until_answered()
                while scheduler.comparison_due:
                    await run.checkpoints.make_last()
                    scheduler.comparison_due = not scheduler.answered
                    scheduler.notify()
                    await scheduler.wait_until_answered()
                for task in working:  # a server may still be loading the model, or not say whether it works
                    task.cancel()
    except StoppedError as stopped:
        return str(stopped)
    except TooManyFailedError:
        # The run came to its own end, so the next one is a new pass, which asks the failed rows again.
        await asyncio.to_thread(manifests.save, run.storage, manifest.next_pass(), run.names)
        raise
    finally:
        joining.close()
        await run.checkpoints.close()
    return COMPLETE


async def _finish(run: "Run", reason: str, results: ResultsFormat, renewal: LockRenewal) -> Summary:
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


async def _end_report(
    run: "Run", renewal: LockRenewal, summary: Summary | None, *, error: BaseException | None = None
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
        _sample(run)
        what: What = "ended" if error is None else "failed"
        # Otherwise outcomes may not be in sealed parts, or an earlier one counts until its row has another.
        journal = run.journal if summary is not None and summary.complete else None
        await asyncio.to_thread(
            run.report.end, _now(), what, reason, servers=run.shares(_now()), places=run.places, journal=journal
        )


# The parts of a run.


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all phases of a run work with.

    Attributes:
        spec: what to do.
        storage: the directory.
        shard: which part of the batch; None for a whole one.
        names: of the files that the run keeps beside the outcomes.
        manifest: the directory's, as the run found it.
        journal: knows the outcome of each key.
        checkpoints: store outcomes.
        order: the rows in the order of the input.
        table: writes good results into a table; None where there is none.
        scheduler: decides which request is sent next.
        servers: of the connection, in its order.
        counters: count rows.
        meter: measures pace.
        on_progress: called with the progress.
        stop: ends the run early.
        report: keeps the history, and writes the page.
    """

    spec: BatchSpec
    storage: Storage
    shard: Shard | None
    names: Names
    manifest: Manifest
    journal: Journal
    checkpoints: Checkpoints
    order: RowOrder
    table: TableWriter | None
    scheduler: Scheduler
    servers: Sequence[Server]
    counters: Counters
    meter: ProgressMeter
    on_progress: Callable[[Progress], None]
    stop: StopSignal
    report: RunReport

    def progress(self, state: str) -> Progress:
        """Return how it goes now; *state* is one word for it."""
        plan, counters, now = self.scheduler.plan, self.counters, _now()
        counters.resolve(self.journal.state)
        return self.meter.read(
            now,
            ok=plan.ok + counters.reused,
            failed=plan.failed + counters.failed_before,
            reused=counters.reused,
            asked=plan.ok + plan.failed,
            tokens=counters.tokens,
            concurrency=self.scheduler.in_flight_limit,
            state=state,
            servers=self.shares(now),
        )

    def shares(self, now: float) -> tuple[ServerShare, ...]:
        """Return what each server did so far; nothing for a merge, which asks none."""
        if self.spec.mode == "merge":
            return ()
        return tuple(server.state.share(now, now - self.meter.began) for server in self.servers)

    def places(self, keys: Collection[str]) -> dict[str, tuple[int, Any]]:
        """Return index and id of the first row with each of these keys, of those that this run has read."""
        wanted = {self.journal.find(bytes.fromhex(key))[0]: key for key in keys}
        found: dict[str, tuple[int, Any]] = {}
        for index, number, fields in self.order.rows():
            if key := wanted.pop(number, None):
                found[key] = index, json.loads(b"{%b}" % fields)["id"]
                if not wanted:
                    break
        return found


@contextlib.asynccontextmanager
async def open_run(
    spec: BatchSpec,
    storage: Storage,
    servers: Sequence[Server],
    on_progress: Callable[[Progress], None],
    stop: StopSignal,
) -> AsyncIterator[Run]:
    """Read what earlier runs left in the directory.

    Raises:
        StorageError: it is damaged, or was made by a later version of this package.
    """
    meter = ProgressMeter(_now())
    shard = spec.the_shard()
    names = spec.names
    manifest = manifests.for_run(storage, spec.mode, names)
    journal = await asyncio.to_thread(
        Journal,
        storage,
        manifest.pass_number,
        shard=None if shard is None else shard.name,
        keep_replies=spec.output_type is not None,
    )
    model, _ = preflight.split_model(spec.model)
    failures, per_minute = spec.failures, spec.pace.requests_per_minute
    plan = Plan(failures, [server.state for server in servers], 60 / per_minute if per_minute else 0.0)
    scheduler, counters = Scheduler(plan), Counters()
    controls = {server.state.name: server.control for server in servers}
    checkpoints = Checkpoints(
        journal,
        look_up_digest=lambda server: controls[server].digest(model),
        on_digest_change=failures.on_digest_change,
        leave_out=None if len(servers) == 1 else partial(leave_out_changed, scheduler, counters),
    )
    order = RowOrder(with_fields=spec.id_column is not None or spec.keep_columns is not None)
    table = None
    if spec.into is not None:
        written = await asyncio.to_thread(WrittenKeys, storage, spec.into.target, shard)
        table = TableWriter(
            spec.into,
            written,
            storage,
            journal,
            vectors=spec.embedding is not None,
            max_outage=failures.max_outage,
            pause=stop.pause,
        )
    report = await asyncio.to_thread(
        RunReport,
        storage,
        names,
        manifest.pass_number,
        merges=spec.mode == "merge",
        page=names == Names(),
        shows_prompts=spec.report_prompts,
        clock=meter.began,
    )
    try:
        yield Run(
            spec=spec,
            storage=storage,
            shard=shard,
            names=names,
            manifest=manifest,
            journal=journal,
            checkpoints=checkpoints,
            order=order,
            table=table,
            scheduler=scheduler,
            servers=servers,
            counters=counters,
            meter=meter,
            on_progress=on_progress,
            stop=stop,
            report=report,
        )
    finally:
        if table is not None:
            await table.close()
        order.close()


# Before the first request.


def _window_end(spec: BatchSpec) -> datetime | None:
    window = spec.window
    if window.stop_at is None:
        return None
    return closing_time(window.stop_at, window.timezone, now=datetime.now(UTC), due=spec.due)


async def _prepare(run: Run, joining: Joining, sample: Sequence[str]) -> list[tuple[Server, RunSetup]]:
    """Check that servers and models can do what is asked, and fix how.

    Args:
        run: before its first row.
        joining: checks the servers.
        sample: the first prompts.

    Returns:
        The servers that the run begins with, one at least, and what the requests to each have in common.

    Raises:
        InputError: there is nothing to merge, or it was made with other settings.
        ModelChangedError: a digest is not the demanded one.
        OllamaError: the server does not answer, or a model cannot do what is asked.
        NoServerError: the same of all servers, where there are several.
    """
    spec, manifest = run.spec, run.manifest
    if spec.mode == "merge":  # no request: the shards' runs have fixed it
        provenance = manifests.merged_provenance(run.storage, manifest, spec.common())
        task = preflight.task_of(spec)
        setup = RunSetup(
            task,
            preflight.keys_of(task, provenance.digest),
            preflight.validator_of(spec, task, provenance.server, provenance.server_version),
            provenance,
            manifest.num_ctx,
        )
        setups = [(run.servers[0], setup)]
    else:
        earlier = await asyncio.to_thread(manifests.earlier_digest, run.storage, manifest)
        (first, checked), *others = await joining.first(earlier)
        setup = preflight.run_setup(spec, sample, manifest.num_ctx, first.state.name, checked)
        setups = [(first, setup)]
        for server, says in others:
            setups.append((server, preflight.setup_at(spec, setup.num_ctx, server.state.name, says)))
    for _, each in setups:
        run.checkpoints.set_provenance(each.provenance)
    return setups


async def _vector_length(run: Run, setups: Sequence[tuple[Server, RunSetup]], sample: Sequence[str]) -> int | None:
    """Return how many numbers a vector has: one that is stored, or else one that is asked for now.

    So a night without new texts loads no model.

    Args:
        run: before its first row.
        setups: the servers that the run begins with, and what the requests to each have in common.
        sample: the first prompts.

    Returns:
        None in a merge, which asks nothing, if none of the sample is stored.

    Raises:
        OllamaError: no server gives a vector.
    """
    found = (run.journal.find(setups[0][1].keys.key(prompt)) for prompt in sample)
    if (number := next((number for number, state in found if state is State.OK), None)) is not None:
        part, offset = run.journal.place(number)
        (line,) = run.journal.lines([part << 40 | offset])
        return len(vector_numbers(next(vector_rows(line))["output"]))
    if run.spec.mode == "merge":
        return None
    for server, setup in setups[:-1]:
        with contextlib.suppress(OllamaError):
            return await server.control.vector_length(setup.task)
    last, setup = setups[-1]
    return await last.control.vector_length(setup.task)


async def _begin(run: Run, manifest: Manifest) -> Manifest:
    """Store the manifest of what the run is about to do, and return it.

    Raises:
        InputError: it is a shard's, and beside it are shards of a batch with other settings.
    """
    provenance = run.checkpoints.provenance
    manifest = replace(
        manifest,
        settings=run.spec.settings(),
        common=run.spec.common(),
        provenance=None if provenance is None else vars(provenance),
    )
    await asyncio.to_thread(manifests.begin, run.storage, manifest, run.names)
    return manifest


async def _seal_left_open(run: Run, setups: Sequence[RunSetup]) -> None:
    """Seal what killed runs left open, now that it is known which models the servers have. A merge has not asked."""
    used = [] if run.spec.mode == "merge" else [each for setup in setups for each in (setup.provenance, setup.fallback)]
    digests = {each.digest for each in used if each is not None and each.digest is not None}
    await asyncio.to_thread(run.journal.seal_left_open, digests)


# While requests are sent.


def _workers(run: Run, server: Server, setup: RunSetup) -> Workers:
    return Workers(
        run.scheduler,
        server,
        setup,
        checkpoints=run.checkpoints,
        recorder=OutcomeRecorder(run.checkpoints, run.counters, setup, run.report),
        counters=run.counters,
        location=run.storage.location,
    )


async def _join_later(run: Run, joining: Joining, server: Server, num_ctx: int | None) -> None:
    """Let a server take part as soon as it can; *num_ctx* is the context of the run, in tokens."""
    checked = await joining.later(server)
    if checked is not None:
        setup = preflight.setup_at(run.spec, num_ctx, server.state.name, checked)
        run.checkpoints.set_provenance(setup.provenance)
        await _workers(run, server, setup).run()


def _on_checkpoint(run: Run) -> None:
    if run.table is not None:
        run.table.on_checkpoint()
    run.scheduler.notify()


async def _report(run: Run) -> None:
    due = _now() + run.spec.pace.report_every
    while True:
        await asyncio.sleep(min(_TICK, run.spec.pace.report_every))
        progress = run.progress("running")
        run.on_progress(progress)
        _sample(run)
        if _now() < due:
            continue
        due += run.spec.pace.report_every
        logger.info("%s", progress.line())
        writing = asyncio.create_task(asyncio.to_thread(_save, run, progress))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on, and the end of the run writes the same files.
            await writing
            raise


async def _refresh_report(run: Run) -> None:
    while True:
        await asyncio.sleep(max(run.spec.pace.report_every, run.report.seldom))
        # The end of the run does not wait for it, but writes the page after it.
        await asyncio.to_thread(run.report.refresh, run.journal)


def _save(run: Run, progress: Progress) -> None:
    write(run.storage, run.names.progress, progress.as_json())
    run.report.save()


def _sample(run: Run) -> None:
    if run.spec.mode == "merge":  # the history is that of the shards
        return
    plan, now = run.scheduler.plan, _now()
    run.report.sample(
        now, rows=plan.ok + plan.failed, tokens=run.counters.tokens, in_flight=plan.in_flight, servers=run.shares(now)
    )


# After the last request.


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
    seconds, counters, plan = _now() - run.meter.began, run.counters, run.scheduler.plan
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


def _now() -> float:
    """Seconds of the event loop's clock, which never goes back."""
    return asyncio.get_running_loop().time()
