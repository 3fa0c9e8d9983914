"""The triggers: code that waits for a deferred task, in Airflow's triggerer process.

One triggerer serves the deferred tasks of all DAGs, so nothing here blocks its event loop. Nothing here decides either:
`waiting` decides when a wait is over, and `api.request_flow` decides which request follows a reply. All tasks of a
connection share one client.

Airflow runs a trigger again from its beginning when the triggerer was restarted. A wait or a pull loses nothing by
that, because the server keeps what was downloaded. A generation is requested again, because Ollama has no jobs that
could be resumed.
"""

import asyncio
import random
import time
import traceback
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.request_flow import AsyncSend, flows_for, run_flow_async
from ollama_provider.api.schemas import Reply, Request
from ollama_provider.hooks import OllamaHook
from ollama_provider.payloads import AnswerWriter, PayloadStorageError, read_request
from ollama_provider.waiting import Condition, Never, NotYet, Ready, Verdict, evaluate_error

#: Concurrent requests of a connection: one for each task that waits for an answer. A triggerer's capacity is 1000.
_CONCURRENCY = 1000
#: Shortest run of a trigger, in seconds. Airflow (2.11 to 3.3; its issues 66374, 67287 and 72716) fails a task that is
#: back in the queue before the scheduler has noticed that its worker process has ended. Airflow 3's supervisor may
#: notice that end only at its next heartbeat, five seconds later.
_MINIMUM_SECONDS = 10.0


