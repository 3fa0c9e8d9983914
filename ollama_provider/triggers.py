"""Waits in the triggerer.

The triggerer is one process for the waiting tasks of everybody, so nothing here blocks its event loop, and nothing
here decides: when a wait is over is said in `waiting`, what a model is asked next in `api.asking`. All tasks of a
connection share one client.

Airflow runs a trigger again from its beginning when the triggerer was restarted. A wait or a pull loses nothing by
that (the server keeps what was downloaded); a generation is asked again, since Ollama has no jobs to come back to.
"""

import asyncio
import random
import time
import traceback
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.request_flow import Conversation, conversations
from ollama_provider.api.schemas import Request
from ollama_provider.hooks import OllamaHook
from ollama_provider.payloads import AnswerWriter, read_request
from ollama_provider.waiting import Condition, Never, NotYet, Ready, Verdict, judge_error

#: Requests in flight for a connection: each task that waits for an answer has one, and a triggerer's capacity is 1000.
_AT_ONCE = 1000
#: Seconds that a trigger takes at the least. Airflow (2.11 to 3.3; its issues 66374, 67287 and 72716) fails a task that
#: is back in the queue before the scheduler has heard that its worker is done with it. Airflow 3's supervisor may
#: notice the end of a task's process only when its next heartbeat is due, five seconds later.
_SETTLING = 10.0
_Send = Callable[[Request[Any]], Awaitable[Any]]


class OllamaTrigger(BaseTrigger):
    """What all waits share: a connection, a deadline, and a request that ends with the task.

    Args:
        conn_id: connection of type *Ollama*; it is read here, so that no secret is stored with the trigger.
        overrides: laid over the connection's settings, see `OllamaHook`.
        deadline: Unix time at which to give up; None for never. (Airflow's ``execution_timeout`` does not count while a
            task is deferred.)
    """

    def __init__(self, *, conn_id: str, overrides: dict[str, Any] | None = None, deadline: float | None = None) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.overrides = overrides or {}
        self.deadline = deadline
        self._work: asyncio.Task[dict[str, Any]] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what makes another one like this."""
        return {"conn_id": self.conn_id, "overrides": self.overrides, "deadline": self.deadline}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and tell one event, whose payload has a ``status``, after some seconds at the earliest.

        No exception leaves a trigger. One that nobody foresaw is the status "failed" with a ``text``; its trace is in
        the log.
        """
        settled = asyncio.get_running_loop().time() + _SETTLING
        left = None if self.deadline is None else max(0.0, self.deadline - time.time())
        # A task of its own, so that it can be ended from outside, whoever runs this generator.
        self._work = asyncio.create_task(self.wait())
        clock = asyncio.timeout(left)
        try:
            async with clock:
                payload = await self._work
        except Exception as error:
            # An exception that left a trigger would come before Airflow has heard of the deferral, and be lost.
            timed_out = isinstance(error, TimeoutError) and clock.expired()
            payload = {"status": "timeout"} if timed_out else await self._unforeseen(error)
        await asyncio.sleep(settled - asyncio.get_running_loop().time())
        yield TriggerEvent(_Quiet(self.echo() | payload))

    async def _unforeseen(self, error: Exception) -> dict[str, Any]:
        # Formatting reads source files. The error's own text may quote an answer, so it is for DEBUG.
        trace = await _in_thread(traceback.format_tb, error.__traceback__)
        kind = type(error).__name__
        self.log.error("%s in the trigger:\n%s", kind, "".join(trace))
        self.log.debug("%s: %s", kind, error)
        return {
            "status": "failed",
            "text": f"{kind} in the trigger {type(self).__name__}: a fault of airflow-provider-ollama, or of a storage "
            "that it writes to. The log has the trace above, and at DEBUG the text; deferrable=False waits in the "
            "worker instead.",
        }

    def echo(self) -> dict[str, Any]:
        """Return what the event tells in any case."""
        return {}

    @abstractmethod
    async def wait(self) -> dict[str, Any]:
        """Return the event's payload when the wait is over."""

    async def cleanup(self) -> None:
        """End the request in flight: the connection is closed, and with it ends the work on the server."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def on_kill(self) -> None:
        """Do the same when somebody clears or marks the task (Airflow 3.3)."""
        await self.cleanup()

    def hook(self) -> OllamaHook:
        """Return a new hook for the connection."""
        return OllamaHook(self.conn_id, **self.overrides)


class OllamaHealthTrigger(OllamaTrigger):
    """Wait until a server answers, and has what is wanted: see `Condition`.

    What may pass is waited for, what cannot ends the wait with its reason. The payload is ``status`` ("ready", "never"
    or "timeout") and ``text``, what is there or missing.

    Args:
        models: names that have to be on the server.
        min_version: the oldest version that will do.
        loaded: names that have to be in memory.
        poll_interval: seconds between two looks, the first of which comes after one interval; a random tenth is added,
            so that many tasks do not ask at once.
        kwargs: those of `OllamaTrigger`.
    """

    def __init__(
        self,
        *,
        models: Sequence[str] = (),
        min_version: str | None = None,
        loaded: Sequence[str] = (),
        poll_interval: float = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.models = list(models)
        self.min_version = min_version
        self.loaded = list(loaded)
        self.poll_interval = poll_interval
        self._last = NotYet("it was not time to look again")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and its arguments, for Airflow's database."""
        return "ollama_provider.triggers.OllamaHealthTrigger", {
            **self.arguments(),
            "models": self.models,
            "min_version": self.min_version,
            "loaded": self.loaded,
            "poll_interval": self.poll_interval,
        }

    def echo(self) -> dict[str, Any]:
        """Return what was missing at the last look."""
        return {"text": self._last.reason}

    async def wait(self) -> dict[str, Any]:
        """Look at the server now and then, until it is ready or never will be."""
        try:
            condition = Condition(tuple(self.models), self.min_version, tuple(self.loaded))
            async with self.hook().async_client() as client:
                while True:
                    await asyncio.sleep(self.poll_interval * random.uniform(1, 1.1))  # noqa: S311  # no secret
                    match await _look(client, condition):
                        case NotYet() as verdict:
                            self._tell(verdict)
                        case Ready(summary):
                            return {"status": "ready", "text": summary}
                        case Never(reason):
                            return {"status": "never", "text": reason}
        except (OllamaError, AirflowNotFoundException) as error:
            return {"status": "never", "text": str(error)}

    def _tell(self, verdict: NotYet) -> None:
        """Log what is missing when that changes: a night of looks is not a night of the same line."""
        if verdict != self._last:
            self.log.info("Not yet: %s", verdict.reason)
            self._last = verdict


