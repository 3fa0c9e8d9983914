"""The stand-in behind a real socket, in a thread of its own."""

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
from ollama_provider.testing.exchange import Break, Head, Line, Pause, Request, Step, Steps, Wait, Whole
from ollama_provider.testing.stand_in import StandIn

_AT_ONCE = 32_768
"""Bytes of lines that are sent together when nothing is waited for between them."""


class _Connection(web.RequestHandler):
    """A connection that answers what is no HTTP as Go's server does, and as Ollama does where that is in the body."""

    _reading: StreamReader | None = None
    _broken: HttpProcessingError | None = None

    async def read(self, body: StreamReader, limit: int) -> bytes:
        """Read a body.

        Args:
            body: That of the request that is being answered.
            limit: Bytes, -1 for all.

        Raises:
            HttpProcessingError: Its chunks are none.
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
        # Nothing can come before the end of a body but aiohttp's note that it is broken, of which the reader of that
        # body would not hear.
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
            response = _whole(error(400, text))
        else:
            response = _whole(Whole(400, b"400 Bad Request", "text/plain; charset=utf-8"))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> _Connection:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Server:
    """A stand-in that listens.

    Args:
        stand_in: Who answers.
        host: Address to listen on.
        port: 0 is any free port; it is kept over `stop` and `start`.

    Attributes:
        stand_in: Who answers.
        host: Address.
        port: The real port.
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
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Listen, again on the same port after `stop`.

        Raises:
            OSError: The port is taken.
        """
        self._run(self._start())

    def stop(self) -> None:
        """Stop as Ollama does on SIGTERM: every open connection breaks, loaded models are gone."""
        self._run(self._stop())

    def close(self) -> None:
        """Stop for good."""
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
        # Ollama does not look at Content-Encoding: a compressed body is one that is no JSON.
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
        # Who has come in becomes a connection first: asyncio loses a socket that it has accepted when it stops
        # listening before that is done, which takes some turns of the loop.
        for _ in range(5):
            await asyncio.sleep(0)
        # Idle ones too: a polite end would wait for clients that do not read.
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
        # Not request.read(): Ollama has no limit for the size of a body.
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
            # The client hung up; aiohttp would log an error of ours.
            raise asyncio.CancelledError from None
        finally:
            # Or the server stops: the stand-in gives slot and place in the queue back.
            steps.close()

    async def _send(self, request: web.BaseRequest, transport: asyncio.Transport, steps: Steps) -> web.StreamResponse:
        stream: web.StreamResponse | None = None
        for step in _joined(steps):
            match step:
                case Whole():
                    return _whole(step)
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
                case Break():
                    _break(transport, reset=step.reset)
                    raise asyncio.CancelledError
        if stream is None:
            raise RuntimeError("an exchange without an answer")
        await stream.write_eof()
        return stream

    async def _wait(self, step: Wait) -> None:
        passed = asyncio.Event()

        def wake() -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(passed.set)

        step.gate.on_open(wake)
        await passed.wait()


def _joined(steps: Steps) -> Iterator[Step]:
    """Lines between which nothing is waited for, as one."""
    lines = bytearray()
    for step in steps:
        if isinstance(step, Line):
            lines += step.data
            if len(lines) < _AT_ONCE:
                continue
            yield Line(bytes(lines))
        else:
            if lines:
                yield Line(bytes(lines))
            yield step
        lines.clear()
    if lines:
        yield Line(bytes(lines))


def _whole(step: Whole) -> web.Response:
    response = web.Response(status=step.status, body=step.body, headers=dict(step.headers))
    if step.content_type is not None:
        response.headers["Content-Type"] = step.content_type
    else:
        response.headers.pop("Content-Type", None)
    return response


def _break(transport: asyncio.Transport, *, reset: bool) -> None:
    if reset:
        # Linger for no time: the kernel answers with RST instead of FIN.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


@contextmanager
def serve(stand_in: StandIn | None = None, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    """Serve a stand-in in a thread for the length of a `with` block.

    Args:
        stand_in: Who answers, by default a new one.
        host: Address to listen on.
        port: 0 is any free port.

    Raises:
        OSError: The port is taken.
    """
    server = Server(stand_in or StandIn(), host=host, port=port)
    try:
        server.start()
        yield server
    finally:
        server.close()