class OllamaTrigger(BaseTrigger):
    """Base of the triggers: a connection, a deadline, and a request that is cancelled with the task.

    Args:
        conn_id: connection of type *Ollama*. The trigger reads it itself, so that no secret is stored with it.
        overrides: settings that replace the connection's, as in `OllamaHook`.
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
        """Return the arguments that all triggers have, to serialize them."""
        return {"conn_id": self.conn_id, "overrides": self.overrides, "deadline": self.deadline}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event with a ``status``, after `_MINIMUM_SECONDS` at the earliest.

        No exception leaves a trigger. An unexpected one becomes the status "failed" with a ``text``, and its traceback
        is logged.
        """
        earliest = asyncio.get_running_loop().time() + _MINIMUM_SECONDS
        left = None if self.deadline is None else max(0.0, self.deadline - time.time())
        # A separate asyncio task, so that `cleanup` can cancel the wait without this generator.
        self._work = asyncio.create_task(self.wait())
        timeout = asyncio.timeout(left)
        try:
            async with timeout:
                event = await self._work
        except PayloadStorageError as error:
            event = {"status": "failed", "text": str(error)}
        except Exception as error:
            # An exception that leaves a trigger before Airflow has stored the deferral would be lost.
            timed_out = isinstance(error, TimeoutError) and timeout.expired()
            event = {"status": "timeout"} if timed_out else await self._unexpected(error)
        await asyncio.sleep(earliest - asyncio.get_running_loop().time())
        yield TriggerEvent(_Event(self.echo() | event))

    async def _unexpected(self, error: Exception) -> dict[str, Any]:
        # In a thread, because formatting a traceback reads source files. The text of the error may quote an answer, so
        # it is logged at DEBUG only.
        trace = await _in_thread(traceback.format_tb, error.__traceback__)
        kind = type(error).__name__
        self.log.error("%s in the trigger:\n%s", kind, "".join(trace))
        self.log.debug("%s: %s", kind, error)
        return {
            "status": "failed",
            "text": f"{kind} in the trigger {type(self).__name__}: a bug of airflow-provider-ollama, or a failure of "
            "the storage that it writes to. The traceback is in the log above, and at DEBUG the text of the error. "
            "With deferrable=False the task waits in the worker instead.",
        }

    def echo(self) -> dict[str, Any]:
        """Return what every event of this trigger contains."""
        return {}

    @abstractmethod
    async def wait(self) -> dict[str, Any]:
        """Wait, and return the contents of the event."""

    async def cleanup(self) -> None:
        """Cancel the request in flight. Its connection is closed, and that stops the work on the server."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def on_kill(self) -> None:
        """Do the same when the task is cleared or its state is set manually (Airflow 3.3)."""
        await self.cleanup()

    def hook(self) -> OllamaHook:
        """Return a new hook for the connection."""
        return OllamaHook(self.conn_id, **self.overrides)

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[dict[str, AsyncClient]]:
        """Yield a client for each server of the connection, by base URL."""
        hook = self.hook()
        await hook.read_connection()
        async with AsyncExitStack() as stack:
            yield {
                each.settings.base_url: await stack.enter_async_context(each.async_client()) for each in hook.servers
            }


class OllamaHealthTrigger(OllamaTrigger):
    """Wait until enough servers answer and meet the conditions of `waiting.Condition`.

    A temporary failure is waited for; a permanent one ends the wait. The event has a ``status`` ("ready", "never" or
    "timeout") and a ``text``, which says what is there, what is missing, or why waiting is useless.

    Args:
        models: models that must be on the server.
        min_version: the oldest acceptable version.
        loaded: models that must be in memory.
        servers: on how many servers of the connection: ``"any"``, ``"all"`` or a number.
        poll_interval: seconds between two checks. The first one comes after one interval. Up to a tenth is added at
            random, so that many tasks do not poll at the same moment.
        kwargs: arguments of `OllamaTrigger`.
    """

    def __init__(
        self,
        *,
        models: Sequence[str] = (),
        min_version: str | None = None,
        loaded: Sequence[str] = (),
        servers: str | int = "any",
        poll_interval: float = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.models = list(models)
        self.min_version = min_version
        self.loaded = list(loaded)
        self.servers = servers
        self.poll_interval = poll_interval
        self._last = NotYet("the server was not checked again yet")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and its arguments, for Airflow's database."""
        return "ollama_provider.triggers.OllamaHealthTrigger", {
            **self.arguments(),
            "models": self.models,
            "min_version": self.min_version,
            "loaded": self.loaded,
            "servers": self.servers,
            "poll_interval": self.poll_interval,
        }

    def echo(self) -> dict[str, Any]:
        """Return what was missing at the last check."""
        return {"text": self._last.reason}

    async def wait(self) -> dict[str, Any]:
        """Check the servers once per interval, until enough are ready or cannot become ready."""
        try:
            condition = Condition(tuple(self.models), self.min_version, tuple(self.loaded), self.servers)
            async with self.clients() as clients:
                while True:
                    await asyncio.sleep(self.poll_interval * random.uniform(1, 1.1))  # noqa: S311  # no secret
                    found = await asyncio.gather(*(_check(client, condition) for client in clients.values()))
                    match condition.evaluate_servers(dict(zip(clients, found, strict=True))):
                        case NotYet() as verdict:
                            self._log_changed(verdict)
                        case Ready(summary):
                            return {"status": "ready", "text": summary}
                        case Never(reason):
                            return {"status": "never", "text": reason}
        except (OllamaError, AirflowNotFoundException) as error:
            return {"status": "never", "text": str(error)}

    def _log_changed(self, verdict: NotYet) -> None:
        """Log what is missing, but only when that has changed since the last check."""
        if verdict != self._last:
            self.log.info("Not yet: %s", verdict.reason)
            self._last = verdict


async def _check(client: AsyncClient, condition: Condition) -> Verdict:
    try:
        return condition.evaluate([await client.send(request) for request in condition.requests])
    except OllamaError as error:
        return evaluate_error(error)


