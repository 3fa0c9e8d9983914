"""The part of a run in which requests are sent: from the check of servers and models to the last stored outcome."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.opening import Run
from ollama_provider.batch.records import COMPLETE, Vectors
from ollama_provider.batch.requests import preflight
from ollama_provider.batch.requests.preflight import RunSetup
from ollama_provider.batch.results.json_lines import vector_numbers, vector_rows
from ollama_provider.batch.results.progress import Progress
from ollama_provider.batch.rows.reader import RowReader
from ollama_provider.batch.scheduling.background import LockRenewal, background_tasks, close_window
from ollama_provider.batch.scheduling.connections import Server
from ollama_provider.batch.scheduling.input_queue import InputQueue, estimate_total
from ollama_provider.batch.scheduling.joining import Joining
from ollama_provider.batch.scheduling.outcomes import OutcomeRecorder
from ollama_provider.batch.scheduling.workers import Workers
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.stop import StoppedError
from ollama_provider.batch.store import manifest as manifests
from ollama_provider.batch.store.journal import State
from ollama_provider.batch.store.manifest import Manifest
from ollama_provider.batch.store.storage import write

logger = logging.getLogger(__name__)

#: Seconds between two calls of `on_progress`.
_TICK = 1.0


async def request_all(run: Run, reader: RowReader, rows: Any, renewal: LockRenewal, *, closing: datetime | None) -> str:
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


# Before the first request.


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
    due = run.now() + run.spec.pace.report_every
    while True:
        await asyncio.sleep(min(_TICK, run.spec.pace.report_every))
        progress = run.progress("running")
        run.on_progress(progress)
        run.sample_history()
        if run.now() < due:
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
        await asyncio.get_running_loop().run_in_executor(run.report.thread, run.report.refresh, run.journal)


def _save(run: Run, progress: Progress) -> None:
    write(run.storage, run.names.progress, progress.as_json())
    run.report.save()


# After the last request.


async def unload(spec: BatchSpec, servers: Sequence[Server]) -> None:
    """Unload the model from the servers that have loaded it, if the batch is to do that at its end."""
    if spec.window.unload_after:
        name, _ = preflight.split_model(spec.model)
        loaded = [server.control for server in servers if server.control.has_loaded]
        await asyncio.gather(*(control.unload(name) for control in loaded))
