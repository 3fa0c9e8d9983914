"""Requests out: one worker for each request that may be in flight, and what follows from the replies."""

import asyncio
import logging
from typing import Any, NoReturn

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import OllamaError, OverloadedError
from ollama_provider.api.schemas import Metrics, Request
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.requests.embedding import PACK_CHARACTERS
from ollama_provider.batch.requests.preflight import ModelControl, RunSetup
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.results.progress import Counters
from ollama_provider.batch.scheduling.outcomes import OutcomeRecorder
from ollama_provider.batch.scheduling.plan import Do, Verdict
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.store.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


class Workers:
    """Send what the plan says, as many requests at a time as the concurrency limit allows.

    Args:
        scheduler: holds the plan.
        setup: of the run.
        client: makes one attempt for a request: it is the plan that retries.
        server: loads the model.
        checkpoints: no request is sent while too many outcomes wait to be written.
        recorder: takes the outcomes.
        counters: say why the rows failed, when the batch stops early.
        location: of the directory, for errors.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        setup: RunSetup,
        client: AsyncClient,
        server: ModelControl,
        *,
        checkpoints: Checkpoints,
        recorder: OutcomeRecorder,
        counters: Counters,
        location: str,
    ) -> None:
        self._scheduler = scheduler
        self._plan = scheduler.plan
        self._task, self._validator = setup.task, setup.validator
        self._client = client
        self._server = server
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._counters = counters
        self._location = location
        #: Numbers of the workers that are running: a worker whose number is beyond the concurrency limit ends.
        self._running: set[int] = set()

    async def run(self) -> None:
        """Load the model once there is a row to ask, and send requests until every row has an outcome.

        Raises:
            TooManyFailedError: the first rows all failed.
            OllamaError: one that fails every row, or an outage that outlasted ``failures.max_outage``.
        """
        while not self._plan.queued:
            if self._scheduler.finished:
                return
            await self._scheduler.wait()
        await self._server.load(self._task)
        async with asyncio.TaskGroup() as group:
            self._start(group)

    def _start(self, group: asyncio.TaskGroup) -> None:
        """Start as many workers as there may be requests in flight."""
        for number in range(self._scheduler.concurrency.target):
            if number not in self._running:
                self._running.add(number)
                group.create_task(self._work(number, group))

    async def _work(self, number: int, group: asyncio.TaskGroup) -> None:
        scheduler = self._scheduler
        try:
            while number < scheduler.concurrency.target and not scheduler.finished:
                step = self._plan.next(self._now(), scheduler.concurrency.target, more=scheduler.more_input)
                if step.do is Do.SEND and step.item is not None:
                    await self._send(step.item)
                    if scheduler.concurrency.target > len(self._running):
                        self._start(group)
                else:
                    await scheduler.wait(step.until)
        finally:
            self._running.discard(number)

    async def _send(self, item: WorkItem) -> None:
        """Send the request for a row, or for a pack of them, and do what follows from the reply."""
        scheduler = self._scheduler
        self._plan.fill(item, scheduler.pack.size, PACK_CHARACTERS)
        if self._plan.queued_new <= scheduler.rows_ahead:
            scheduler.want_rows()
        sent_at_target, began = scheduler.concurrency.target, self._now()
        reply: Metrics | None = None
        doing = "requesting its answer"
        try:
            if self._plan.needs_probe(item) and not await self._server_answers(item):
                return
            request: Request[Any] = self._task.request(item)
            reply = await self._client.send(request)
            seconds, doing = self._now() - began, "validating its answer"
            outcomes = self._validator.accept(item, request, reply, seconds)
            queued = reply.queue_seconds
        except OllamaError as error:
            self._on_failure(item, error, reply, self._now() - began)
        except Exception as error:  # whatever an odd answer may cause is a failure of this row alone
            self._on_failure(item, self._recorder.unforeseen(error, doing), None, self._now() - began)
        else:
            if not item.variant.fallback:
                scheduler.concurrency.observe(sent_at_target, seconds, queued, outcomes[0].tokens)
            scheduler.pack.observe(len(outcomes), seconds)
            self._on_success(item, outcomes, reply)
        finally:
            scheduler.notify()
        while self._checkpoints.lags:
            await scheduler.wait()

    def _on_success(self, item: WorkItem, outcomes: list[Outcome], reply: Metrics) -> None:
        pack = (item, *item.rest)
        good = [self._recorder.record(each, outcome) for each, outcome in zip(pack, outcomes, strict=True)]
        if item.rest:  # the server counts the tokens of the pack, and not of each row
            self._counters.prompt_tokens += reply.prompt_eval_count
        self._plan.succeeded(item, failed=good.count(False))
        self._stop_if_hopeless()

    def _on_failure(self, item: WorkItem, error: OllamaError, reply: Metrics | None, seconds: float) -> None:
        try:
            variant = self._validator.next_variant(item, error, reply)
        except Exception as unforeseen:
            error, reply, variant = self._recorder.unforeseen(unforeseen, "choosing how to ask again"), None, None
        if variant is not None:
            send_again = (
                self._plan.postpone if variant.fallback and not item.variant.fallback else self._plan.send_again
            )
            item.variant = variant
            send_again(item)
            return
        if self._validator.ends_batch(error, answered=bool(self._plan.ok)):
            self._stop(error)
        pauses = self._plan.pause_count
        match self._plan.failure(item, error, self._now(), final=self._validator.is_final(error)):
            case Verdict.STOP:
                self._stop(error)
            case Verdict.AGAIN:
                self._log_pause(error, pauses)
            case Verdict.FAILED:
                try:
                    outcome = self._validator.reject(item, error, reply, seconds)
                except Exception as unforeseen:
                    error = self._recorder.unforeseen(unforeseen, "keeping its answer")
                    outcome = self._validator.reject(item, error, None, 0.0)
                self._recorder.record(item, outcome)
                self._stop_if_hopeless()

    async def _server_answers(self, item: WorkItem) -> bool:
        """Send a request that is no row's, before a row that the server failed with is sent again."""
        try:
            await self._client.send(self._task.load())
        except OllamaError as error:
            pauses = self._plan.pause_count
            if self._plan.probe_failed(item, error, self._now()) is Verdict.STOP:
                self._stop(error)
            self._log_pause(error, pauses)
            return False
        self._plan.probe_succeeded()
        return True

    def _log_pause(self, error: OllamaError, pauses: int) -> None:
        if self._plan.pause_count == pauses:
            return
        logger.warning(
            "Server unavailable, pausing all requests for %.0f s (no row loses an attempt): %s", self._plan.pause, error
        )
        if isinstance(error, OverloadedError):
            self._scheduler.concurrency.overloaded()

    def _stop_if_hopeless(self) -> None:
        if not self._plan.hopeless():
            return
        failed = self._plan.failed - self._plan.unrequested
        self._stop(
            TooManyFailedError(
                f"Stopped early: the first {failed} rows that were requested all failed ({self._counters.reasons()}). "
                f"Their outcomes are kept in {self._location}/parts."
            )
        )

    def _stop(self, error: Exception) -> NoReturn:
        """End the run. Closing the plan keeps the other workers from sending until they are cancelled."""
        self._plan.closed = True
        raise error from error.__cause__

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
