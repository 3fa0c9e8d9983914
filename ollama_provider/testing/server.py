"""Serve a stand-in over HTTP on a real socket, in a thread of its own."""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import unquote

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from ollama_provider.testing.endpoints.routes import error
from ollama_provider.testing.exchange import Disconnect, Head, Line, Pause, Request, Response, Step, Steps, Wait
from ollama_provider.testing.stand_in import StandIn

_WRITE_BUFFER_BYTES = 32_768
"""Lines without a pause between them are sent together, up to this many bytes."""


class _Connection(web.RequestHandler):
    """Answers invalid HTTP as Go's server does, and an invalid chunked body as Ollama does."""

    _reading: StreamReader | None = None
    _broken: HttpProcessingError | None = None

    async def read(self, body: StreamReader, limit: int) -> bytes:
        """Read the body of a request.

        Args:
            body: The body.
            limit: Number of bytes, -1 for all.

        Raises:
            HttpProcessingError: The chunked encoding is invalid.
        """
        self._reading = body
        try:
            data = await body.read(limit)
        finally:
            self._reading = None
        if self._broken is not None:
            raise self._broken
        return data

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A message before the end of the body can only be aiohttp's report that the body is invalid. aiohttp does not
        # pass it on to the reader of the body.
        if self._reading is not None and self._messages and not self._reading.is_eof():
            self._broken = getattr(self._messages[0][0], "exc", None) or HttpProcessingError()
            self._reading.feed_eof()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if "chunk" in (why := str(exc).lower()):
            text = "invalid byte in chunk length" if "size" in why else "malformed chunked encoding"
            response = _to_aiohttp(error(400, text))
        else:
            response = _to_aiohttp(Response(400, b"400 Bad Request", "text/plain; charset=utf-8"))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> _Connection:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Server:
    """A stand-in that listens on a port.

    Args:
        stand_in: Answers the requests.
        host: Address to listen on.
        port: 0 for any free port. A later `start` uses the same one.

    Attributes:
        stand_in: Answers the requests.
        host: Address that it listens on.
        port: Port that it listens on, once it has started.
    """

    def __init__(self, stand_in: StandIn, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.stand_in = stand_in
        self.host = host
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ollama stand-in", daemon=True)
        self._runner: web.ServerRunner | None = None
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start to listen; after `stop` on the same port.

        Raises:
            OSError: The port is taken.
        """
        self._run(self._start())

    def stop(self) -> None:
        """Stop as Ollama does on SIGTERM: close every open connection, and unload all models."""
        self._run(self._stop())

    def close(self) -> None:
        """Stop, and end the thread."""
        if self._thread.is_alive():
            self.stop()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        if self._runner is not None:
            return
        # Ollama ignores Content-Encoding: a compressed body is invalid JSON.
        server = _Server(self._answer, handler_cancellation=True, access_log=None, auto_decompress=False)
        runner = web.ServerRunner(server, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, self.host, self.port, backlog=1024)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self.port = runner.addresses[0][1]
        self._runner = runner

    async def _stop(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        # First let accepted sockets become connections, which takes several iterations of the loop: asyncio loses
        # them, still open, if it stops listening before.
        for _ in range(5):
            await asyncio.sleep(0)
        # Abort them all, also idle ones: closing them normally would wait for clients that do not read.
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        self.stand_in.restart()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise asyncio.CancelledError
        raw_path, _, query = request.raw_path.partition("?")
        path = unquote(raw_path)
        limit = self.stand_in.body_limit(request.method, path)
        # Not with request.read(), which limits the size: Ollama does not.
        connection = cast("_Connection", request.protocol)
        try:
            body = await connection.read(request.content, -1 if limit is None else limit)
        except HttpProcessingError as wrong:
            return connection.handle_error(request, 400, wrong)
        headers = {name.lower(): value for name, value in request.headers.items()}
        steps = self.stand_in.exchange(Request(request.method, path, headers, body, query))
        try:
            return await self._send(request, transport, steps)
        except ConnectionResetError:
            # The client has disconnected. aiohttp would log it as an error.
            raise asyncio.CancelledError from None
        finally:
            # Also when the client disconnects or the server stops: it returns the slot or leaves the queue.
            steps.close()

    async def _send(self, request: web.BaseRequest, transport: asyncio.Transport, steps: Steps) -> web.StreamResponse:
        stream: web.StreamResponse | None = None
        for step in _join_lines(steps):
            match step:
                case Response():
                    return _to_aiohttp(step)
                case Head():
                    stream = web.StreamResponse(status=step.status, headers={"Content-Type": step.content_type})
                    await stream.prepare(request)
                case Line():
                    assert stream is not None  # noqa: S101 - handlers send the head first
                    await stream.write(step.data)
                case Pause():
                    await asyncio.sleep(step.seconds)
                case Wait():
                    await self._wait(step)
                case Disconnect():
                    _disconnect(transport, reset=step.reset)
                    raise asyncio.CancelledError
        if stream is None:
            raise RuntimeError("the steps of the reply contain no response")
        await stream.write_eof()
        return stream

    async def _wait(self, step: Wait) -> None:
        passed = asyncio.Event()

        def wake() -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(passed.set)

        step.gate.on_open(wake)
        try:
            await passed.wait()
        finally:
            # A client that leaves must not stay in the list of a gate that serves for every request.
            step.gate.forget(wake)


def _join_lines(steps: Steps) -> Iterator[Step]:
    """Lines between which nothing is waited for, as one."""
    lines = bytearray()
    for step in steps:
        if isinstance(step, Line):
            lines += step.data
            if len(lines) < _WRITE_BUFFER_BYTES:
                continue
            yield Line(bytes(lines))
        else:
            if lines:
                yield Line(bytes(lines))
            yield step
        lines.clear()
    if lines:
        yield Line(bytes(lines))


def _to_aiohttp(step: Response) -> web.Response:
    response = web.Response(status=step.status, body=step.body, headers=dict(step.headers))
    if step.content_type is not None:
        response.headers["Content-Type"] = step.content_type
    else:
        response.headers.pop("Content-Type", None)
    return response


def _disconnect(transport: asyncio.Transport, *, reset: bool) -> None:
    if reset:
        # With a linger time of 0, the kernel sends RST instead of FIN.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


@contextmanager
def serve(stand_in: StandIn | None = None, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    """Serve a stand-in in a thread during a `with` block.

    Args:
        stand_in: Answers the requests; by default a new one.
        host: Address to listen on.
        port: 0 for any free port.

    Raises:
        OSError: The port is taken.
    """
    server = Server(stand_in or StandIn(), host=host, port=port)
    try:
        server.start()
        yield server
    finally:
        server.close()
