"""The network side of both clients: connections, the limit of concurrent requests, deadlines and cancellation.

A pool stands for the server, an exchange for one request and its answer. Pools and exchanges have the same methods for
both clients, so that `client.py` is written alike. httpx's transports are used without ``httpx.Client``: cookies,
redirects and auth flows are unwanted here, and without them AsyncClient sends several times as many requests a second
(tests/benchmarks/transport.py).

Either side raises `TimeoutError` when a deadline (of `time.monotonic`) passes, `BrokenAnswer` when what came began as
HTTP and is no valid HTTP, and otherwise whatever httpx and the libraries below it raise. To close raises nothing.
"""

import asyncio
import concurrent.futures
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, NoReturn, TypeVar, cast

import httpx

from ollama_provider.api.cancellation import CancellableConnection, Watchdog
from ollama_provider.api.decompression import BrokenAnswer, Decompressor, decompressor_for
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.headers import headers_for
from ollama_provider.api.proxies import proxy_for
from ollama_provider.api.settings import Settings
from ollama_provider.api.tls import ssl_context_for

_T = TypeVar("_T")
#: Seconds an idle connection is kept; proxies in between close theirs after 60 or 75.
KEEP_ALIVE = 30.0


class Upload:
    """A request body that is read in pieces, such as a file.

    Attributes:
        failure: the exception of the source, which must not be taken for one of the network.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except Exception as error:
            self.failure = error
            raise


Body = bytes | Upload | None


class Exchange:
    """One request and its answer, on one connection.

    Attributes:
        response: the head of the answer; None before it came.
    """

    def __init__(self, pool: "ConnectionPool", connection: CancellableConnection) -> None:
        self._pool = pool
        self._connection = connection
        self._watchdog = Watchdog(connection.cancel)
        self.response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def open(self, method: str, url: httpx.URL, body: Body, deadline: float) -> httpx.Response:
        """Send the request, return the head of the answer."""
        request = self._pool.request(method, url, body)
        request.extensions["trace"] = self._connection.trace
        with self._watchdog.until(deadline), _broken_answers():
            self.response = self._connection.transport.handle_request(request)
        self._chunks = iter(cast("httpx.SyncByteStream", self.response.stream))
        if (decompressor := decompressor_for(self.response)) is not None:
            self._chunks = _decompressed(self._chunks, decompressor)
        return self.response

    def read(self, deadline: float) -> bytes | None:
        """Return the next bytes of the answer; None at its end."""
        with self._watchdog.until(deadline):
            return next(self._chunks, None)

    def close(self) -> None:
        """End the exchange. If the answer was not read to its end, close the connection, so that the server stops."""
        self._watchdog.stop()
        try:
            if self.response is not None:
                with contextlib.suppress(Exception):  # the answer was read, or its own error is being raised
                    self.response.close()
        finally:
            self._pool.release(self._connection)


def _decompressed(chunks: Iterator[bytes], decompressor: Decompressor) -> Iterator[bytes]:
    for chunk in chunks:
        yield from decompressor.feed(chunk)
    decompressor.end()


async def _decompressed_async(chunks: AsyncIterator[bytes], decompressor: Decompressor) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        for piece in decompressor.feed(chunk):
            yield piece
    decompressor.end()


@contextlib.contextmanager
def _broken_answers() -> Iterator[None]:
    """Raise `BrokenAnswer` for a broken head of an answer; what is not HTTP at all stays a `RemoteProtocolError`."""
    try:
        yield
    except httpx.RemoteProtocolError as error:
        text = str(error)
        no_http = text.startswith(("illegal status line", "illegal request line")) and "HTTP/" not in text
        if no_http or "disconnected" in text:
            raise
        raise BrokenAnswer(text) from error


class _Pool:
    """What both pools know about the server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        headers = headers_for(settings)
        self._tls = ssl_context_for(settings)
        self._proxy = proxy_for(settings)
        if self._proxy is not None and settings.base_url.startswith("http:"):
            # Without TLS the proxy reads each request; with TLS the transports send its credentials in their CONNECT.
            headers += self._proxy.headers.items()
        # Prepared once, since httpx would normalise each of them twice for each request.
        self._headers = httpx.Headers(headers)
        if "host" not in self._headers:
            self._headers = httpx.Headers([(b"Host", httpx.URL(settings.base_url).netloc), *self._headers.raw])
        # httpx bounds the connect only. The rest is bounded by deadlines, which httpx does not have.
        self._timeout = {"connect": settings.timeouts.connect, "read": None, "write": None, "pool": None}
        self._urls: dict[str, httpx.URL] = {}
        self.closed = False

    def url(self, path: str) -> httpx.URL:
        """Return the URL of a path."""
        if (known := self._urls.get(path)) is None:
            known = self._urls[path] = httpx.URL(self.settings.base_url + path)
        return known

    def add_proxy(self, error: OllamaError, response: httpx.Response | None) -> None:
        """Add to an error which proxy, if any, the request went through."""
        if self._proxy is not None:
            self._proxy.add_to(error, response)

    def request(self, method: str, url: httpx.URL, body: Any) -> httpx.Request:
        """Return the HTTP request."""
        extensions = {"timeout": self._timeout}
        if not isinstance(body, bytes):
            return httpx.Request(method, url, headers=self._headers, content=body, extensions=extensions)
        # With ``stream`` httpx adds no header of its own, which saves most of the time to build a request.
        request = httpx.Request(
            method, url, headers=self._headers, stream=httpx.ByteStream(body), extensions=extensions
        )
        request.headers.encoding = "ascii"  # known, and costly to find out
        request.headers["Content-Length"] = str(len(body))
        request.read()
        return request


