"""Does what the plan says, N at a time.

`run_batch` is the way in. Rows are read in one thread, parts are written in another, and requests are sent from an
event loop with one coroutine for each that may be in flight.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch import preflight, rounds, shards
from ollama_provider.batch.control import Control
from ollama_provider.batch.errors import (
    BatchError,
    DirectoryBusyError,
    StorageError,
    SystemRefusedError,
    TooManyFailedError,
)
from ollama_provider.batch.feeding import Feed
from ollama_provider.batch.finishing import COMPLETE, finish
from ollama_provider.batch.group import Group
from ollama_provider.batch.intake import Intake
from ollama_provider.batch.preparing import begin, prepare
from ollama_provider.batch.progress import Progress
from ollama_provider.batch.records import Summary
from ollama_provider.batch.run import open_run
from ollama_provider.batch.snapshot import write_down
from ollama_provider.batch.sources import Query, Rows
from ollama_provider.batch.spec import BatchSpec, StoppedError, StopSignal
from ollama_provider.batch.storage import Storage, open_storage, write
from ollama_provider.batch.tables import results_of
from ollama_provider.batch.window import closing_time
from ollama_provider.batch.workers import Workers

logger = logging.getLogger(__name__)

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
        directory: where the results go; see `ollama_provider.batch.storage.open_storage`.
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
        rows = write_down(spec.rows, storage, stop.pause, lock.renew) if isinstance(spec.rows, Query) else spec.rows
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
        raise _told(error, storage.location) from error
    finally:
        with contextlib.suppress(OSError):
            lock.release()
        storage.close()


#: Modules that work on the directory.
_STORE = frozenset(f"{__package__}.{name}" for name in ("storage", "locks", "journal", "sinks", "tables", "ledger"))


def _told(error: OSError, location: str) -> BatchError:
    """Return what a refusal of the operating system means to the run: only those of the directory are the directory's.

    Both kinds look alike (a disk that is full, too many open files); which of our modules was at work tells.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in frames if name.startswith(f"{__package__}.")]
    words, kept = (
        error.strerror or str(error) or type(error).__name__,
        "What was sealed there is kept, and the next run goes on from it.",
    )
    if ours[-1] in _STORE:
        return StorageError(f"{location} cannot be written: {words}. {kept}")
    return SystemRefusedError(f"{ours[-1]} cannot go on: {words} ({type(error).__name__}).")


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
        self._intake = Intake(spec, rows)
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
            self._feed = Feed(self._run, self._rows, self._intake, self._group)
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
            self._control = Control(control)
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
            await asyncio.to_thread(rounds.save, self._storage, self._run.round.next(), self._run.names)
            raise
        finally:
            await self._group.close()
            await self._run.sealing.close()
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
        await run.delivery.open(self._intake.examples, self._spec.id_column)
        found = await prepare(run, sample, self._settings.base_url, self._control)
        await begin(run)
        self._workers = Workers(run, found, self._client, self._control, self._group)
        self._group.spawn(run.sealing.at_times(self._spec.checkpoint_every, self._sealed))
        self._group.spawn(run.delivery.at_times(self._workers.hungry.set))
        self._group.spawn(self._report())
        await self._feed.give(self._workers, found)

    def _sealed(self) -> None:
        self._run.delivery.sealed()
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
            except (DirectoryBusyError, OSError) as error:
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
