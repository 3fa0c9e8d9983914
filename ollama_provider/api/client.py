"""`Client` and `AsyncClient`: with `transport`, the only code that sends HTTP.

The two classes differ by ``async`` and ``await`` alone, which a test checks. What differs otherwise is in `transport`;
all decisions are in the modules without a network.
"""

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Generic, Self, TypeVar, cast

import httpx
from tenacity import AsyncRetrying, Retrying

from ollama_provider.api.decompression import BrokenAnswer, UnknownEncoding
from ollama_provider.api.error_mapping import transport_error
from ollama_provider.api.errors import (
    ClientClosedError,
    EndpointNotFoundError,
    ModelNotFoundError,
    NotOllamaError,
    OllamaError,
    TransportError,
)
from ollama_provider.api.events import Call, Listener
from ollama_provider.api.protocol import Decoder, encode
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.replies import Collector, StreamedReplies, as_embed_reply
from ollama_provider.api.retry import RetryPolicy
from ollama_provider.api.schemas import EmbedReply, EmbedRequest, PullRequest, ReplyT, Request, as_legacy
from ollama_provider.api.settings import Settings
from ollama_provider.api.timeouts import ReadTimeouts, timeouts_for
from ollama_provider.api.transport import AsyncConnectionPool, AsyncExchange, Body, ConnectionPool, Exchange, Upload

_T = TypeVar("_T")
_Lock = TypeVar("_Lock")
_Part = dict[str, Any]
#: Exceptions of the network, which have an error class and a text of their own. Of others only the class is named.
_FAILURES = (httpx.HTTPError, OSError, UnicodeError)


@dataclass
class SharedPull(Generic[_Lock]):
    """The last pull of a missing model, shared by all requests that found the model missing before the pull ended."""

    lock: _Lock
    ended: float = -math.inf
    failure: OllamaError | None = None