class ConnectionPool(_Pool):
    """The connections of a `Client`, one for each request in flight.

    Args:
        settings: where it is and how to treat it.
        transport: used instead of the network.
        concurrency: requests in flight at a time. Others wait, and their timeouts begin afterwards.
    """

    def __init__(
        self,
        settings: Settings,
        transport: httpx.BaseTransport | None,
        concurrency: int,
    ) -> None:
        super().__init__(settings)
        self._given = transport
        self._slots = threading.Semaphore(concurrency)
        # Only the first close() gets the item. A list, because its pop() is atomic for threads and signal handlers.
        self._to_close = [True]
        self._idle: list[CancellableConnection] = []
        self._busy: set[CancellableConnection] = set()
        # Held until close(): a sleeper that can acquire it stops sleeping. Not an Event: its set() in a signal handler
        # could deadlock with the thread that the signal interrupted.
        self._open = threading.Lock()
        self._open.acquire()

    def exchange(self) -> Exchange:
        """Begin an exchange as soon as the concurrency limit allows one, on an idle connection or a new one."""
        self._slots.acquire()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = CancellableConnection(self._connect)
        self._busy.add(connection)
        if self.closed:
            connection.cancel()  # close() ran between the two lines above and did not see this connection
        return Exchange(self, connection)

    def _connect(self) -> httpx.BaseTransport:
        if self._given is not None:
            return self._given
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE)
        return httpx.HTTPTransport(verify=self._tls, proxy=self._proxy, limits=limits)

    def release(self, connection: CancellableConnection) -> None:
        """Take a connection back, and let the next exchange begin."""
        self._busy.discard(connection)
        self._slots.release()
        if self.closed or connection.cancelled or connection.has_unread_bytes():
            self._close(connection)
        else:
            self._idle.append(connection)

    def _close(self, connection: CancellableConnection) -> None:
        if self._given is None:
            connection.close()

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until the pool is closed."""
        if self._open.acquire(timeout=seconds):
            self._open.release()

    def lock(self) -> threading.Lock:
        """Return a lock between the users of this pool."""
        return threading.Lock()

    def close(self) -> None:
        """Cancel all requests and close all connections. Any thread and signal handler may call this, also twice."""
        self.closed = True
        with contextlib.suppress(IndexError):
            self._to_close.pop()
            self._open.release()
        for connection in list(self._busy):
            connection.cancel()
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._close(self._idle.pop())


class AsyncExchange:
    """One request and its answer.

    Attributes:
        response: the head of the answer; None before it came.
    """

    def __init__(self, pool: "AsyncConnectionPool") -> None:
        self._pool = pool
        self.response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes]

    async def open(self, method: str, url: httpx.URL, body: Body, deadline: float) -> httpx.Response:
        """Send the request, return the head of the answer."""
        if body is None or (isinstance(body, bytes) and method != "DELETE"):
            content: bytes | AsyncIterator[bytes] | None = body
        else:
            # aiohttp sends a DELETE again by itself when the connection breaks, unless the body is gone by then.
            content = _each([body] if isinstance(body, bytes) else body)
        request = self._pool.request(method, url, content)
        try:
            async with asyncio.timeout(_left(deadline)):
                self.response = await self._pool.transport.handle_async_request(request)
        except Exception as error:
            _reraise_as_httpx(error)
        if self.response.status_code == httpx.codes.SWITCHING_PROTOCOLS:
            raise BrokenAnswer("the answer changes to a protocol that was not requested")
        self._chunks = aiter(cast("httpx.AsyncByteStream", self.response.stream))
        if (decompressor := decompressor_for(self.response)) is not None:
            self._chunks = _decompressed_async(self._chunks, decompressor)
        return self.response

    async def read(self, deadline: float) -> bytes | None:
        """Return the next bytes of the answer; None at its end."""
        try:
            async with asyncio.timeout(_left(deadline)):
                return await anext(self._chunks, None)
        except Exception as error:
            _reraise_as_httpx(error)

    async def close(self) -> None:
        """End the exchange. If the answer was not read to its end, close the connection, so that the server stops."""
        try:
            if self.response is not None:
                with contextlib.suppress(Exception):  # the answer was read, or its own error is being raised
                    await self.response.aclose()
        finally:
            self._pool.release()


def _left(deadline: float) -> float | None:
    # Relative, since the clock of an event loop need not be time.monotonic.
    return None if deadline == math.inf else deadline - monotonic()


async def _each(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _reraise_as_httpx(error: Exception) -> NoReturn:
    """Raise what aiohttp raised as an httpx error, also where httpx-aiohttp does not map it, or maps it wrongly."""
    if isinstance(error, TimeoutError | RuntimeError | httpx.HTTPError):
        cause = error.__cause__
        if type(cause).__name__ == "ClientPayloadError":
            raise BrokenAnswer(str(error)) from cause
        if isinstance(error, httpx.ConnectTimeout) and not isinstance(cause, TimeoutError) and cause is not None:
            # A connection that broke: httpx-aiohttp maps aiohttp's base class of all connection errors to a timeout.
            raise httpx.ReadError(str(error)) from cause
        if isinstance(error, RuntimeError) and "closed" in str(error).lower():
            raise httpx.ReadError("closed") from error
    elif type(error).__module__.partition(".")[0] == "aiohttp":
        raise httpx.RemoteProtocolError("not HTTP") from error
    raise error


class AsyncConnectionPool(_Pool):
    """The connections of an `AsyncClient`, which aiohttp pools.

    Args:
        settings: where it is and how to treat it.
        transport: used instead of the network.
        concurrency: requests in flight at a time. Others wait, and their timeouts begin afterwards.
    """

    def __init__(
        self,
        settings: Settings,
        transport: httpx.AsyncBaseTransport | None,
        concurrency: int,
    ) -> None:
        super().__init__(settings)
        self._given = transport
        self._transport = transport
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._closing = asyncio.Event()

    async def exchange(self) -> AsyncExchange:
        """Begin an exchange as soon as the concurrency limit allows one."""
        await self._slots.acquire()
        return AsyncExchange(self)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport to send requests through; made at its first use, which must be in the event loop."""
        if self._transport is None:
            self._transport = self._connect()
        return self._transport

    def _connect(self) -> httpx.AsyncBaseTransport:
        # Here, because it loads aiohttp, which the import of this module must not.
        from ollama_provider.api.aiohttp_transport import make_transport

        return make_transport(self._tls, self._proxy, connections=self._concurrency, keep_alive=KEEP_ALIVE)

    def release(self) -> None:
        """Let the next exchange begin."""
        self._slots.release()

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until the pool is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def lock(self) -> asyncio.Lock:
        """Return a lock between the users of this pool."""
        return asyncio.Lock()

    async def close(self) -> None:
        """Cancel all requests and close all connections."""
        self.closed = True
        self._closing.set()
        if self._transport is not None and self._transport is not self._given:
            with contextlib.suppress(Exception):  # nothing can be done about a connection that cannot be closed
                await self._transport.aclose()


