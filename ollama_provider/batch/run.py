"""One run of a batch, from its first look at the directory to the summary.

1. `run_batch` takes the lock of the directory, and fetches the rows if they come from a query.
2. `open_run` reads what earlier runs left in the directory.
3. `request_all` checks server and model, and sends requests until every row has an outcome in a checkpoint.
4. `finish` writes results, summary and the last progress, and `end_report` the report.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.finishing import end_report, finish
from ollama_provider.batch.opening import open_directory, open_run
from ollama_provider.batch.records import Query, Rows, Summary
from ollama_provider.batch.results import files
from ollama_provider.batch.results.progress import Progress
from ollama_provider.batch.rows.reader import RowReader
from ollama_provider.batch.rows.snapshot import fetch_once
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.scheduling.background import renewing
from ollama_provider.batch.scheduling.connections import connect
from ollama_provider.batch.sending import request_all, unload
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.stop import StoppedError, StopSignal
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.storage import Storage
from ollama_provider.batch.window import closing_time

logger = logging.getLogger(__name__)


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
            # Before there is an event loop: Airflow's object stores may run one of their own to open a connection.
            reader = RowReader(spec, read_rows(rows, spec.input_options))
            return asyncio.run(
                _run(
                    spec,
                    reader,
                    rows,
                    settings,
                    storage,
                    lock=lock,
                    closing=closing,
                    on_progress=on_progress or (lambda _: None),
                    stop=stop,
                    listener=listener,
                    trace_rows=trace_rows,
                )
            )
        except StoppedError as stopped:  # before anything was done
            return Summary(complete=False, reason=str(stopped), directory=storage.location)


async def _run(
    spec: BatchSpec,
    reader: RowReader,
    rows: Rows,
    settings: Settings,
    storage: Storage,
    *,
    lock: shards.RunLock,
    closing: datetime | None,
    on_progress: Callable[[Progress], None],
    stop: StopSignal,
    listener: Listener | None,
    trace_rows: float,
) -> Summary:
    """Open the directory, send requests until every row has an outcome, and write the results."""
    results = files.results_format(spec)
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
            summary = await finish(run, reason, results, renewal)
        except BaseException as error:
            await end_report(run, renewal, getattr(error, "summary", None), error=error)
            raise
        await end_report(run, renewal, summary)
        return summary


def _window_end(spec: BatchSpec) -> datetime | None:
    window = spec.window
    if window.stop_at is None:
        return None
    return closing_time(window.stop_at, window.timezone, now=datetime.now(UTC), due=spec.due)
