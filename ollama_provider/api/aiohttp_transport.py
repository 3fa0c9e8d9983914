"""The transport of AsyncClient: aiohttp's connections, with stricter checks of where an answer ends.

A module of its own, because it loads aiohttp. Nothing that a DAG file imports may do that.
"""

import asyncio
import functools
import ssl
from typing import Any

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from httpx_aiohttp import AiohttpTransport

#: Bytes that may come between two bytes of a body: sizes, extensions and trailers of chunks.
MOST_FRAMING = 256 * 1024


def make_transport(
    tls: ssl.SSLContext, proxy: httpx.Proxy | None, *, connections: int, keep_alive: float
) -> AiohttpTransport:
    """Return a transport with a pool of its own; call it in the event loop that uses it.

    Args:
        tls: how certificates are checked.
        proxy: to send through.
        connections: at a time.
        keep_alive: seconds an idle connection is kept.
    """

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=keep_alive, ssl=tls)
        # aiohttp has no public way to choose the class of its connections.
        setattr(connector, "_factory", functools.partial(_Connection, loop=asyncio.get_running_loop()))  # noqa: B010
        # Cookies would make one request depend on another; `Client` has none either.
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(verify=tls, proxy=proxy, trust_env=False, client=session)


class _Connection(ResponseHandler):
    """A connection that is closed when bytes arrive beyond the end of an answer.

    aiohttp would read them as the answer to the next request. It would also lose the head of an answer whose body is
    broken from its first byte, and let the reader of a body that breaks later wait without end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._begun = b""
        self._answered = False
        self._body_size = self._framing = 0

    def set_response_params(self, **params: Any) -> None:
        """Prepare for the answer to the next request."""
        self._begun, self._answered, self._payload = b"", False, None
        self._body_size = self._framing = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Receive bytes of the answer."""
        # A call without data only tells aiohttp's parser to go on with what it has.
        if self._answered and data and (self._payload is None or self._payload.is_eof()):
            self.close()
            return
        if not self._answered:
            self._begun = (self._begun + data)[:8]
            end = data.find(b"\r\n\r\n") + 4
            if 4 <= end < len(data):
                # The head by itself, since aiohttp drops everything that it parses in one call with a broken part.
                self._parse(data[:end])
                data = data[end:]
        self._parse(data)
        self._bound_framing(len(data))

    def _bound_framing(self, received: int) -> None:
        """Fail if bytes keep coming and none of them belongs to the body: aiohttp would read them without end."""
        payload = self._payload
        size = getattr(payload, "total_bytes", 0)
        self._framing = self._framing + received if size == self._body_size else 0
        self._body_size = size
        if self._framing > MOST_FRAMING and payload is not None and not payload.is_eof():
            payload.set_exception(aiohttp.ClientPayloadError("the answer is no valid HTTP"))
            if self.transport is not None:
                self.transport.close()

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        payload = self._payload
        if payload is not None and self.exception() is not None and not payload.is_eof():
            # What was received before the broken part can be read. Then the answer ends, and is found incomplete.
            payload.feed_eof()

    def resume_reading(self, *args: Any, **named: Any) -> None:
        """Go on reading, if it was paused. aiohttp calls this for each chunk of an answer, and does a lot each time."""
        if self._reading_paused:
            super().resume_reading(*args, **named)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Receive the head of an answer."""
        self._answered = self._answered or data[0].code >= 200
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail. What began as HTTP is a broken answer; otherwise the server does not speak HTTP."""
        if isinstance(exc, HttpProcessingError) and self._begun.startswith(b"HTTP/"):
            exc = aiohttp.ClientPayloadError("the answer is no valid HTTP")
        super().set_exception(exc, *cause)
