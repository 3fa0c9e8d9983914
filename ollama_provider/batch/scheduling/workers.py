"""Coroutines that end together."""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import OllamaError, OverloadedError, RejectedReplyError, UnforeseenError
from ollama_provider.api.schemas import Metrics, Request
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.records import Outcome, Rows
from ollama_provider.batch.requests.embedding import PACK_CHARACTERS
from ollama_provider.batch.requests.preflight import ModelControl, RunSetup
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.rows.reader import PreparedRow, RowReader
from ollama_provider.batch.rows.sources import count_rows
from ollama_provider.batch.scheduling.plan import Choice, Do, Verdict, choose
from ollama_provider.batch.scheduling.state import Run
from ollama_provider.batch.stop import StoppedError
from ollama_provider.batch.store.journal import State, shared_fields


class Group:
    """Coroutines that all end when one of them fails, or when somebody says that it is over."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Done when it is over, with what ended it.
        self.over: asyncio.Future[None] = self._loop.create_future()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have *work* done beside the others."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Say that it is over, and why; None is a good end. Only the first word counts."""
        if not self.over.done():
            if error is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(error)

    async def close(self) -> None:
        """Cancel what is still at work, and wait until it has gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# FROM batch.workers: Requests out, one coroutine for each that may be in flight; and what follows from the answers.

logger = logging.getLogger(__name__)


class Workers:
    """Sends what the plan says until nothing is left, and then says that the run is over.

    Args:
        run: whose rows are asked.
        setup: what is fixed for it.
        client: makes one attempt for a request; it is the plan that tries again.
        control: loads the model.
        group: what the workers belong to.
    """

    def __init__(self, run: Run, setup: RunSetup, client: AsyncClient, control: ModelControl, group: Group) -> None:
        self._plan, self._climb, self._pack = run.plan, run.climb, run.pack
        self._checkpoints, self._counters = run.checkpoints, run.counters
        self._now = run.clock
        self._location = run.storage.location
        self._task, self._validator = setup.task, setup.validator
        self._of_fallback = "" if setup.fallback is None else shared_fields(vars(setup.fallback))
        self._client = client
        self._control = control
        self._group = group
        self._slots: set[int] = set()
        self._unforeseen: set[str] = set()
        self._more = True
        self._idle = 0
        self._changed = asyncio.Event()
        #: Set when more rows are needed.
        self.hungry = asyncio.Event()

    @property
    def at_work(self) -> bool:
        """There is at least one."""
        return bool(self._slots)

    @property
    def wanted(self) -> int:
        """Rows that must be at hand, so that no request waits for one."""
        return self._climb.target * self._pack.size

    async def start(self) -> None:
        """Load the model and begin.

        Raises:
            OllamaError: it cannot be loaded.
        """
        await self._control.load(self._task)
        self._hire()

    def no_more(self) -> None:
        """Say that all rows have been read."""
        self._more = False
        self.wake()
        if not self._slots:
            self._group.end()

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed.clear()

    async def wait(self, until: float = 0.0) -> None:
        """Wait until something changes, or until that moment (0 is never)."""
        self._idle += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until or None):
                    await self._changed.wait()
        finally:
            self._idle -= 1

    def settle(self, item: WorkItem, outcome: Outcome) -> None:
        """Record the outcome of a row that failed. Stops the batch early when the first rows asked all did."""
        self._record(item, outcome)
        self._end_if_hopeless()

    def _end_if_hopeless(self) -> None:
        if self._plan.hopeless():
            self._group.end(
                TooManyFailedError(
                    f"All of the first {self._plan.failed - self._plan.unasked} rows that were asked failed "
                    f"({self._counters.reasons()}), so the rest was not asked. What was sealed is in "
                    f"{self._location}/parts."
                )
            )

    def _record(self, item: WorkItem, outcome: Outcome) -> bool:
        """Record the outcome of a row; tell whether it is a good one. What cannot be written down is a failed row."""
        shared = self._of_fallback if item.variant.fallback else None
        try:
            self._checkpoints.add(item.number, outcome, shared)
        except Exception as error:  # a model's answer may hold anything
            told = error if isinstance(error, OllamaError) else self._explain(error, "writing down its result")
            outcome = self._without_reply(item, told)
            self._checkpoints.add(item.number, outcome, shared)
        self._counters.add(outcome)
        return outcome.status == "ok"

    def _without_reply(self, item: WorkItem, error: OllamaError) -> Outcome:
        return self._validator.reject(item, error, None, 0.0)

    def _explain(self, error: Exception, doing: str) -> UnforeseenError:
        """Make an error of the row of an exception that nobody foresaw; the first of a kind is logged in full."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "an unknown place"
        kind = f"{type(error).__name__} in {place}"
        if kind not in self._unforeseen:
            self._unforeseen.add(kind)
            # Without the exception's own text, which may quote the prompt or the answer.
            logger.error(
                "A row failed for a reason that nobody foresaw: %s, while %s. Please report this; rows that fail in "
                "the same way are not logged again.\n%s",
                kind,
                doing,
                "".join(traceback.format_tb(error.__traceback__)),
            )
        return UnforeseenError(f"{kind}, while {doing}", host=self._client.settings.base_url, model=self._task.model)

    def _hire(self) -> None:
        """Have as many workers as there may be requests in flight."""
        for slot in range(self._climb.target):
            if slot not in self._slots:
                self._slots.add(slot)
                self._group.spawn(self._work(slot))

    async def _work(self, slot: int) -> None:
        try:
            while slot < self._climb.target and not self._group.over.done():
                step = self._plan.next(self._now(), self._climb.target, more=self._more)
                if step.do is Do.SEND and step.item is not None:
                    await self._send(step.item)
                elif not self._more and not self._plan.unfinished:
                    break
                else:
                    await self.wait(step.until)
        finally:
            self._slots.discard(slot)
        if not self._slots and not self._more:
            self._group.end()

    async def _send(self, item: WorkItem) -> None:
        """Ask for one row, or a pack of them, and do what follows from the answer."""
        if self._pack.size > 1:
            self._plan.fill(item, self._pack.size, PACK_CHARACTERS)
        if self._plan.fresh <= self.wanted:
            self.hungry.set()
        target, began = self._climb.target, self._now()
        reply: Metrics | None = None
        doing = "asking for it"
        try:
            if self._plan.in_doubt(item) and not await self._is_server_well(item):
                return
            request: Request[Any] = self._task.request(item)
            reply = await self._client.send(request)
            seconds, doing = self._now() - began, "judging its answer"
            outcomes = self._validator.accept(item, request, reply, seconds)
            waited = reply.queue_seconds
        except OllamaError as error:
            self._failed(item, error, reply, self._now() - began)
        except Exception as error:  # whatever an odd answer may cause, it is this row's
            self._failed(item, self._explain(error, doing), None, self._now() - began)
        else:
            pack = (item, *item.rest)
            good = [self._record(each, outcome) for each, outcome in zip(pack, outcomes, strict=True)]
            self._plan.succeeded(item, failed=good.count(False))
            self._end_if_hopeless()
            self._pack.observe(len(outcomes), seconds)
            if not item.variant.fallback:
                self._climb.observe(target, seconds, waited, outcomes[0].tokens)
            if item.rest:  # what a pack took is known of it as a whole
                self._counters.prompt_tokens += reply.prompt_eval_count
            if self._climb.target > len(self._slots):
                self._hire()
        finally:
            if self._idle:
                self.wake()
        while self._checkpoints.lags:
            await self.wait()

    async def _is_server_well(self, item: WorkItem) -> bool:
        """Ask the server for something that is no row's before a row goes again with which it failed."""
        try:
            await self._client.send(self._task.load())
        except OllamaError as error:
            pauses = self._plan.generation
            if self._plan.is_not_well(item, error, self._now()) is Verdict.STOP:
                self._group.end(error)
            else:
                self._tell_of_pause(error, pauses)
            return False
        self._plan.is_well()
        return True

    def _failed(self, item: WorkItem, error: OllamaError, reply: Metrics | None, seconds: float) -> None:
        try:
            variant = self._validator.next_variant(item, error, reply)
        except Exception as unforeseen:
            variant, error, reply = None, self._explain(unforeseen, "looking for another way to ask"), None
        if variant is not None:
            again = self._plan.postpone if variant.fallback and not item.variant.fallback else self._plan.again
            item.variant = variant
            again(item)
            return
        if self._validator.ends_batch(error, answered=bool(self._plan.ok)):
            self._group.end(error)
            return
        pauses = self._plan.generation
        match self._plan.failure(item, error, self._now(), final=self._validator.is_final(error)):
            case Verdict.STOP:
                self._group.end(error)
            case Verdict.AGAIN:
                self._tell_of_pause(error, pauses)
            case Verdict.FAILED:
                try:
                    outcome = self._validator.reject(item, error, reply, seconds)
                except Exception as unforeseen:
                    outcome = self._without_reply(item, self._explain(unforeseen, "keeping its answer"))
                self.settle(item, outcome)

    def _tell_of_pause(self, error: OllamaError, pauses: int) -> None:
        if self._plan.generation != pauses:
            logger.warning("Everybody waits %.0f s, no row is lost: %s", self._plan.pause, error)
            if isinstance(error, OverloadedError):
                self._climb.overloaded()


