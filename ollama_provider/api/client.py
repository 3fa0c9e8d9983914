"""`Client` and `AsyncClient`: retries, pulls of missing models, and the way from one server to the next.

The two classes differ by ``async`` and ``await`` alone, which a test checks. What differs otherwise is in `transport`;
all decisions are in the modules without a network.
"""

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Generic, Self, TypeVar, cast

import httpx
from tenacity import AsyncRetrying, Retrying

from ollama_provider.api.address import settings_for
from ollama_provider.api.errors import EndpointNotFoundError, ModelNotFoundError, OllamaError, ResponseTimeoutError
from ollama_provider.api.events import Call, Listener
from ollama_provider.api.pulls import check_pull_allowed, may_pull
from ollama_provider.api.replies import StreamedReplies, as_embed_reply
from ollama_provider.api.retry import RetryPolicy, forget_locals
from ollama_provider.api.routing import Routing, error_of_all
from ollama_provider.api.schemas import (
    EmbedReply,
    EmbedRequest,
    LegacyEmbedReply,
    LegacyEmbedRequest,
    PsRequest,
    PullRequest,
    ReplyT,
    Request,
    as_legacy,
)
from ollama_provider.api.server import AsyncServer, Part, Server
from ollama_provider.api.settings import Settings
from ollama_provider.api.transport import ask_together, ask_together_async

_T = TypeVar("_T")
_Lock = TypeVar("_Lock")
#: Seconds to wait for the servers' answers to ``/api/ps``. One that is slower is asked after the others for a while.
_ASKING_SECONDS = 2.0


@dataclass
class SharedPull(Generic[_Lock]):
    """The last pull of a missing model, shared by all requests that found the model missing before the pull ended."""

    lock: _Lock
    ended: float = -math.inf
    failure: OllamaError | None = None


