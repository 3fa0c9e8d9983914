"""From the input to the plan: each row is reused, left alone, failed at once, or queued for a request."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from types import TracebackType
from typing import Self

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.records import Mode, Outcome, Rows
from ollama_provider.batch.requests.preflight import RunSetup
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.progress import Counters, ProgressMeter
from ollama_provider.batch.results.table import TableWriter
from ollama_provider.batch.rows.reader import PreparedRow, RowReader, Sample
from ollama_provider.batch.rows.sources import count_rows
from ollama_provider.batch.scheduling.outcomes import OutcomeRecorder
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.spec import Shard
from ollama_provider.batch.stop import StoppedError
from ollama_provider.batch.store.checkpoints import Checkpoints
from ollama_provider.batch.store.journal import Journal, State


class Choice(Enum):
    """What to do with a row that was just read."""

    RUN = auto()
    #: Its outcome is known, or its request is queued already.
    REUSE = auto()
    #: Leave it alone: it has no outcome, and only failed rows are to be requested.
    SKIP = auto()


def choose(state: State, mode: Mode) -> Choice:
    """Return what to do with a row, from what the journal knows of its key."""
    match state:
        case State.NEW:
            return Choice.RUN if mode in {"all", "rehearse"} else Choice.SKIP
        case State.FAILED_BEFORE:
            return Choice.REUSE if mode == "merge" else Choice.RUN
        case State.FAILED if mode == "rehearse":  # in an earlier one, or just now for an equal row
            return Choice.RUN
        case _:
            return Choice.REUSE


class InputQueue:
    """Reads the input ahead of the workers, and queues the rows that need a request.

    Use it as an asynchronous context manager: reading and rendering happen in a thread of its own.

    Args:
        reader: reads the rows and renders their prompts.
        scheduler: takes the rows that need a request, and says when it wants more.
        journal: knows the outcomes of earlier runs.
        checkpoints: take the outcomes of rows whose stored reply fits a new schema.
        order: takes all rows, in the order of the input.
        table: takes all rows that have, or will have, a result; None where there is no table.
        counters: count what is not asked.
        meter: is told how many rows there are.
        mode: which rows are asked.
    """

    def __init__(
        self,
        reader: RowReader,
        scheduler: Scheduler,
        journal: Journal,
        *,
        checkpoints: Checkpoints,
        order: RowOrder,
        table: TableWriter | None,
        counters: Counters,
        meter: ProgressMeter,
        mode: Mode,
    ) -> None:
        self._reader = reader
        self._scheduler = scheduler
        self._journal = journal
        self._checkpoints = checkpoints
        self._order = order
        self._table = table
        self._counters = counters
        self._meter = meter
        self._mode = mode
        self._thread = ThreadPoolExecutor(1, "batch-rows")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def sample(self) -> Sample | None:
        """Return a sample of the first rows; None if there are no rows."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.sample)

    async def fill(self, setup: RunSetup, recorder: OutcomeRecorder) -> None:
        """Read all rows, pausing while enough of them are queued.

        Args:
            setup: of the run.
            recorder: takes the outcomes of rows that cannot be asked.

        Raises:
            InputError: the input cannot be read; or a row cannot, and the policy is to fail then.
        """
        loop, scheduler = asyncio.get_running_loop(), self._scheduler
        coming = loop.run_in_executor(self._thread, self._reader.next_chunk, setup.keys)
        try:
            while rows := await coming:
                coming = loop.run_in_executor(self._thread, self._reader.next_chunk, setup.keys)
                for row in rows:
                    self._add(row, setup, recorder)
                scheduler.notify()
                while len(scheduler.plan.queue.new) > scheduler.rows_ahead or (self._table and self._table.is_behind):
                    await scheduler.wait_until_rows_wanted()
        finally:
            coming.cancel()
        self._meter.total = len(self._order)
        scheduler.more_input = False
        scheduler.notify()

    def _add(self, row: PreparedRow, setup: RunSetup, recorder: OutcomeRecorder) -> None:
        plan, counters = self._scheduler.plan, self._counters
        number, state = self._journal.find(row.key)
        match choose(state, self._mode):
            case Choice.SKIP:
                counters.skipped += 1
                self._order.add(None, row.row_id, row.kept)
                return
            case Choice.REUSE if state is State.OK:
                counters.reused += 1
                plan.reused += 1
            case Choice.REUSE if state is State.REQUESTED:
                counters.shared.append(number)
            case Choice.REUSE:
                counters.failed_before += 1
            case Choice.RUN if row.fault is not None:
                plan.add_failed()
                outcome = Outcome(key=row.key.hex(), status="failed", error=row.fault)
                recorder.record(WorkItem(number, row.prompt), outcome, asked=False)
            case Choice.RUN if row.request_key is not None and self._use_stored_reply(number, row, setup):
                counters.reused += 1
                counters.revalidated += 1
                plan.reused += 1
            case Choice.RUN:
                self._journal.mark_requested(number)
                plan.queue.new.append(_work_item(number, row, alone=setup.task.needs_own_request(row.prompt)))
        if self._table is not None:
            fresh = state in {State.NEW, State.FAILED_BEFORE}
            self._table.add(number, row.key, row.index, row.row_id, row.columns, fresh=fresh)
        self._order.add(number, row.row_id, row.kept)

    def _use_stored_reply(self, number: int, row: PreparedRow, setup: RunSetup) -> bool:
        """Use the reply that an earlier run got for the same request with another schema, if it fits the new one."""
        line = self._journal.find_reply(row.request_key or b"")
        answer = line and setup.validator.revalidate(row.key.hex(), line)
        if not answer:
            return False
        try:
            outcome, shared = answer
            self._checkpoints.add(number, outcome, shared=shared)
        except RejectedReplyError:
            return False
        return True


def _work_item(number: int, row: PreparedRow, *, alone: bool) -> WorkItem:
    request_key = None if row.request_key is None else row.request_key.hex()
    return WorkItem(number, row.prompt, row.images, row.key.hex(), request_key, pack_closed=alone)


async def estimate_total(rows: Rows, options: InputOptions, shard: Shard | None, meter: ProgressMeter) -> None:
    """Tell the meter how many rows there are, before all are read, where that is cheap to find out."""
    cancelled = False

    def check() -> None:  # the end of the event loop waits for the thread
        if cancelled:
            raise StoppedError

    try:
        total = await asyncio.to_thread(count_rows, rows, check, options)
    finally:
        cancelled = True
    if shard is not None and total is not None:
        total //= shard.of  # about: it depends on the keys
    meter.total = meter.total or total