# FROM batch.feeding: Rows in: each is reused, left alone, failed at once, or put into the plan.


class Feed:
    """Reads rows as they are needed, in a thread of its own.

    Args:
        run: whose rows they are.
        rows: the input.
        reader: reads and renders it.
        group: what the reading belongs to.
    """

    def __init__(self, run: Run, rows: Rows, reader: RowReader, group: Group) -> None:
        self._run = run
        self._rows = rows
        self._reader = reader
        self._group = group
        self._thread = ThreadPoolExecutor(1, "batch-rows")

    async def sample(self) -> list[str] | None:
        """See `RowReader.sample`."""
        prompts: list[str] | None = await self._read(self._reader.sample)
        return prompts

    async def give(self, workers: Workers, setup: RunSetup) -> None:
        """Give all rows to the workers, always one portion ahead.

        Args:
            workers: ask for them; told to start with the first row that must be asked.
            setup: what is fixed for the run.

        Raises:
            InputError: the input cannot be read; or a row cannot, and the policy is to fail then.
            OllamaError: the model cannot be loaded.
        """
        plan, table_writer = self._run.plan, self._run.table_writer
        self._group.spawn(self._count())
        portion = asyncio.create_task(self._read(self._reader.next_chunk, setup.keys))
        while rows := await portion:
            portion = asyncio.create_task(self._read(self._reader.next_chunk, setup.keys))
            for row in rows:
                self._take(row, workers, setup)
            if plan.waiting and not workers.at_work:
                await workers.start()
            workers.wake()
            while plan.fresh > workers.wanted or (table_writer is not None and table_writer.is_behind):
                workers.hungry.clear()
                await workers.hungry.wait()
        self._run.meter.total = len(self._run.order)
        workers.no_more()

    def close(self) -> None:
        """Read no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _count(self) -> None:
        # The end of a run waits for this thread.
        total = await asyncio.to_thread(count_rows, self._rows, self._check_going_on)
        if self._run.shard is not None and total is not None:
            total //= self._run.shard.of  # about: a key tells whose a row is
        self._run.meter.total = self._run.meter.total or total

    def _check_going_on(self) -> None:
        if self._group.over.done():
            raise StoppedError

    def _take(self, row: PreparedRow, workers: Workers, setup: RunSetup) -> None:
        run = self._run
        number, state = run.journal.find(row.key)
        match choose(state, run.spec.mode):
            case Choice.SKIP:
                run.counters.skipped += 1
                run.order.add(None, row.row_id)
                return
            case Choice.REUSE if state is State.OK:
                run.counters.reused += 1
            case Choice.REUSE if state is State.REQUESTED:
                run.counters.shared.append(number)
            case Choice.REUSE:
                run.counters.failed_before += 1
            case Choice.RUN if row.fault is not None:
                run.plan.unaskable()
                workers.settle(
                    WorkItem(number, row.prompt), Outcome(key=row.key.hex(), status="failed", error=row.fault)
                )
            case Choice.RUN if row.request_key is not None and self._answered_before(number, row, setup):
                run.counters.reused += 1
                run.counters.revalidated += 1
            case Choice.RUN:
                run.journal.mark_requested(number)
                run.plan.admit(_work_item(number, row, alone=setup.task.needs_own_request(row.prompt)))
        if run.table_writer is not None:
            fresh = state in {State.NEW, State.FAILED_BEFORE}
            run.table_writer.add(number, row.key, len(run.order), row.row_id, row.columns, fresh=fresh)
        run.order.add(number, row.row_id)

    def _answered_before(self, number: int, row: PreparedRow, setup: RunSetup) -> bool:
        """Use the raw reply of an earlier run, with another schema, if it fits the new one."""
        line = self._run.journal.find_reply(row.request_key or b"")
        answer = line and setup.validator.revalidate(row.key.hex(), line)
        if not answer:
            return False
        try:
            self._run.checkpoints.add(number, *answer)
        except RejectedReplyError:
            return False
        return True


def _work_item(number: int, row: PreparedRow, *, alone: bool) -> WorkItem:
    request_key = None if row.request_key is None else row.request_key.hex()
    return WorkItem(number, row.prompt, row.images, row.key.hex(), request_key, pack_closed=alone)