class Client:
    """A client of one server or several. Threads may share it.

    Args:
        settings: how to reach the servers; None is the server of OLLAMA_HOST, else this machine (`settings_for`). Their
            ``model``, ``options`` and ``keep_alive`` are not read here, since a request is sent as it is.
        listener: called with each `AttemptFailed`, `ServerFailed`, `PullMoved` and `CallEnded`. Its exceptions reach
            the caller.
        transport: an httpx transport to use instead of the network. It stays open when the client is closed.
        concurrency: limit of concurrent requests to a server. Others wait.
        traced: probability that a request gets a span, 0 to 1, where tracing with OpenTelemetry is on.

    Raises:
        InvalidRequestError: a header, a certificate file or the environment's proxy is wrong.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        listener: Listener | None = None,
        transport: httpx.BaseTransport | None = None,
        concurrency: int = 16,
        traced: float = 1.0,
    ) -> None:
        self.settings = settings = settings or settings_for()
        self._listener = listener
        self._traced = traced
        self._servers = [Server(each, transport, concurrency) for each in settings.servers]
        self._routing = Routing(len(self._servers))
        self._asking = self._servers[0].pool.lock()
        self._pulls: dict[tuple[int, str], SharedPull[threading.Lock]] = {}
        self._policies = {yes: RetryPolicy.of(settings, repeatable=yes) for yes in (True, False)}
        self._knows_embed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all requests and close all connections. The client cannot be used afterwards.

        Any thread and any signal handler may call this. Requests in flight end at once, with `ClientClosedError`.
        """
        for server in self._servers:
            server.pool.close()

    def send(self, request: Request[ReplyT]) -> ReplyT:
        """Send a request and return the whole reply.

        The objects of a streamed answer are joined; it must be complete. Failed attempts are retried, and a missing
        model is pulled once, as far as the settings allow. A server too old for ``/api/embed`` (before 0.2.6) gets a
        request for each text, and the same vectors are returned.

        Of several servers, the one that has the model in memory is preferred, then the one with the fewest requests of
        this client, then their order. After a failure of a server the next one is tried at once; an attempt has failed
        when all have. The reply's ``server`` is the one that answered.

        Raises:
            OllamaError: one of the tree in `errors`.
        """
        return self._send(request)

    @contextmanager
    def stream(self, request: Request[ReplyT]) -> Iterator[Iterator[ReplyT]]:
        """Send a request and iterate over the objects of the answer as they arrive.

        Leaving the block early closes the connection, which ends the work on the server. Failed attempts are retried,
        and a missing model is pulled, until the first object has arrived. Afterwards nothing is retried, since the
        caller has read a part of the answer.

        Yields:
            The replies. The last one has ``done``; an answer without it ends in an error.

        Raises:
            OllamaError: one of the tree in `errors`, on entering the block or on reading.
        """
        with Call(request, self._listener, self._traced) as call:
            try:
                self._routing.start(call)
                first, rest, pieces = self._send_or_pull(call, Server.begin)
                with closing(rest), closing(self._replies(call, first, rest, pieces)) as replies:
                    yield replies
            finally:
                self._routing.end(call)

    def _send(self, request: Request[ReplyT], to: int | None = None) -> ReplyT:
        with Call(request, self._listener, self._traced) as call:
            try:
                self._routing.start(call, to)
                reply = self._reply(call)
            finally:
                self._routing.end(call)
            call.note(reply)
        return reply

    def _reply(self, call: Call[ReplyT]) -> ReplyT:
        if not isinstance(call.request, EmbedRequest):
            return self._send_or_pull(call, Server.collect)
        return cast("ReplyT", self._embed(cast("Call[EmbedReply]", call), call.request))

    def _embed(self, call: Call[EmbedReply], request: EmbedRequest) -> EmbedReply:
        missing: EndpointNotFoundError | None = None
        if self._knows_embed:
            try:
                return self._send_or_pull(call, Server.collect)
            except EndpointNotFoundError as error:
                missing = error
        try:
            replies = [self._legacy_reply(legacy) for legacy in as_legacy(request)]
        except EndpointNotFoundError as error:
            # Neither endpoint exists, so this is not an old Ollama, and the first error describes the problem better.
            raise (missing or error) from None
        self._knows_embed = False
        return as_embed_reply(request, replies, host=replies[-1].server)

    def _legacy_reply(self, request: LegacyEmbedRequest) -> LegacyEmbedReply:
        call = Call(request, self._listener)
        try:
            return self._send_or_pull(call, Server.collect)
        finally:
            self._routing.end(call)

    def _send_or_pull(self, call: Call[ReplyT], attempt: Callable[[Server, Call[ReplyT]], _T]) -> _T:
        sent = monotonic()
        try:
            return self._with_retries(call, attempt)
        except ModelNotFoundError as missing:
            if not call.request.needs_model:
                raise
            self._pull_missing(call, missing, sent)
            self._routing.pulled(call)
        return self._with_retries(call, attempt)

    def _with_retries(self, call: Call[ReplyT], attempt: Callable[[Server, Call[ReplyT]], _T]) -> _T:
        policy = self._policies[call.request.repeatable]
        if policy.max_attempts == 1:  # without tenacity, which costs a quarter of the requests a second
            return self._attempt(call, attempt)
        retrying = Retrying(sleep=self._servers[0].pool.sleep, **policy.arguments(call.failed))
        try:
            result: _T = retrying(self._attempt, call, attempt)
        except OllamaError as error:
            forget_locals(error)
            raise
        return result

    def _attempt(self, call: Call[ReplyT], attempt: Callable[[Server, Call[ReplyT]], _T]) -> _T:
        """Try one server after another, until one does not fail by its own fault."""
        if len(self._servers) == 1:
            return attempt(self._servers[0], call)
        unheard = self._ask_for_loaded_models(call)
        order = self._routing.order(call, monotonic())
        for error in unheard:
            call.went_on(error, self._servers[order[0]].settings.base_url)
        failures: list[tuple[str, OllamaError]] = []
        for number, following in zip(order, [*order[1:], None], strict=True):
            server = self._servers[number]
            self._routing.begin(call, number)
            try:
                result = attempt(server, call)
            except OllamaError as error:
                if not self._routing.failed(call, number, error, monotonic()):
                    raise
                failures.append((server.settings.base_url, error))
                if following is not None:
                    call.went_on(error, self._servers[following].settings.base_url)
            else:
                self._routing.answered(call, number, monotonic())
                return result
        helps = not self._routing.has_pulled(call) and may_pull(call.model, self.settings)
        raise error_of_all(failures, call.model, may_pull=helps)

    def _ask_for_loaded_models(self, call: Call[Any]) -> list[OllamaError]:
        """Ask the servers which models are in their memory, unless it is known where the model of a call is.

        Return the errors of those that did not say so.
        """
        if not self._routing.to_ask(call, monotonic()):
            return []
        with self._asking:
            # Once more: another call may have asked meanwhile.
            numbers = self._routing.to_ask(call, monotonic())
            asking = [partial(self._servers[number].collect, Call(PsRequest(), None)) for number in numbers]
            replies = ask_together(asking, _ASKING_SECONDS)
            now = monotonic()
            return [
                error
                for number, reply in zip(numbers, replies, strict=True)
                if (error := self._routing.listed(number, reply or self._no_list(number), now)) is not None
            ]

    def _no_list(self, number: int) -> OllamaError:
        what = f"{PsRequest.path} was not answered within {_ASKING_SECONDS:g} s"
        return ResponseTimeoutError(what, host=self._servers[number].settings.base_url)

    def _pull_missing(self, call: Call[Any], missing: ModelNotFoundError, sent: float) -> None:
        """Pull a missing model, once for all requests that found it missing before the pull ended."""
        model, number = call.model or "", self._routing.lacking(call)
        check_pull_allowed(model, self.settings, missing)
        pull = self._pulls.setdefault((number, model), SharedPull(self._servers[number].pool.lock()))
        with pull.lock:
            if pull.ended < sent:
                pull.failure = None
                try:
                    self._send(PullRequest(model=model), to=number)
                except OllamaError as error:
                    pull.failure = error
                pull.ended = monotonic()
        if pull.failure is not None:
            raise pull.failure

    def _replies(
        self, call: Call[ReplyT], first: Part | None, rest: Generator[Part, None, None], pieces: StreamedReplies[ReplyT]
    ) -> Generator[ReplyT, None, None]:
        part = first
        while part is not None:
            reply = pieces.read(part)
            call.note(reply)
            yield reply
            part = next(rest, None)


