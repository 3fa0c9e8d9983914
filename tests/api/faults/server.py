"""A server that plays scripts byte by byte: what it sends need be neither JSON nor HTTP."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tests.api.faults.operations import OPERATIONS, Operation

_BY_NAME = {operation.name: operation for operation in OPERATIONS}
_BY_TARGET = {(operation.request.method, operation.request.target): operation for operation in OPERATIONS}


@dataclass(frozen=True)
class Call:
    """A request as it was received, and which operation it is."""

    operation: Operation
    fields: dict[str, Any]

    @property
    def has_body(self) -> bool:
        """Return whether the answer may have a body."""
        return self.operation.request.method != "HEAD"


@dataclass(frozen=True)
class Wait:
    """Send nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Forever:
    """Send the same bytes again and again, until the client hangs up."""

    data: bytes
    every: float = 0.0


class Hold:
    """Send nothing, until the client hangs up."""


class Reset:
    """Reset the connection instead of closing it."""


class Keep:
    """Wait for the next request on the same connection instead of closing it."""


Step = bytes | Wait | Forever | Hold | Reset | Keep
#: What to do about a request.
Script = Callable[[Call], Iterable[Step]]


class Stage:
    """A script that is played under a URL of its own.

    Attributes:
        url: base URL for a client.
        requests: how many came, by the operation's name.
        sent: bytes that were written to connections, by the operation's name.
    """

    def __init__(self, script: Script, url: str) -> None:
        self.script = script
        self.url = url
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()


class Server:
    """Plays scripts in a thread of its own, each under a base path.

    Attributes:
        resources: what else is closed with the server.
    """

    def __init__(self) -> None:
        self.resources = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faults", daemon=True)
        self._stages: dict[str, Stage] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread.start()
        self._port = self._call(self._listen(None))

    def play(self, script: Script, tls: ssl.SSLContext | None = None) -> Stage:
        """Play a script to every request below a new URL; with a TLS context on a port of its own."""
        port = self._port if tls is None else self._call(self._listen(tls))
        number = str(len(self._stages))
        stage = Stage(script, f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/{number}")
        self._stages[number] = stage
        return stage

    def close(self) -> None:
        """End all connections and the thread."""
        self.resources.close()
        self._call(self._cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(10)

    async def _listen(self, tls: ssl.SSLContext | None) -> int:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls, backlog=256)
        return server.sockets[0].getsockname()[1]

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        except UnicodeError:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        number, call = await _receive(reader)
        stage = self._stages[number]
        stage.requests[call.operation.name] += 1

        async def send(data: bytes) -> None:
            writer.write(data)
            stage.sent[call.operation.name] += len(data)
            await writer.drain()

        for step in stage.script(call):
            match step:
                case bytes():
                    await send(step)
                case Wait():
                    await asyncio.sleep(step.seconds)
                case Forever():
                    while not reader.at_eof():
                        await send(step.data)
                        await asyncio.sleep(step.every)
                case Hold():
                    await reader.read()
                case Reset():
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                case Keep():
                    return True
        return False


async def _receive(reader: asyncio.StreamReader) -> tuple[str, Call]:
    """Read a request; return the number of its stage, and what it asks for.

    Raises:
        asyncio.IncompleteReadError: the client has hung up.
        UnicodeError: it does not speak HTTP.
    """
    begun = (await reader.readexactly(3)).decode()
    if not begun.isalpha():
        raise UnicodeError("not HTTP")
    head = begun + (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, target, _ = head.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))}
    if "transfer-encoding" in headers:
        body = await reader.readuntil(b"0\r\n\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    _, number, path = target.split("/", 2)
    fields = json.loads(body) if body.startswith(b"{") else {}
    operation = _BY_NAME.get(fields.get("model", "")) or _BY_TARGET[method, f"/{path}"]
    return number, Call(operation, fields)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run a server."""
    running = Server()
    try:
        yield running
    finally:
        running.close()
