"""Requests out, one coroutine for each that may be in flight; and what follows from the answers."""

import asyncio
import contextlib
import logging
from typing import Any

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import OllamaError, OverloadedError
from ollama_provider.api.schemas import Metrics, Request
from ollama_provider.batch.control import Control
from ollama_provider.batch.embedding import PACK_CHARACTERS
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.group import Group
from ollama_provider.batch.journal import shared_fields
from ollama_provider.batch.plan import Do, Verdict
from ollama_provider.batch.preflight import Findings
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.run import Run
from ollama_provider.batch.tickets import Ticket

logger = logging.getLogger(__name__)


class Workers:
    """Sends what the plan says until nothing is left, and then says that the run is over.

    Args:
        run: whose rows are asked.
        found: what is fixed for it.
        client: makes one attempt for a request; it is the plan that tries again.
        control: loads the model.
        group: what the workers belong to.
    """

    def __init__(self, run: Run, found: Findings, client: AsyncClient, control: Control, group: Group) -> None:
        self._plan, self._climb, self._pack = run.plan, run.climb, run.pack
        self._sealing, self._tally = run.sealing, run.tally
        self._now = run.clock
        self._location = run.storage.location
        self._task, self._judge = found.task, found.judge
        self._of_fallback = "" if found.fallback is None else shared_fields(vars(found.fallback))
        self._client = client
        self._control = control
        self._group = group
        self._slots: set[int] = set()
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

    def settle(self, ticket: Ticket, outcome: Outcome) -> None:
        """Take the outcome of a row; end the run if it tells that going on makes no sense."""
        self._sealing.add(ticket.number, outcome, self._of_fallback if ticket.form.fallback else None)
        self._tally.add(outcome)
        if outcome.error is not None and self._plan.hopeless():
            self._group.end(
                TooManyFailedError(
                    f"All of the first {self._plan.failed} rows failed ({self._tally.reasons()}), so the rest was not "
                    f"asked. What was sealed is in {self._location}/parts."
                )
            )

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
                if step.do is Do.SEND and step.ticket is not None:
                    await self._send(step.ticket)
                elif not self._more and not self._plan.unfinished:
                    break
                else:
                    await self.wait(step.until)
        finally:
            self._slots.discard(slot)
        if not self._slots and not self._more:
            self._group.end()

    async def _send(self, ticket: Ticket) -> None:
        """Ask for one row, or a pack of them, and do what follows from the answer."""
        if self._pack.size > 1:
            self._plan.fill(ticket, self._pack.size, PACK_CHARACTERS)
        if self._plan.fresh <= self.wanted:
            self.hungry.set()
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
            self.settle(ticket, outcomes[0])
            if ticket.riders:  # what a pack took is known of it as a whole
                self._tally.prompt_tokens += reply.prompt_eval_count
            for rider, outcome in zip(ticket.riders, outcomes[1:], strict=True):
                self.settle(rider, outcome)
            if self._climb.target > len(self._slots):
                self._hire()
        if self._idle:
            self.wake()
        while self._sealing.lags:
            await self.wait()

    def _failed(self, ticket: Ticket, error: OllamaError, reply: Metrics | None, seconds: float) -> None:
        form = self._judge.another_form(ticket, error, reply)
        if form is not None:
            again = self._plan.postpone if form.fallback and not ticket.form.fallback else self._plan.again
            ticket.form = form
            again(ticket)
            return
        if self._judge.ends_batch(error):
            self._group.end(error)
            return
        pauses = self._plan.generation
        match self._plan.failure(ticket, error, self._now(), final=self._judge.is_final(error)):
            case Verdict.STOP:
                self._group.end(error)
            case Verdict.FAILED:
                self.settle(ticket, self._judge.reject(ticket, error, reply, seconds))
        if self._plan.generation != pauses:
            logger.warning("Everybody waits %.0f s, no row is lost: %s", self._plan.pause, error)
            if isinstance(error, OverloadedError):
                self._climb.overloaded()