class AsyncClient:
    """A client of one server or several, in one event loop.

    Args:
        settings: how to reach the servers; None is the server of OLLAMA_HOST, else this machine (`settings_for`). Their
            ``model``, ``options`` and ``keep_alive`` are not read here, since a request is sent as it is.
        listener: called with each `AttemptFailed`, `ServerFailed`, `PullMoved` and `CallEnded`. Its exceptions reach
            the caller.
        transport: an httpx transport to use instead of the network. It stays open when the client is closed.
        concurrency: limit of concurrent requests to a server. Others wait.
        traced: probability that a request gets a span, 0 to 1, where tracing with OpenTelemetry is on.

    Raises:
        InvalidRequestError: a header, a certificate file or the environment's proxy is wrong.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        listener: Listener | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        concurrency: int = 16,
        traced: float = 1.0,
    ) -> None:
        self.settings = settings = settings or settings_for()
        self._listener = listener
        self._traced = traced
        self._servers = [AsyncServer(each, transport, concurrency) for each in settings.servers]
        self._routing = Routing(len(self._servers))
        self._asking = self._servers[0].pool.lock()
        self._pulls: dict[tuple[int, str], SharedPull[asyncio.Lock]] = {}
        self._policies = {yes: RetryPolicy.of(settings, repeatable=yes) for yes in (True, False)}
        self._knows_embed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel all requests and close all connections. The client cannot be used afterwards."""
        for server in self._servers:
            await server.pool.close()

    async def send(self, request: Request[ReplyT]) -> ReplyT:
        """Send a request and return the whole reply.

        The objects of a streamed answer are joined; it must be complete. Failed attempts are retried, and a missing
        model is pulled once, as far as the settings allow. A server too old for ``/api/embed`` (before 0.2.6) gets a
        request for each text, and the same vectors are returned.

        Of several servers, the one that has the model in memory is preferred, then the one with the fewest requests of
        this client, then their order. After a failure of a server the next one is tried at once; an attempt has failed
        when all have. The reply's ``server`` is the one that answered.

        Raises:
            OllamaError: one of the tree in `errors`.
        """
        return await self._send(request)

    @asynccontextmanager
    async def stream(self, request: Request[ReplyT]) -> AsyncIterator[AsyncIterator[ReplyT]]:
        """Send a request and iterate over the objects of the answer as they arrive.

        Leaving the block early closes the connection, which ends the work on the server. Failed attempts are retried,
        and a missing model is pulled, until the first object has arrived. Afterwards nothing is retried, since the
        caller has read a part of the answer.

        Yields:
            The replies. The last one has ``done``; an answer without it ends in an error.

        Raises:
            OllamaError: one of the tree in `errors`, on entering the block or on reading.
        """
        with Call(request, self._listener, self._traced) as call:
            try:
                self._routing.start(call)
                first, rest, pieces = await self._send_or_pull(call, AsyncServer.begin)
                async with aclosing(rest), aclosing(self._replies(call, first, rest, pieces)) as replies:
                    yield replies
            finally:
                self._routing.end(call)

    async def _send(self, request: Request[ReplyT], to: int | None = None) -> ReplyT:
        with Call(request, self._listener, self._traced) as call:
            try:
                self._routing.start(call, to)
                reply = await self._reply(call)
            finally:
                self._routing.end(call)
            call.note(reply)
        return reply

    async def _reply(self, call: Call[ReplyT]) -> ReplyT:
        if not isinstance(call.request, EmbedRequest):
            return await self._send_or_pull(call, AsyncServer.collect)
        return cast("ReplyT", await self._embed(cast("Call[EmbedReply]", call), call.request))

    async def _embed(self, call: Call[EmbedReply], request: EmbedRequest) -> EmbedReply:
        missing: EndpointNotFoundError | None = None
        if self._knows_embed:
            try:
                return await self._send_or_pull(call, AsyncServer.collect)
            except EndpointNotFoundError as error:
                missing = error
        try:
            replies = [await self._legacy_reply(legacy) for legacy in as_legacy(request)]
        except EndpointNotFoundError as error:
            # Neither endpoint exists, so this is not an old Ollama, and the first error describes the problem better.
            raise (missing or error) from None
        self._knows_embed = False
        return as_embed_reply(request, replies, host=replies[-1].server)

    async def _legacy_reply(self, request: LegacyEmbedRequest) -> LegacyEmbedReply:
        call = Call(request, self._listener)
        try:
            return await self._send_or_pull(call, AsyncServer.collect)
        finally:
            self._routing.end(call)

    async def _send_or_pull(
        self, call: Call[ReplyT], attempt: Callable[[AsyncServer, Call[ReplyT]], Awaitable[_T]]
    ) -> _T:
        sent = monotonic()
        try:
            return await self._with_retries(call, attempt)
        except ModelNotFoundError as missing:
            if not call.request.needs_model:
                raise
            await self._pull_missing(call, missing, sent)
            self._routing.pulled(call)
        return await self._with_retries(call, attempt)

    async def _with_retries(
        self, call: Call[ReplyT], attempt: Callable[[AsyncServer, Call[ReplyT]], Awaitable[_T]]
    ) -> _T:
        policy = self._policies[call.request.repeatable]
        if policy.max_attempts == 1:  # without tenacity, which costs a quarter of the requests a second
            return await self._attempt(call, attempt)
        retrying = AsyncRetrying(sleep=self._servers[0].pool.sleep, **policy.arguments(call.failed))
        try:
            result: _T = await retrying(self._attempt, call, attempt)
        except OllamaError as error:
            forget_locals(error)
            raise
        return result

    async def _attempt(self, call: Call[ReplyT], attempt: Callable[[AsyncServer, Call[ReplyT]], Awaitable[_T]]) -> _T:
        """Try one server after another, until one does not fail by its own fault."""
        if len(self._servers) == 1:
            return await attempt(self._servers[0], call)
        unheard = await self._ask_for_loaded_models(call)
        order = self._routing.order(call, monotonic())
        for error in unheard:
            call.went_on(error, self._servers[order[0]].settings.base_url)
        failures: list[tuple[str, OllamaError]] = []
        for number, following in zip(order, [*order[1:], None], strict=True):
            server = self._servers[number]
            self._routing.begin(call, number)
            try:
                result = await attempt(server, call)
            except OllamaError as error:
                if not self._routing.failed(call, number, error, monotonic()):
                    raise
                failures.append((server.settings.base_url, error))
                if following is not None:
                    call.went_on(error, self._servers[following].settings.base_url)
            else:
                self._routing.answered(call, number, monotonic())
                return result
        helps = not self._routing.has_pulled(call) and may_pull(call.model, self.settings)
        raise error_of_all(failures, call.model, may_pull=helps)

    async def _ask_for_loaded_models(self, call: Call[Any]) -> list[OllamaError]:
        """Ask the servers which models are in their memory, unless it is known where the model of a call is.

        Return the errors of those that did not say so.
        """
        if not self._routing.to_ask(call, monotonic()):
            return []
        async with self._asking:
            # Once more: another call may have asked meanwhile.
            numbers = self._routing.to_ask(call, monotonic())
            asking = [partial(self._servers[number].collect, Call(PsRequest(), None)) for number in numbers]
            replies = await ask_together_async(asking, _ASKING_SECONDS)
            now = monotonic()
            return [
                error
                for number, reply in zip(numbers, replies, strict=True)
                if (error := self._routing.listed(number, reply or self._no_list(number), now)) is not None
            ]

    def _no_list(self, number: int) -> OllamaError:
        what = f"{PsRequest.path} was not answered within {_ASKING_SECONDS:g} s"
        return ResponseTimeoutError(what, host=self._servers[number].settings.base_url)

    async def _pull_missing(self, call: Call[Any], missing: ModelNotFoundError, sent: float) -> None:
        """Pull a missing model, once for all requests that found it missing before the pull ended."""
        model, number = call.model or "", self._routing.lacking(call)
        check_pull_allowed(model, self.settings, missing)
        pull = self._pulls.setdefault((number, model), SharedPull(self._servers[number].pool.lock()))
        async with pull.lock:
            if pull.ended < sent:
                pull.failure = None
                try:
                    await self._send(PullRequest(model=model), to=number)
                except OllamaError as error:
                    pull.failure = error
                pull.ended = monotonic()
        if pull.failure is not None:
            raise pull.failure

    async def _replies(
        self, call: Call[ReplyT], first: Part | None, rest: AsyncGenerator[Part, None], pieces: StreamedReplies[ReplyT]
    ) -> AsyncGenerator[ReplyT, None]:
        part = first
        while part is not None:
            reply = pieces.read(part)
            call.note(reply)
            yield reply
            part = await anext(rest, None)
