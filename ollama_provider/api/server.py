"""One server of a client: an attempt at a request, from its bytes to its reply or its error.

The two classes differ by ``async`` and ``await`` alone, which a test checks.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import httpx

from ollama_provider.api.decompression import BrokenAnswer, UnknownEncoding
from ollama_provider.api.error_mapping import transport_error
from ollama_provider.api.errors import ClientClosedError, NotOllamaError, OllamaError, TransportError
from ollama_provider.api.events import Call
from ollama_provider.api.protocol import Decoder, encode
from ollama_provider.api.replies import Collector, StreamedReplies
from ollama_provider.api.schemas import ReplyT
from ollama_provider.api.settings import Settings
from ollama_provider.api.timeouts import ReadTimeouts, timeouts_for
from ollama_provider.api.transport import AsyncConnectionPool, AsyncExchange, Body, ConnectionPool, Exchange, Upload

Part = dict[str, Any]
#: The first object of an answer (None if it has none), the others, and what makes replies of them.
Beginning = tuple[Part | None, Generator[Part, None, None], StreamedReplies[ReplyT]]
AsyncBeginning = tuple[Part | None, AsyncGenerator[Part, None], StreamedReplies[ReplyT]]
#: Exceptions of the network, which have an error class and a text of their own. Of others only the class is named.
_FAILURES = (httpx.HTTPError, OSError, UnicodeError)


class Server:
    """A server that a `Client` sends to.

    Args:
        settings: how to reach it.
        transport: an httpx transport to use instead of the network.
        concurrency: limit of concurrent requests. Others wait.
    """

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None, concurrency: int) -> None:
        self.settings = settings
        self.pool = ConnectionPool(settings, transport, concurrency)

    def collect(self, call: Call[ReplyT]) -> ReplyT:
        """Make one attempt: send the request, and return the whole reply."""
        collector = Collector(call.request, host=self.settings.base_url)
        with closing(self._objects(call, join=True)) as objects:
            for part in objects:
                collector.add(part)
        return collector.reply()

    def begin(self, call: Call[ReplyT]) -> Beginning[ReplyT]:
        """Make one attempt: send the request, and return the first object of the answer with the way to the others."""
        objects = self._objects(call, join=False)
        pieces = StreamedReplies(call.request, host=self.settings.base_url)
        return next(objects, None), objects, pieces

    def _objects(self, call: Call[Any], *, join: bool) -> Generator[Part, None, None]:
        """Make one attempt: send the request and yield the objects of the answer."""
        request = call.request
        body = encode(request)
        if body is not None and not isinstance(body, bytes):
            body = Upload(body)
        exchange = self.pool.exchange()
        try:
            try:
                timeouts = timeouts_for(request, self.settings.timeouts, monotonic())
                response = self._open(exchange, call, body, timeouts)
                decoder = Decoder(
                    request,
                    response.status_code,
                    response.headers,
                    settings=self.settings,
                    now=datetime.now(UTC),
                    join=join,
                )
                if decoder.refused:
                    timeouts.refused(monotonic())
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
            self.pool.add_proxy(error, exchange.response)
            raise

    def _open(self, exchange: Exchange, call: Call[Any], body: Body, timeouts: ReadTimeouts) -> httpx.Response:
        request = call.request
        if self.pool.closed:
            raise ClientClosedError("the client is closed", host=self.settings.base_url, model=call.model)
        try:
            return exchange.open(request.method, self.pool.url(request.target), body, timeouts.deadline)
        except Exception as error:
            if isinstance(body, Upload) and body.failure is not None:
                raise body.failure from None
            raise _error_for(error, self, call, timeouts, answered=False) from None

    def _read(self, exchange: Exchange, call: Call[Any], timeouts: ReadTimeouts, decoder: Decoder) -> bytes | None:
        try:
            data = exchange.read(timeouts.deadline)
        except Exception as error:
            if decoder.complete:  # a failure after that loses nothing
                return None
            raise _error_for(error, self, call, timeouts, answered=True) from None
        if data is not None and not timeouts.received(len(data), monotonic()):
            raise timeouts.too_long_error(host=self.settings.base_url, model=call.model)
        return data


class AsyncServer:
    """A server that an `AsyncClient` sends to.

    Args:
        settings: how to reach it.
        transport: an httpx transport to use instead of the network.
        concurrency: limit of concurrent requests. Others wait.
    """

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None, concurrency: int) -> None:
        self.settings = settings
        self.pool = AsyncConnectionPool(settings, transport, concurrency)

    async def collect(self, call: Call[ReplyT]) -> ReplyT:
        """Make one attempt: send the request, and return the whole reply."""
        collector = Collector(call.request, host=self.settings.base_url)
        async with aclosing(self._objects(call, join=True)) as objects:
            async for part in objects:
                collector.add(part)
        return collector.reply()

    async def begin(self, call: Call[ReplyT]) -> AsyncBeginning[ReplyT]:
        """Make one attempt: send the request, and return the first object of the answer with the way to the others."""
        objects = self._objects(call, join=False)
        pieces = StreamedReplies(call.request, host=self.settings.base_url)
        return await anext(objects, None), objects, pieces

    async def _objects(self, call: Call[Any], *, join: bool) -> AsyncGenerator[Part, None]:
        """Make one attempt: send the request and yield the objects of the answer."""
        request = call.request
        body = encode(request)
        if body is not None and not isinstance(body, bytes):
            body = Upload(body)
        exchange = await self.pool.exchange()
        try:
            try:
                timeouts = timeouts_for(request, self.settings.timeouts, monotonic())
                response = await self._open(exchange, call, body, timeouts)
                decoder = Decoder(
                    request,
                    response.status_code,
                    response.headers,
                    settings=self.settings,
                    now=datetime.now(UTC),
                    join=join,
                )
                if decoder.refused:
                    timeouts.refused(monotonic())
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
            self.pool.add_proxy(error, exchange.response)
            raise

    async def _open(
        self, exchange: AsyncExchange, call: Call[Any], body: Body, timeouts: ReadTimeouts
    ) -> httpx.Response:
        request = call.request
        if self.pool.closed:
            raise ClientClosedError("the client is closed", host=self.settings.base_url, model=call.model)
        try:
            return await exchange.open(request.method, self.pool.url(request.target), body, timeouts.deadline)
        except Exception as error:
            if isinstance(body, Upload) and body.failure is not None:
                raise body.failure from None
            raise _error_for(error, self, call, timeouts, answered=False) from None

    async def _read(
        self, exchange: AsyncExchange, call: Call[Any], timeouts: ReadTimeouts, decoder: Decoder
    ) -> bytes | None:
        try:
            data = await exchange.read(timeouts.deadline)
        except Exception as error:
            if decoder.complete:  # a failure after that loses nothing
                return None
            raise _error_for(error, self, call, timeouts, answered=True) from None
        if data is not None and not timeouts.received(len(data), monotonic()):
            raise timeouts.too_long_error(host=self.settings.base_url, model=call.model)
        return data


def _error_for(
    error: Exception, server: "Server | AsyncServer", call: Call[Any], timeouts: ReadTimeouts, *, answered: bool
) -> OllamaError:
    host, model = server.settings.base_url, call.model
    if server.pool.closed:
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