class OllamaRequestTrigger(OllamaTrigger):
    """Send a request (generate, chat, embed or pull) and wait for its answer.

    The event has a ``status`` ("answered", "timeout" or "failed"), the payload ``answers`` for an `AnswerReader`, and
    the arguments ``parcel`` and ``remembered``. Retries, auto-pull, timeouts and the progress lines of a pull are the
    client's, as in a worker.

    The names of the arguments are stored in Airflow's database, so they must not change between versions.

    Args:
        parcel: the payload of the request, from `payloads.write_request`.
        remembered: small JSON data that the worker needs when it resumes. (Arguments of ``defer`` are lost under
            ``airflow dags test`` of Airflow 3.)
        may_cut: whether the server may cut a prompt that is longer than the context.
        folder: directory for an answer that is too large for Airflow's database; None if there is none.
        most: largest answer that the worker accepts, in bytes of JSON; None for no limit.
        servers: base URLs of servers of the connection, each of which gets the request and answers it, in this order;
            None if one of all servers is to answer.
        kwargs: arguments of `OllamaTrigger`.
    """

    def __init__(
        self,
        *,
        parcel: dict[str, str],
        remembered: dict[str, Any] | None = None,
        may_cut: bool = False,
        folder: str | None = None,
        most: int | None = None,
        servers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.parcel = parcel
        self.remembered = remembered or {}
        self.may_cut = may_cut
        self.folder = folder
        self.most = most
        self.servers = None if servers is None else list(servers)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and its arguments, for Airflow's database."""
        return "ollama_provider.triggers.OllamaRequestTrigger", {
            **self.arguments(),
            "parcel": self.parcel,
            "remembered": self.remembered,
            "may_cut": self.may_cut,
            "folder": self.folder,
            "most": self.most,
            "servers": self.servers,
        }

    def echo(self) -> dict[str, Any]:
        """Return what the worker needs to resume the task."""
        return {"parcel": self.parcel, "remembered": self.remembered}

    async def wait(self) -> dict[str, Any]:
        """Send the request, and the requests that follow from its replies."""
        writer = AnswerWriter(self.folder)
        try:
            return {"status": "answered", "answers": await self._answers(writer)}
        except (Exception, asyncio.CancelledError):
            # Not left to the garbage collector, which would write to the storage and so block the event loop.
            await _in_thread(writer.abandon)
            raise

    async def _answers(self, writer: AnswerWriter) -> dict[str, str]:
        try:
            request = await _in_thread(read_request, self.parcel)
            if self.servers is not None:
                return await self._answers_of_all(request, self.servers, writer)
            async with self.hook().async_client(concurrency=_CONCURRENCY) as client:
                flows = list(flows_for(request, may_cut=self.may_cut))
                for number, flow in enumerate(flows, 1):
                    # The worker that resumes the task runs the same flow with the stored replies, for its result.
                    await run_flow_async(flow, _storing(client, writer))
                    self._check_size(writer.size * len(flows) / number)
        except OllamaError as error:
            await _in_thread(writer.put, error)
        except AirflowNotFoundException as error:
            await _in_thread(writer.put, InvalidRequestError(str(error)))
        closed: dict[str, str] = await _in_thread(writer.close)
        return closed

    async def _answers_of_all(self, request: Request[Any], servers: list[str], writer: AnswerWriter) -> dict[str, str]:
        """Send the request to several servers at the same time; one that fails does not stop the others."""

        async def send(url: str) -> Reply | OllamaError:
            hook = OllamaHook(self.conn_id, url, **self.overrides)
            try:
                async with hook.async_client(concurrency=_CONCURRENCY) as client:
                    reply: Reply = await client.send(request)
            except OllamaError as error:
                return error
            return reply

        for answer in await asyncio.gather(*map(send, servers)):
            await _in_thread(writer.put, answer)
        closed: dict[str, str] = await _in_thread(writer.close)
        return closed

    def _check_size(self, expected: float) -> None:
        """Give up as soon as it is clear that the answer will be too large."""
        if self.most is not None and expected > self.most:
            raise InvalidRequestError(
                f"the answer would be about {expected / 1e6:.1f} MB of JSON, and the limit is {self.most / 1e6:.1f} MB"
            )


class _Event(dict[str, Any]):
    """The contents of an event. Airflow logs each event; this one shows its status only, and no answer."""

    def __repr__(self) -> str:
        return f"{{'status': {self['status']!r}}}"


def _storing(client: AsyncClient, writer: AnswerWriter) -> AsyncSend:
    """Return a function that sends a request and stores its answer."""

    async def send(request: Request[Any]) -> Any:
        try:
            reply = await client.send(request)
        except OllamaError as error:
            await _in_thread(writer.put, error)
            raise
        await _in_thread(writer.put, reply)
        return reply

    return send


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    # Not asyncio.to_thread: reading the Airflow connection of an ObjectStoragePath has to call back into this event
    # loop, and before Airflow 3.3 that works from asgiref's threads only.
    work = asyncio.ensure_future(sync_to_async(function, thread_sensitive=False)(*arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # A thread cannot be cancelled. Wait for it, so that the caller does not delete a file that is being written.
        await asyncio.wait([work])
        raise
