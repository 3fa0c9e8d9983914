"""Rows in: each is reused, left alone, failed at once, or put into the plan."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.choice import Choice, choose
from ollama_provider.batch.group import Group
from ollama_provider.batch.intake import Intake, Prepared
from ollama_provider.batch.journal import State
from ollama_provider.batch.preflight import Findings
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.run import Run
from ollama_provider.batch.sources import Rows, count_rows
from ollama_provider.batch.spec import StoppedError
from ollama_provider.batch.tickets import Ticket
from ollama_provider.batch.workers import Workers


class Feed:
    """Reads rows as they are needed, in a thread of its own.

    Args:
        run: whose rows they are.
        rows: the input.
        intake: reads and renders it.
        group: what the reading belongs to.
    """

    def __init__(self, run: Run, rows: Rows, intake: Intake, group: Group) -> None:
        self._run = run
        self._rows = rows
        self._intake = intake
        self._group = group
        self._reader = ThreadPoolExecutor(1, "batch-rows")

    async def sample(self) -> list[str] | None:
        """See `Intake.sample`."""
        prompts: list[str] | None = await self._read(self._intake.sample)
        return prompts

    async def give(self, workers: Workers, found: Findings) -> None:
        """Give all rows to the workers, always one portion ahead.

        Args:
            workers: ask for them; told to start with the first row that must be asked.
            found: what is fixed for the run.

        Raises:
            InputError: the input cannot be read; or a row cannot, and the policy is to fail then.
            OllamaError: the model cannot be loaded.
        """
        plan, delivery = self._run.plan, self._run.delivery
        self._group.spawn(self._count())
        portion = asyncio.create_task(self._read(self._intake.portion, found.keys))
        while rows := await portion:
            portion = asyncio.create_task(self._read(self._intake.portion, found.keys))
            for row in rows:
                self._take(row, workers, found)
            if plan.waiting and not workers.at_work:
                await workers.start()
            workers.wake()
            while plan.fresh > workers.wanted or delivery.lags:
                workers.hungry.clear()
                await workers.hungry.wait()
        self._run.meter.total = len(self._run.order)
        workers.no_more()

    def close(self) -> None:
        """Read no more."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)

    async def _count(self) -> None:
        # The end of a run waits for this thread.
        total = await asyncio.to_thread(count_rows, self._rows, self._check_going_on)
        if self._run.shard is not None and total is not None:
            total //= self._run.shard.of  # about: a key tells whose a row is
        self._run.meter.total = self._run.meter.total or total

    def _check_going_on(self) -> None:
        if self._group.over.done():
            raise StoppedError

    def _take(self, row: Prepared, workers: Workers, found: Findings) -> None:
        run = self._run
        number, state = run.journal.find(row.key)
        match choose(state, run.spec.mode):
            case Choice.SKIP:
                run.tally.skipped += 1
                run.order.add(None, row.row_id)
                return
            case Choice.REUSE if state is State.OK:
                run.tally.reused += 1
            case Choice.REUSE if state is State.ASKED:
                run.tally.shared.append(number)
            case Choice.REUSE:
                run.tally.failed_before += 1
            case Choice.RUN if row.fault is not None:
                run.plan.unaskable()
                workers.settle(Ticket(number, row.prompt), Outcome(key=row.key.hex(), status="failed", error=row.fault))
            case Choice.RUN if row.request_key is not None and self._answered_before(number, row, found):
                run.tally.reused += 1
                run.tally.revalidated += 1
            case Choice.RUN:
                run.journal.asked(number)
                run.plan.admit(_ticket(number, row, alone=found.task.goes_alone(row.prompt)))
        fresh = state in {State.NEW, State.FAILED_BEFORE}
        run.delivery.expect(number, row.key, len(run.order), row.row_id, row.columns, fresh=fresh)
        run.order.add(number, row.row_id)

    def _answered_before(self, number: int, row: Prepared, found: Findings) -> bool:
        """Use the raw reply of an earlier run, with another schema, if it fits the new one."""
        line = self._run.journal.kept(row.request_key or b"")
        answer = line and found.judge.revalidate(row.key.hex(), line)
        if not answer:
            return False
        try:
            self._run.sealing.add(number, *answer)
        except RejectedReplyError:
            return False
        return True


def _ticket(number: int, row: Prepared, *, alone: bool) -> Ticket:
    request_key = None if row.request_key is None else row.request_key.hex()
    return Ticket(number, row.prompt, row.images, row.key.hex(), request_key, packed=alone)