class Client:
    """A client of one server. Threads may share it.

    Args:
        settings: how to reach the server. Their ``model``, ``options`` and ``keep_alive`` are not read here, since a
            request is sent as it is.
        listener: called with each `AttemptFailed`, `PullMoved` and `CallEnded`. Its exceptions reach the caller.
        transport: an httpx transport to use instead of the network. It stays open when the client is closed.
        concurrency: limit of concurrent requests. Others wait.

    Raises:
        InvalidRequestError: a header, a certificate file or the environment's proxy is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        listener: Listener | None = None,
        transport: httpx.BaseTransport | None = None,
        concurrency: int = 16,
    ) -> None:
        self.settings = settings
        self._listener = listener
        self._pool = ConnectionPool(settings, transport, concurrency)
        self._pulls: dict[str, SharedPull[threading.Lock]] = {}
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
        self._pool.close()

    def send(self, request: Request[ReplyT]) -> ReplyT:
        """Send a request and return the whole reply.

        The objects of a streamed answer are joined; it must be complete. Failed attempts are retried, and a missing
        model is pulled once, as far as the settings allow. A server too old for ``/api/embed`` (before 0.2.6) gets a
        request for each text, and the same vectors are returned.

        Raises:
            OllamaError: one of the tree in `errors`.
        """
        with Call(request, self._listener) as call:
            reply = self._reply(call)
            call.note(reply)
        return reply

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
        with Call(request, self._listener) as call:
            first, rest = self._send_or_pull(call, self._begin)
            with closing(rest), closing(self._replies(call, first, rest)) as replies:
                yield replies

    def _reply(self, call: Call[ReplyT]) -> ReplyT:
        if not isinstance(call.request, EmbedRequest):
            return self._send_or_pull(call, self._collect)
        return cast("ReplyT", self._embed(cast("Call[EmbedReply]", call), call.request))

    def _embed(self, call: Call[EmbedReply], request: EmbedRequest) -> EmbedReply:
        missing: EndpointNotFoundError | None = None
        if self._knows_embed:
            try:
                return self._send_or_pull(call, self._collect)
            except EndpointNotFoundError as error:
                missing = error
        try:
            replies = [self._send_or_pull(Call(legacy, self._listener), self._collect) for legacy in as_legacy(request)]
        except EndpointNotFoundError as error:
            # Neither endpoint exists, so this is not an old Ollama, and the first error describes the problem better.
            raise (missing or error) from None
        self._knows_embed = False
        return as_embed_reply(request, replies, host=self.settings.base_url)

    def _send_or_pull(self, call: Call[ReplyT], attempt: Callable[[Call[ReplyT]], _T]) -> _T:
        sent = monotonic()
        try:
            return self._with_retries(call, attempt)
        except ModelNotFoundError as missing:
            if not call.request.needs_model:
                raise
            self._pull_missing(call.model or "", missing, sent)
        return self._with_retries(call, attempt)

    def _with_retries(self, call: Call[ReplyT], attempt: Callable[[Call[ReplyT]], _T]) -> _T:
        policy = self._policies[call.request.repeatable]
        if policy.max_attempts == 1:  # without tenacity, which costs a quarter of the requests a second
            return attempt(call)
        retrying = Retrying(sleep=self._pool.sleep, **policy.arguments(call.failed))
        return retrying(attempt, call)

    def _pull_missing(self, model: str, missing: ModelNotFoundError, sent: float) -> None:
        """Pull a missing model, once for all requests that found it missing before the pull ended."""
        check_pull_allowed(model, self.settings, missing)
        pull = self._pulls.setdefault(model, SharedPull(self._pool.lock()))
        with pull.lock:
            if pull.ended < sent:
                pull.failure = None
                try:
                    self.send(PullRequest(model=model))
                except OllamaError as error:
                    pull.failure = error
                pull.ended = monotonic()
        if pull.failure is not None:
            raise pull.failure

    def _collect(self, call: Call[ReplyT]) -> ReplyT:
        collector = Collector(call.request, host=self.settings.base_url)
        with closing(self._objects(call)) as objects:
            for part in objects:
                collector.add(part)
        return collector.reply()

    def _begin(self, call: Call[Any]) -> tuple[_Part | None, Generator[_Part, None, None]]:
        objects = self._objects(call)
        return next(objects, None), objects

    def _replies(
        self, call: Call[ReplyT], first: _Part | None, rest: Generator[_Part, None, None]
    ) -> Generator[ReplyT, None, None]:
        part, pieces = first, StreamedReplies(call.request, host=self.settings.base_url)
        while part is not None:
            reply = pieces.read(part)
            call.note(reply)
            yield reply
            part = next(rest, None)

    def _objects(self, call: Call[Any]) -> Generator[_Part, None, None]:
        """Make one attempt: send the request and yield the objects of the answer."""
        request = call.request
        body = encode(request)
        if body is not None and not isinstance(body, bytes):
            body = Upload(body)
        exchange = self._pool.exchange()
        try:
            try:
                timeouts = timeouts_for(request, self.settings.timeouts, monotonic())
                response = self._open(exchange, call, body, timeouts)
                decoder = Decoder(
                    request, response.status_code, response.headers, settings=self.settings, now=datetime.now(UTC)
                )
                while (data := self._read(exchange, call, timeouts, decoder)) is not None:
                    for part in decoder.feed(data):
                        if (moved := timeouts.decoded(part, monotonic())) is not None:
                            call.tell(moved)
                        yield part
            finally:
                exchange.close()
            for part in decoder.end():
                if (moved := timeouts.decoded(part, monotonic())) is not None:
                    call.tell(moved)
                yield part
        except OllamaError as error:
            self._pool.add_proxy(error, exchange.response)
            raise

    def _open(self, exchange: Exchange, call: Call[Any], body: Body, timeouts: ReadTimeouts) -> httpx.Response:
        request = call.request
        if self._pool.closed:
            raise ClientClosedError("the client is closed", host=self.settings.base_url, model=call.model)
        try:
            return exchange.open(request.method, self._pool.url(request.target), body, timeouts.deadline)
        except Exception as error:
            if isinstance(body, Upload) and body.failure is not None:
                raise body.failure from None
            raise self._error_for(error, call, timeouts, answered=False) from None

    def _read(self, exchange: Exchange, call: Call[Any], timeouts: ReadTimeouts, decoder: Decoder) -> bytes | None:
        try:
            data = exchange.read(timeouts.deadline)
        except Exception as error:
            if decoder.complete:  # a failure after the last object loses nothing
                return None
            raise self._error_for(error, call, timeouts, answered=True) from None
        if data is not None and not timeouts.received(len(data), monotonic()):
            raise timeouts.too_long_error(host=self.settings.base_url, model=call.model)
        return data

    def _error_for(self, error: Exception, call: Call[Any], timeouts: ReadTimeouts, *, answered: bool) -> OllamaError:
        host, model = self.settings.base_url, call.model
        if self._pool.closed:
            return ClientClosedError("the client was closed meanwhile", host=host, model=model)
        if isinstance(error, TimeoutError | httpx.ReadTimeout | httpx.WriteTimeout):
            return timeouts.timeout_error(host=host, model=model)
        if isinstance(error, UnknownEncoding):
            advice = "A proxy in between may compress it: switch that off for Ollama."
            what = f"the answer is compressed ({error}), which was not asked for"
            return NotOllamaError(what, advice=advice, host=host, model=model)
        if not isinstance(error, _FAILURES):
            return TransportError(f"the HTTP library failed with {type(error).__name__}", host=host, model=model)
        began = answered or isinstance(error, BrokenAnswer)
        return transport_error(error, answered=began, host=host, model=model)


class AsyncClient:
    """A client of one server, in one event loop.

    Args:
        settings: how to reach the server. Their ``model``, ``options`` and ``keep_alive`` are not read here, since a
            request is sent as it is.
        listener: called with each `AttemptFailed`, `PullMoved` and `CallEnded`. Its exceptions reach the caller.
        transport: an httpx transport to use instead of the network. It stays open when the client is closed.
        concurrency: limit of concurrent requests. Others wait.

    Raises:
        InvalidRequestError: a header, a certificate file or the environment's proxy is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        listener: Listener | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        concurrency: int = 16,
    ) -> None:
        self.settings = settings
        self._listener = listener
        self._pool = AsyncConnectionPool(settings, transport, concurrency)
        self._pulls: dict[str, SharedPull[asyncio.Lock]] = {}
        self._policies = {yes: RetryPolicy.of(settings, repeatable=yes) for yes in (True, False)}
        self._knows_embed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel all requests and close all connections. The client cannot be used afterwards."""
        await self._pool.close()

    async def send(self, request: Request[ReplyT]) -> ReplyT:
        """Send a request and return the whole reply.

        The objects of a streamed answer are joined; it must be complete. Failed attempts are retried, and a missing
        model is pulled once, as far as the settings allow. A server too old for ``/api/embed`` (before 0.2.6) gets a
        request for each text, and the same vectors are returned.

        Raises:
            OllamaError: one of the tree in `errors`.
        """
        with Call(request, self._listener) as call:
            reply = await self._reply(call)
            call.note(reply)
        return reply

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
        with Call(request, self._listener) as call:
            first, rest = await self._send_or_pull(call, self._begin)
            async with aclosing(rest), aclosing(self._replies(call, first, rest)) as replies:
                yield replies

    async def _reply(self, call: Call[ReplyT]) -> ReplyT:
        if not isinstance(call.request, EmbedRequest):
            return await self._send_or_pull(call, self._collect)
        return cast("ReplyT", await self._embed(cast("Call[EmbedReply]", call), call.request))

    async def _embed(self, call: Call[EmbedReply], request: EmbedRequest) -> EmbedReply:
        missing: EndpointNotFoundError | None = None
        if self._knows_embed:
            try:
                return await self._send_or_pull(call, self._collect)
            except EndpointNotFoundError as error:
                missing = error
        try:
            replies = [
                await self._send_or_pull(Call(legacy, self._listener), self._collect) for legacy in as_legacy(request)
            ]
        except EndpointNotFoundError as error:
            # Neither endpoint exists, so this is not an old Ollama, and the first error describes the problem better.
            raise (missing or error) from None
        self._knows_embed = False
        return as_embed_reply(request, replies, host=self.settings.base_url)

    async def _send_or_pull(self, call: Call[ReplyT], attempt: Callable[[Call[ReplyT]], Awaitable[_T]]) -> _T:
        sent = monotonic()
        try:
            return await self._with_retries(call, attempt)
        except ModelNotFoundError as missing:
            if not call.request.needs_model:
                raise
            await self._pull_missing(call.model or "", missing, sent)
        return await self._with_retries(call, attempt)

    async def _with_retries(self, call: Call[ReplyT], attempt: Callable[[Call[ReplyT]], Awaitable[_T]]) -> _T:
        policy = self._policies[call.request.repeatable]
        if policy.max_attempts == 1:  # without tenacity, which costs a quarter of the requests a second
            return await attempt(call)
        retrying = AsyncRetrying(sleep=self._pool.sleep, **policy.arguments(call.failed))
        return await retrying(attempt, call)

    async def _pull_missing(self, model: str, missing: ModelNotFoundError, sent: float) -> None:
        """Pull a missing model, once for all requests that found it missing before the pull ended."""
        check_pull_allowed(model, self.settings, missing)
        pull = self._pulls.setdefault(model, SharedPull(self._pool.lock()))
        async with pull.lock:
            if pull.ended < sent:
                pull.failure = None
                try:
                    await self.send(PullRequest(model=model))
                except OllamaError as error:
                    pull.failure = error
                pull.ended = monotonic()
        if pull.failure is not None:
            raise pull.failure

    async def _collect(self, call: Call[ReplyT]) -> ReplyT:
        collector = Collector(call.request, host=self.settings.base_url)
        async with aclosing(self._objects(call)) as objects:
            async for part in objects:
                collector.add(part)
        return collector.reply()

    async def _begin(self, call: Call[Any]) -> tuple[_Part | None, AsyncGenerator[_Part, None]]:
        objects = self._objects(call)
        return await anext(objects, None), objects

    async def _replies(
        self, call: Call[ReplyT], first: _Part | None, rest: AsyncGenerator[_Part, None]
    ) -> AsyncGenerator[ReplyT, None]:
        part, pieces = first, StreamedReplies(call.request, host=self.settings.base_url)
        while part is not None:
            reply = pieces.read(part)
            call.note(reply)
            yield reply
            part = await anext(rest, None)

    async def _objects(self, call: Call[Any]) -> AsyncGenerator[_Part, None]:
        """Make one attempt: send the request and yield the objects of the answer."""
        request = call.request
        body = encode(request)
        if body is not None and not isinstance(body, bytes):
            body = Upload(body)
        exchange = await self._pool.exchange()
        try:
            try:
                timeouts = timeouts_for(request, self.settings.timeouts, monotonic())
                response = await self._open(exchange, call, body, timeouts)
                decoder = Decoder(
                    request, response.status_code, response.headers, settings=self.settings, now=datetime.now(UTC)
                )
                while (data := await self._read(exchange, call, timeouts, decoder)) is not None:
                    for part in decoder.feed(data):
                        if (moved := timeouts.decoded(part, monotonic())) is not None:
                            call.tell(moved)
                        yield part
            finally:
                await exchange.close()
            for part in decoder.end():
                if (moved := timeouts.decoded(part, monotonic())) is not None:
                    call.tell(moved)
                yield part
        except OllamaError as error:
            self._pool.add_proxy(error, exchange.response)
            raise

    async def _open(
        self, exchange: AsyncExchange, call: Call[Any], body: Body, timeouts: ReadTimeouts
    ) -> httpx.Response:
        request = call.request
        if self._pool.closed:
            raise ClientClosedError("the client is closed", host=self.settings.base_url, model=call.model)
        try:
            return await exchange.open(request.method, self._pool.url(request.target), body, timeouts.deadline)
        except Exception as error:
            if isinstance(body, Upload) and body.failure is not None:
                raise body.failure from None
            raise self._error_for(error, call, timeouts, answered=False) from None

    async def _read(
        self, exchange: AsyncExchange, call: Call[Any], timeouts: ReadTimeouts, decoder: Decoder
    ) -> bytes | None:
        try:
            data = await exchange.read(timeouts.deadline)
        except Exception as error:
            if decoder.complete:  # a failure after the last object loses nothing
                return None
            raise self._error_for(error, call, timeouts, answered=True) from None
        if data is not None and not timeouts.received(len(data), monotonic()):
            raise timeouts.too_long_error(host=self.settings.base_url, model=call.model)
        return data

    def _error_for(self, error: Exception, call: Call[Any], timeouts: ReadTimeouts, *, answered: bool) -> OllamaError:
        host, model = self.settings.base_url, call.model
        if self._pool.closed:
            return ClientClosedError("the client was closed meanwhile", host=host, model=model)
        if isinstance(error, TimeoutError | httpx.ReadTimeout | httpx.WriteTimeout):
            return timeouts.timeout_error(host=host, model=model)
        if isinstance(error, UnknownEncoding):
            advice = "A proxy in between may compress it: switch that off for Ollama."
            what = f"the answer is compressed ({error}), which was not asked for"
            return NotOllamaError(what, advice=advice, host=host, model=model)
        if not isinstance(error, _FAILURES):
            return TransportError(f"the HTTP library failed with {type(error).__name__}", host=host, model=model)
        began = answered or isinstance(error, BrokenAnswer)
        return transport_error(error, answered=began, host=host, model=model)
