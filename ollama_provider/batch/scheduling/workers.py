"""Requests out: one worker for each request that may be in flight at a server, and what follows from the replies."""

import asyncio
import logging
from typing import Any, NoReturn

from ollama_provider.api.errors import BadRequestError, OllamaError, OverloadedError
from ollama_provider.api.schemas import Metrics, Request
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.requests.embedding import PACK_CHARACTERS
from ollama_provider.batch.requests.preflight import RunSetup
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.results.progress import Counters
from ollama_provider.batch.scheduling.availability import log_left_out, log_pause, stop_error, wait_after_failure
from ollama_provider.batch.scheduling.connections import Server
from ollama_provider.batch.scheduling.outcomes import OutcomeRecorder
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.scheduling.servers import InFlight
from ollama_provider.batch.scheduling.steps import Do, Verdict
from ollama_provider.batch.store.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


class Workers:
    """Send to one server what the plan says, as many requests at a time as the concurrency limit allows.

    Args:
        scheduler: holds the plan.
        server: to send to.
        setup: of the requests to it.
        checkpoints: no request is sent while too many outcomes wait to be written.
        recorder: takes the outcomes.
        counters: say why the rows failed, when the batch stops early.
        location: of the directory, for errors.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        server: Server,
        setup: RunSetup,
        *,
        checkpoints: Checkpoints,
        recorder: OutcomeRecorder,
        counters: Counters,
        location: str,
    ) -> None:
        self._scheduler = scheduler
        self._plan = scheduler.plan
        self._has_others = len(scheduler.plan.servers) > 1
        self._state, self._client, self._control = server.state, server.client, server.control
        self._task, self._validator = setup.task, setup.validator
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
            NoServerError: the same of all servers, where there are several.
        """
        while not self._plan.queue:
            if self._scheduler.finished:
                return
            await self._scheduler.wait()
        await self._load()
        async with asyncio.TaskGroup() as group:
            self._start(group)

    async def _load(self) -> None:
        """Load the model, and try again after a pause if that fails and there are other servers."""
        while not self._scheduler.finished and not self._state.left_out:
            began = self._now()
            try:
                await self._control.load(self._task)
            except OllamaError as error:
                if not self._has_others:
                    raise
                await wait_after_failure(self._scheduler, self._state, error)
                continue
            where = f" at {self._state.name}" if self._has_others else ""
            logger.info(
                "Model %s is loaded%s (%.1f s), context %s.",
                self._task.model, where, self._now() - began, self._task.sent_options.num_ctx,
            )  # fmt: skip
            self._plan.joined(self._state)
            self._scheduler.notify()
            return

    def _start(self, group: asyncio.TaskGroup) -> None:
        """Start as many workers as there may be requests in flight."""
        for number in range(self._state.concurrency.target):
            if number not in self._running:
                self._running.add(number)
                group.create_task(self._work(number, group))

    async def _work(self, number: int, group: asyncio.TaskGroup) -> None:
        scheduler, state = self._scheduler, self._state
        try:
            while number < state.concurrency.target and not scheduler.finished:
                step = self._plan.next(state, self._now(), more=scheduler.more_input)
                if step.sent is not None:
                    await self._send(step.sent)
                    if state.concurrency.target > len(self._running):
                        self._start(group)
                elif step.do is Do.PROBE:
                    await self._probe(step.item)
                else:
                    await scheduler.wait(step.until)
        finally:
            self._running.discard(number)

    async def _send(self, sent: InFlight) -> None:
        """Send the request for a row, or for a pack of them, and do what follows from the reply."""
        scheduler, item = self._scheduler, sent.item
        self._plan.fill(sent, PACK_CHARACTERS, more=scheduler.more_input)
        if len(self._plan.queue.new) <= scheduler.rows_ahead:
            scheduler.want_rows()
        began = self._now()
        reply: Metrics | None = None
        doing = "requesting its answer"
        try:
            request: Request[Any] = self._task.request(item)
            reply = await self._reply(sent, request)
            if reply is None:
                return
            seconds, doing = self._now() - began, "validating its answer"
            outcomes = self._validator.accept(item, request, reply, seconds)
            queued = reply.queue_seconds
        except OllamaError as error:
            self._on_failure(sent, error, reply, self._now() - began)
        except Exception as error:  # whatever an odd answer may cause is a failure of this row alone
            self._on_failure(sent, self._recorder.unforeseen(error, doing), None, self._now() - began)
        else:
            self._state.observe(sent, seconds, queued, len(outcomes), outcomes[0].tokens)
            self._on_success(sent, outcomes, reply)
        finally:
            scheduler.notify()
        while self._checkpoints.lags:
            await scheduler.wait()

    async def _reply(self, sent: InFlight, request: Request[Any]) -> Metrics | None:
        """Return the reply; None if another server has answered for the row meanwhile."""
        if not self._has_others:
            reply: Metrics = await self._client.send(request)
            return reply
        waiting = self._scheduler.waiting
        # No variable has the task: its exception has this frame, and the two would keep each other.
        waiting[sent] = asyncio.create_task(self._client.send(request))
        try:
            reply = await waiting[sent]
        except asyncio.CancelledError:
            if sent.discarded and not asyncio.current_task().cancelling():  # type: ignore[union-attr]  # we are in one
                return None
            raise
        except Exception:
            if sent.discarded:
                return None
            raise
        finally:
            del waiting[sent]
        return None if sent.discarded else reply

    def _on_success(self, sent: InFlight, outcomes: list[Outcome], reply: Metrics) -> None:
        item = sent.item
        good = [self._recorder.record(each, outcome) for each, outcome in zip(item.pack, outcomes, strict=True)]
        self._state.tokens += sum(outcome.tokens or 0 for outcome in outcomes)
        if item.rest:  # the server counts the tokens of the pack, and not of each row
            self._counters.prompt_tokens += reply.prompt_eval_count
        for other in self._plan.succeeded(sent, self._now(), failed=good.count(False)):
            self._scheduler.waiting[other].cancel()
        self._stop_if_hopeless()

    def _on_failure(self, sent: InFlight, error: OllamaError, reply: Metrics | None, seconds: float) -> None:
        item = sent.item
        try:
            # Where the row is in flight at another server, too, that answer decides.
            variant = None if item.copies > 1 else self._validator.next_variant(item, error, reply)
        except Exception as unforeseen:
            error, reply, variant = self._recorder.unforeseen(unforeseen, "choosing how to ask again"), None, None
        if variant is not None:
            send_again = (
                self._plan.postpone if variant.fallback and not item.variant.fallback else self._plan.send_again
            )
            item.variant = variant
            send_again(sent, self._now())
            return
        pauses, was_left_out = self._state.pause_count, self._state.left_out
        if self._validator.ends_batch(error, answered=bool(self._plan.ok)):
            if not self._has_others or not isinstance(error, BadRequestError):
                self._stop(error)
            self._plan.leave_out(self._state, str(error))
        match self._plan.failure(sent, error, self._now(), final=self._validator.is_final(error)):
            case Verdict.STOP:
                self._stop(stop_error(self._plan, error))
            case Verdict.AGAIN:
                self._log_failure(error, pauses, was_left_out=was_left_out)
            case Verdict.FAILED:
                try:
                    outcome = self._validator.reject(item, error, reply, seconds)
                except Exception as unforeseen:
                    error = self._recorder.unforeseen(unforeseen, "keeping its answer")
                    outcome = self._validator.reject(item, error, None, 0.0)
                self._recorder.record(item, outcome)
                self._stop_if_hopeless()

    async def _probe(self, item: WorkItem | None) -> None:
        """Send a request that is no row's, to find out whether the server works."""
        try:
            await self._client.send(self._task.load())
        except OllamaError as error:
            pauses = self._state.pause_count
            if self._plan.probe_failed(self._state, item, error, self._now()) is Verdict.STOP:
                self._stop(stop_error(self._plan, error))
            self._log_failure(error, pauses, was_left_out=False)
        else:
            self._plan.probe_succeeded(self._state, item)
        finally:
            self._scheduler.notify()

    def _log_failure(self, error: OllamaError, pauses: int, *, was_left_out: bool) -> None:
        state = self._state
        if state.left_out and not was_left_out:
            log_left_out(state)
        if state.pause_count == pauses:
            return
        log_pause(self._plan, state, error)
        if isinstance(error, OverloadedError):
            state.concurrency.overloaded()

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