async def _look(client: AsyncClient, condition: Condition) -> Verdict:
    try:
        return condition.judge([await client.send(request) for request in condition.requests])
    except OllamaError as error:
        return judge_error(error)


class OllamaRequestTrigger(OllamaTrigger):
    """Send a request (a generation, a chat, an embedding, a pull) and wait for its answer.

    The payload is ``status`` ("answered" or "timeout"), ``answers`` for an `AnswerReader`, and what was given as
    ``parcel`` and ``remembered``. Retries, auto-pull, timeouts and the lines of a pull in the log are the client's, as in a
    worker.

    Args:
        parcel: the request, see `handover.write_request`.
        remembered: small JSON data for whoever takes the event. (Arguments of ``defer`` do not arrive under
            ``airflow dags test`` of Airflow 3.)
        may_cut: whether a part of a prompt that is too long will do.
        folder: where an answer may go that is too large for Airflow's database; None if nowhere.
        most: bytes of an answer that are taken in the end; None is no bound.
        kwargs: those of `OllamaTrigger`.
    """

    def __init__(
        self,
        *,
        parcel: dict[str, str],
        remembered: dict[str, Any] | None = None,
        may_cut: bool = False,
        folder: str | None = None,
        most: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.parcel = parcel
        self.remembered = remembered or {}
        self.may_cut = may_cut
        self.folder = folder
        self.most = most

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and its arguments, for Airflow's database."""
        return "ollama_provider.triggers.OllamaRequestTrigger", {
            **self.arguments(),
            "parcel": self.parcel,
            "remembered": self.remembered,
            "may_cut": self.may_cut,
            "folder": self.folder,
            "most": self.most,
        }

    def echo(self) -> dict[str, Any]:
        """Return what the worker needs to go on."""
        return {"parcel": self.parcel, "remembered": self.remembered}

    async def wait(self) -> dict[str, Any]:
        """Hold the conversations that the request needs."""
        writer = AnswerWriter(self.folder)
        try:
            return {"status": "answered", "answers": await self._answers(writer)}
        except (Exception, asyncio.CancelledError):
            # Here, and not by the garbage collector: it would write to a storage in the midst of the event loop.
            await _in_thread(writer.abandon)
            raise

    async def _answers(self, writer: AnswerWriter) -> dict[str, str]:
        try:
            request = await _in_thread(read_request, self.parcel)
            async with self.hook().async_client(concurrency=_AT_ONCE) as client:
                talks = list(conversations(request, may_cut=self.may_cut))
                for number, talk in enumerate(talks, 1):
                    await _hold(talk, _keeping(client, writer))
                    self._check(writer.size * len(talks) / number)
        except OllamaError as error:
            await _in_thread(writer.put, error)
        except AirflowNotFoundException as error:
            await _in_thread(writer.put, InvalidRequestError(str(error)))
        closed: dict[str, str] = await _in_thread(writer.close)
        return closed

    def _check(self, expected: float) -> None:
        """Give up as soon as it shows that nobody could take the answer."""
        if self.most is not None and expected > self.most:
            raise InvalidRequestError(
                f"the answer would be about {expected / 1e6:.1f} MB of JSON, and {self.most / 1e6:.1f} MB are taken"
            )


class _Quiet(dict[str, Any]):
    """A payload that Airflow can log, as it does with every event, without the answer in it."""

    def __repr__(self) -> str:
        return f"{{'status': {self['status']!r}}}"


def _keeping(client: AsyncClient, writer: AnswerWriter) -> _Send:
    """Return a function that sends a request and keeps the answer."""

    async def send(request: Request[Any]) -> Any:
        try:
            reply = await client.send(request)
        except OllamaError as error:
            await _in_thread(writer.put, error)
            raise
        await _in_thread(writer.put, reply)
        return reply

    return send


async def _hold(conversation: Conversation[Any], send: _Send) -> None:
    """Hold a conversation as `api.asking.hold` does; who wants its result holds it once more with what was kept."""
    step: Callable[[], Request[Any]] = partial(next, conversation)
    while True:
        try:
            request = step()
        except StopIteration:
            return
        try:
            reply = await send(request)
        except OllamaError as error:
            step = partial(conversation.throw, error)
        else:
            step = partial(conversation.send, reply)


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    # Not asyncio.to_thread: the connection of an ObjectStoragePath must find its way back to this loop, and before
    # Airflow 3.3 only asgiref knows it.
    work = asyncio.ensure_future(sync_to_async(function, thread_sensitive=False)(*arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # A thread cannot be broken off, and nobody is to touch a file that it still writes.
        await asyncio.wait([work])
        raise
