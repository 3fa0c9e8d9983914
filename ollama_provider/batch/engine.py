"""Does what the plan says, N at a time.

`run_batch` is the way in. Rows are read in one thread, parts are written in another, and requests are sent from an
event loop with one coroutine for each that may be in flight.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import OllamaError, OverloadedError
from ollama_provider.api.events import Listener
from ollama_provider.api.schemas import Metrics, Request
from ollama_provider.api.settings import Settings
from ollama_provider.batch import preflight, rounds, shards, sinks
from ollama_provider.batch.choice import Choice, choose
from ollama_provider.batch.concurrency import Climb, Fixed
from ollama_provider.batch.control import Control
from ollama_provider.batch.delivery import Delivery, NoDelivery
from ollama_provider.batch.embedding import PACK_CHARACTERS, FixedPack, PackSize
from ollama_provider.batch.errors import DirectoryBusyError, StorageError, TooManyFailedError
from ollama_provider.batch.intake import Intake, Prepared
from ollama_provider.batch.journal import Journal, State, shared_fields
from ollama_provider.batch.plan import Do, Plan, Verdict
from ollama_provider.batch.progress import Meter, Progress, Tally
from ollama_provider.batch.records import Outcome, Summary
from ollama_provider.batch.sealing import Sealing
from ollama_provider.batch.snapshot import write_down
from ollama_provider.batch.sources import Query, Rows, count_rows
from ollama_provider.batch.spec import BatchSpec, StoppedError, StopSignal
from ollama_provider.batch.storage import Storage, open_storage, write
from ollama_provider.batch.tables import results_of
from ollama_provider.batch.tickets import Ticket
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
            _Run(
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
        raise StorageError(
            f"{storage.location} cannot be written: {error.strerror or error}. What was sealed there is kept, and the "
            "next run goes on from it."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            lock.release()
        storage.close()


class _Run:
    """One run of a batch: what all its coroutines share."""

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
        self._shard = spec.the_shard()
        self._names = shards.Names() if self._shard is None else self._shard.names
        self._renew_lock = renew_lock
        self._on_progress = on_progress or (lambda _: None)
        self._stop = stop
        self._listener = listener
        self._model, _ = preflight.split_model(spec.model)
        self._rows = rows
        self._intake = Intake(spec, rows)
        self._delivery: Delivery | NoDelivery = NoDelivery()
        self._results = results_of(spec)
        self._order = sinks.Order(with_ids=spec.id_column is not None)
        if spec.concurrency != "auto":
            self._climb: Climb | Fixed = Fixed(spec.concurrency)
        else:
            # A server works on one text for a vector at a time: the second request is there when the first is done.
            self._climb = Climb() if spec.task != "embed" else Fixed(2)
        self._pack: PackSize | FixedPack = PackSize() if spec.task == "embed" else FixedPack()
        if spec.pack != "auto":
            self._pack = FixedPack(spec.pack)
        self._plan = Plan(spec.limits, interval=60 / spec.requests_per_minute if spec.requests_per_minute else 0.0)
        self._tally = Tally()
        self._of_fallback = ""
        self._more = True
        self._lost: Exception | None = None
        self._workers: set[int] = set()
        self._idle = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = ThreadPoolExecutor(1, "batch-rows")

    async def run(self) -> Summary:
        self._loop = asyncio.get_running_loop()
        keeper = self._loop.create_task(self._keep_lock())
        self._began = self._now()
        self._meter = Meter(self._began)
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._changed, self._hungry = asyncio.Event(), asyncio.Event()
        timeouts = self._settings.timeouts.model_copy(update={"first_token": self._spec.load_timeout})
        patient = self._settings.model_copy(update={"timeouts": timeouts})
        once = self._settings.model_copy(update={"max_attempts": 1})
        try:
            self._round = rounds.current_round(self._storage, self._spec.mode, self._names)
            self._journal = await asyncio.to_thread(
                Journal,
                self._storage,
                self._round.number,
                shard=None if self._shard is None else self._shard.name,
                keep_replies=self._spec.output_type is not None,
            )
            self._sealing = Sealing(
                self._journal,
                look_up_digest=lambda: self._control.digest(self._model),
                on_digest_change=self._spec.on_digest_change,
            )
            # What shards have asked goes into the table with the merge, which knows the place of each row.
            if self._spec.into is not None and self._shard is None:
                self._delivery = Delivery(
                    self._spec.into,
                    self._storage,
                    self._journal,
                    max_outage=self._spec.limits.max_outage,
                    pause=self._stop.pause,
                )
            async with (
                AsyncClient(patient, listener=self._listener) as control,
                AsyncClient(once, listener=self._listener, concurrency=self._climb.most) as self._client,
            ):
                self._control = Control(control)
                self._stop.subscribe(partial(self._loop.call_soon_threadsafe, self._on_stop))
                try:
                    reason = await self._work_until_over()
                finally:
                    if self._spec.unload_after and self._plan.sends:
                        await self._control.unload(self._model)
                return await self._finish(reason)
        finally:
            keeper.cancel()
            self._reader.shutdown(wait=False, cancel_futures=True)
            await self._delivery.close()
            self._order.close()

    async def _work_until_over(self) -> str:
        """Work until something ends it; whatever that was, close the requests and seal what there is."""
        self._spawn(self._work_through())
        try:
            await self._over
        except StoppedError as stopped:
            return str(stopped)
        except TooManyFailedError:
            # The batch ended by itself: what failed is asked again by the next run.
            await asyncio.to_thread(rounds.save, self._storage, self._round.next(), self._names)
            raise
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._sealing.close()
        return COMPLETE

    # What ends a run

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException | None = None) -> None:
        if not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)

    async def _keep_lock(self) -> None:
        """Show that the run is alive, to its very end: also while a model loads, or while the results are written."""
        while self._lost is None:
            await asyncio.sleep(_TICK)
            try:
                await asyncio.to_thread(self._renew_lock)
            except (DirectoryBusyError, OSError) as error:
                self._lost = error
                self._end(error)

    def _check(self) -> None:
        """Raise what ends a run while its results are written."""
        self._stop.check()
        if self._lost is not None:
            raise self._lost

    def _on_stop(self) -> None:
        self._end(StoppedError(self._stop.reason))

    async def _close_at(self, closing: datetime) -> None:
        """Send no row any more from that moment on; end when what is in flight is back."""
        await asyncio.sleep((closing - datetime.now(UTC)).total_seconds())
        self._plan.closed = True
        logger.info("The window closes: no new rows, %d requests are still in flight.", self._plan.in_flight)
        while self._plan.in_flight:
            await self._wait(0)
        self._end(StoppedError(f"the window closed at {closing.isoformat(timespec='minutes')}"))

    # Before the first row

    async def _work_through(self) -> None:
        sample = await self._read(self._intake.sample)
        if self._closing is not None:
            self._spawn(self._close_at(self._closing))
        if sample is not None:
            await self._delivery.open(self._intake.examples, self._spec.id_column)
            await (self._prepare_merge() if self._spec.mode == "merge" else self._prepare(sample))
        self._round = replace(
            self._round,
            settings=self._spec.settings(),
            common=self._spec.common(),
            provenance=None if self._sealing.provenance is None else vars(self._sealing.provenance),
        )
        await asyncio.to_thread(rounds.begin, self._storage, self._round, self._names)
        if sample is None:
            self._end()
            return
        self._spawn(self._sealing.at_times(self._spec.checkpoint_every, self._sealed))
        self._spawn(self._delivery.at_times(self._hungry.set))
        self._spawn(self._report())
        await self._feed()

    async def _read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._reader, work, *arguments)

    async def _prepare(self, sample: list[str]) -> None:
        """Learn what the server and the model are, and fix what is fixed for a run."""
        replies = await self._control.learn(self._model)
        host = self._settings.base_url
        found = preflight.conclude(self._spec, sample, self._round.num_ctx, host, replies)
        self._task, self._keys, self._judge = found.task, found.keys, found.judge
        self._round = replace(self._round, num_ctx=found.num_ctx)
        self._sealing.put_down_to(found.provenance)
        if self._spec.fallback_model is not None:
            name, _ = preflight.split_model(self._spec.fallback_model)
            replies = await self._control.learn(name)
            second = preflight.fallback_of(self._spec.fallback_model, self._task, found.provenance, replies, host)
            self._of_fallback = shared_fields(vars(second))

    async def _prepare_merge(self) -> None:
        """Fix what the shards had fixed; the server is not asked."""
        provenance = rounds.merged_provenance(self._storage, self._round, self._spec.common())
        self._task = preflight.task_of(self._spec)
        self._keys = preflight.keys_of(self._task, provenance.digest)
        self._judge = preflight.judge_of(self._spec, self._task, provenance.server, provenance.server_version)
        self._sealing.put_down_to(provenance)

    # Rows in

    async def _feed(self) -> None:
        """Read rows as they are needed, always one portion ahead."""
        self._spawn(self._count())
        portion = self._loop.create_task(self._read(self._intake.portion, self._keys))
        while rows := await portion:
            portion = self._loop.create_task(self._read(self._intake.portion, self._keys))
            for row in rows:
                self._take(row)
            if self._plan.waiting and not self._workers:
                await self._control.load(self._task)
                self._hire()
            self._wake()
            while self._plan.fresh > self._wanted or self._delivery.lags:
                self._hungry.clear()
                await self._hungry.wait()
        self._more = False
        self._meter.total = len(self._order)
        self._wake()
        if not self._workers:
            self._end()

    @property
    def _wanted(self) -> int:
        """Rows that must be at hand, so that no request waits for one."""
        return self._climb.target * self._pack.size

    async def _count(self) -> None:
        # The end of a run waits for this thread.
        total = await asyncio.to_thread(count_rows, self._rows, self._check_going_on)
        if self._shard is not None and total is not None:
            total //= self._shard.of  # about: a key tells whose a row is
        self._meter.total = self._meter.total or total

    def _check_going_on(self) -> None:
        if self._over.done():
            raise StoppedError

    def _take(self, row: Prepared) -> None:
        number, state = self._journal.find(row.key)
        match choose(state, self._spec.mode):
            case Choice.SKIP:
                self._tally.skipped += 1
                self._order.add(None, row.row_id)
                return
            case Choice.REUSE:
                self._tally.reused += 1
            case Choice.RUN if row.fault is not None:
                self._plan.unaskable()
                self._settle(Ticket(number, row.prompt), Outcome(key=row.key.hex(), status="failed", error=row.fault))
            case Choice.RUN if row.request_key is not None and self._answered_before(number, row):
                self._tally.reused += 1
                self._tally.revalidated += 1
            case Choice.RUN:
                self._journal.asked(number)
                self._plan.admit(self._ticket(number, row))
        fresh = state in {State.NEW, State.FAILED_BEFORE}
        self._delivery.expect(number, row.key, len(self._order), row.row_id, row.columns, fresh=fresh)
        self._order.add(number, row.row_id)

    def _ticket(self, number: int, row: Prepared) -> Ticket:
        request_key = None if row.request_key is None else row.request_key.hex()
        alone = self._task.goes_alone(row.prompt)
        return Ticket(number, row.prompt, row.images, row.key.hex(), request_key, packed=alone)

    def _answered_before(self, number: int, row: Prepared) -> bool:
        """Use the raw reply of an earlier run, with another schema, if it fits the new one."""
        line = self._journal.kept(row.request_key or b"")
        found = line and self._judge.revalidate(row.key.hex(), line)
        if not found:
            return False
        self._sealing.add(number, *found)
        return True

    # Requests out

    def _hire(self) -> None:
        """Have as many workers as there may be requests in flight."""
        for slot in range(self._climb.target):
            if slot not in self._workers:
                self._workers.add(slot)
                self._spawn(self._work(slot))

    def _sealed(self) -> None:
        self._delivery.sealed()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def _work(self, slot: int) -> None:
        try:
            while slot < self._climb.target and not self._over.done():
                step = self._plan.next(self._now(), self._climb.target, more=self._more)
                if step.do is Do.SEND and step.ticket is not None:
                    await self._send(step.ticket)
                elif not self._more and not self._plan.unfinished:
                    break
                else:
                    await self._wait(step.until)
        finally:
            self._workers.discard(slot)
        if not self._workers and not self._more:
            self._end()

    def _now(self) -> float:
        return self._loop.time()

    async def _wait(self, until: float) -> None:
        """Wait until something changes, or until that moment (0 is never)."""
        self._idle += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until or None):
                    await self._changed.wait()
        finally:
            self._idle -= 1

    async def _send(self, ticket: Ticket) -> None:
        """Ask for one row, or a pack of them, and do what follows from the answer."""
        if self._pack.size > 1:
            self._plan.fill(ticket, self._pack.size, PACK_CHARACTERS)
        if self._plan.fresh <= self._wanted:
            self._hungry.set()
        target, began = self._climb.target, self._now()
        reply: Metrics | None = None
        try:
            request: Request[Any] = self._task.request(ticket)
            reply = await self._client.send(request)
            seconds = self._now() - began
            outcomes = self._judge.accept(ticket, request, reply, seconds)
        except OllamaError as error:
            self._failed(ticket, error, reply, self._now() - began)
        else:
            self._plan.succeeded(ticket)
            self._pack.observe(len(outcomes), seconds)
            if not ticket.form.fallback:
                self._climb.observe(target, seconds, reply.queue_seconds, outcomes[0].tokens)
            self._settle(ticket, outcomes[0])
            if ticket.riders:  # what a pack took is known of it as a whole
                self._tally.prompt_tokens += reply.prompt_eval_count
            for rider, outcome in zip(ticket.riders, outcomes[1:], strict=True):
                self._settle(rider, outcome)
            if self._climb.target > len(self._workers):
                self._hire()
        if self._idle:
            self._wake()
        while self._sealing.lags:
            await self._wait(0)

    def _failed(self, ticket: Ticket, error: OllamaError, reply: Metrics | None, seconds: float) -> None:
        form = self._judge.another_form(ticket, error, reply)
        if form is not None:
            again = self._plan.postpone if form.fallback and not ticket.form.fallback else self._plan.again
            ticket.form = form
            again(ticket)
            return
        if self._judge.ends_batch(error):
            self._end(error)
            return
        pauses = self._plan.generation
        match self._plan.failure(ticket, error, self._now(), final=self._judge.is_final(error)):
            case Verdict.STOP:
                self._end(error)
            case Verdict.FAILED:
                self._settle(ticket, self._judge.reject(ticket, error, reply, seconds))
        if self._plan.generation != pauses:
            logger.warning("Everybody waits %.0f s, no row is lost: %s", self._plan.pause, error)
            if isinstance(error, OverloadedError):
                self._climb.overloaded()

    def _settle(self, ticket: Ticket, outcome: Outcome) -> None:
        self._sealing.add(ticket.number, outcome, self._of_fallback if ticket.form.fallback else None)
        self._tally.add(outcome)
        if outcome.error is not None and self._plan.hopeless():
            self._end(
                TooManyFailedError(
                    f"All of the first {self._plan.failed} rows failed ({self._tally.reasons()}), so the rest was not "
                    f"asked. What was sealed is in {self._storage.location}/parts."
                )
            )

    # Where it stands

    async def _report(self) -> None:
        due = self._now() + self._spec.report_every
        while True:
            await asyncio.sleep(min(_TICK, self._spec.report_every))
            progress = self._progress("running")
            self._on_progress(progress)
            if self._now() >= due:
                due += self._spec.report_every
                logger.info("%s", progress.line())
                await asyncio.to_thread(write, self._storage, self._names.progress, progress.as_json())

    def _progress(self, state: str) -> Progress:
        return self._meter.read(
            self._now(),
            ok=self._plan.ok,
            failed=self._plan.failed,
            reused=self._tally.reused,
            tokens=self._tally.tokens,
            concurrency=self._plan.bound(self._climb.target),
            state=state,
        )

    async def _finish(self, reason: str) -> Summary:
        failed = self._plan.failed
        if reason == COMPLETE:
            try:
                refused = await self._delivery.finish()
                self._tally.errors.update(error["class"] for error in refused.values())
                if self._shard is not None:
                    failed = sum(self._journal.state(number) is State.FAILED for _, number, _ in self._order.rows())
                    failed += len(refused)
                else:
                    failed = await asyncio.to_thread(
                        sinks.write_results,
                        self._storage,
                        self._journal,
                        self._order,
                        self._results,
                        self._check,
                        refused=refused,
                    )
            except StoppedError as stopped:
                reason = str(stopped)
        if reason == COMPLETE and self._tally.skipped:
            reason = "rows that were never asked were left alone"
        summary = self._summary(reason, failed)
        if summary.complete:
            await asyncio.to_thread(write, self._storage, self._names.summary, summary.as_json())
            if self._shard is None:
                await asyncio.to_thread(shards.forget, self._storage)
        progress = self._progress(COMPLETE if summary.complete else "incomplete")
        self._on_progress(progress)
        logger.info("%s", progress.line())
        await asyncio.to_thread(write, self._storage, self._names.progress, progress.as_json())
        if summary.complete and self._spec.limits.too_many(failed, summary.rows):
            raise TooManyFailedError(
                f"{failed} of {summary.rows} rows failed ({self._tally.reasons()}); all others have their results. "
                + (f"See {self._storage.location}/{sinks.FAILED}." if self._shard is None else "The merge lists them."),
                summary,
            )
        return summary

    def _summary(self, reason: str, failed: int) -> Summary:
        seconds = self._now() - self._began
        rows, ok, tally = len(self._order), self._plan.ok - self._delivery.refused_fresh, self._tally
        progress = self._progress(reason)
        return Summary(
            complete=reason == COMPLETE,
            reason=reason,
            directory=self._storage.location,
            rows=rows,
            ok=ok,
            failed=failed,
            reused=rows - ok - failed - tally.skipped if reason == COMPLETE else tally.reused,
            written=self._delivery.written,
            skipped=tally.skipped,
            revalidated=tally.revalidated,
            ladder=tally.ladder,
            left=None if progress.total is None or reason == COMPLETE else max(0, progress.total - progress.done),
            seconds_left=None if reason == COMPLETE else progress.eta,
            requests=self._plan.sends,
            prompt_tokens=tally.prompt_tokens,
            tokens=tally.tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(tally.tokens / seconds, 1),
            concurrency=self._climb.target,
            errors=dict(tally.errors),
            provenance=self._sealing.provenance,
        )