def ask_together(asking: Sequence[Callable[[], _T]], seconds: float) -> list[_T | OllamaError | None]:
    """Call functions at the same time, and return what each of them returned or raised.

    None stands for one that was not done after so many seconds. It goes on in its thread, which nobody waits for.
    """
    futures: list[Future[_T]] = [Future() for _ in asking]

    def run(function: Callable[[], _T], future: Future[_T]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # to be raised, if it is none of ours, where the result is used
            future.set_exception(error)

    for pair in zip(asking, futures, strict=True):
        threading.Thread(target=run, args=pair, name="ollama-asking", daemon=True).start()
    done, _ = concurrent.futures.wait(futures, seconds)
    return [_result(future) if future in done else None for future in futures]


async def ask_together_async(
    asking: Sequence[Callable[[], Coroutine[Any, Any, _T]]], seconds: float
) -> list[_T | OllamaError | None]:
    """Do what `ask_together` does, with coroutines. One that is not done in time is cancelled."""
    if not asking:
        return []
    tasks = [asyncio.ensure_future(function()) for function in asking]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.wait(tasks)
    return [_result(task) if task in done else None for task in tasks]


def _result(future: "Future[Any] | asyncio.Future[Any]") -> Any:
    try:
        return future.result()
    except OllamaError as error:
        return error
