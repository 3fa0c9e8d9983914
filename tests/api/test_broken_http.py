"""Answers whose HTTP is broken, and connections with more in them than an answer: the same outcome on both clients."""

import asyncio
import socket
import sys
import time

import httpx
import pytest

from ollama_provider.api import errors
from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.schemas import GenerateRequest, PushBlobRequest, VersionRequest
from ollama_provider.api.settings import Settings
from ollama_provider.api.transport import ConnectionPool
from tests.sockets import listening

GENERATE = GenerateRequest(model="m", prompt="my secret diary")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
FIRST = b'{"model":"m","response":"hi","done":false}\n'
LAST = b'{"model":"m","response":"","done":true,"done_reason":"stop"}\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answering(*packets: bytes):
    """A server that answers one request a connection with these packets, a moment apart."""

    def serve_one(connection: socket.socket) -> None:
        connection.recv(65536)
        for packet in packets:
            connection.sendall(packet)
            time.sleep(0.02)

    return listening(serve_one)


@pytest.mark.parametrize(
    "packets",
    [
        (CHUNKED + chunk(FIRST) + b"zz\r\ngarbage",),
        (CHUNKED + chunk(FIRST), b"zz\r\ngarbage"),
        (CHUNKED + b"xyz\r\n",),
        (CHUNKED, b"\xff\xfe\x00\x01" * 100),
        (CHUNKED + b"2b\r\n" + FIRST + b"!!",),
        (CHUNKED + chunk(FIRST),),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + FIRST + LAST,),
        (HEAD + b"Content-Length: abc\r\n\r\n" + FIRST + LAST,),
        (HEAD + b"Content-Length: -5\r\n\r\n" + FIRST + LAST,),
        (HEAD + b"Content-Length: 99999999999999999999999999999999\r\n\r\n" + FIRST + LAST,),
        (HEAD + b"Content-Length: 10\r\n\r\n" + FIRST + LAST,),
        (HEAD + b"Content-Length: 1000\r\n\r\n" + FIRST,),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",),
        (b"HTTP/1.1 abc OK\r\n\r\n",),
        (b"HTTP/1.1 1000 OK\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + FIRST,),
        (b"HTTP/1.1 204 No Content\r\n\r\n",),
    ],
    ids=lambda packets: repr(b" | ".join(packets).replace(HEAD, b""))[2:40],
)
def test_an_answer_that_is_broken_is_worth_another_attempt(on, packets):
    """It began as HTTP, so it is no other program: something broke on the way, at once or later."""
    with answering(*packets) as url, pytest.raises(errors.IncompleteReplyError) as raised:
        on.send(GENERATE, base_url=url, max_attempts=1)

    assert raised.value.retryable
    assert "diary" not in str(raised.value)


@pytest.mark.parametrize(
    "packets", [(CHUNKED + chunk(FIRST + LAST) + b"zz\r\n",), (CHUNKED + chunk(FIRST + LAST), b"zz\r\n")]
)
def test_what_breaks_behind_the_last_object_took_nothing_away(on, packets):
    """The answer is whole."""
    with answering(*packets) as url:
        (reply,) = on.send(GENERATE, base_url=url, max_attempts=1)

    assert reply.text == "hi"


def test_what_came_before_the_fault_is_read(on):
    """A stream gives its parts, then the error."""
    with answering(CHUNKED + chunk(FIRST), b"zz\r\n") as url, pytest.raises(errors.IncompleteReplyError):
        on.stream(GENERATE, base_url=url)


@pytest.mark.parametrize(
    "surplus",
    [
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{"version":"666"}',
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n",
        b"HTTP/1.1 200 O",
        b"junk",
        b"\r\n",
    ],
    ids=["an answer", "the head of an answer", "a piece of a head", "junk", "a line break"],
)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_what_follows_an_answer_is_no_answer_to_the_next_request(surplus, later):
    """The connection is closed, so each request gets its own answer."""
    count = 0

    def serve_one(connection: socket.socket) -> None:
        nonlocal count
        while connection.recv(65536):
            count += 1
            body = b'{"version":"%d"}' % count
            answer = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            connection.sendall(answer if later else answer + surplus)
            if later:
                time.sleep(0.02)
                connection.sendall(surplus)

    with listening(serve_one) as url, Client(Settings(base_url=url)) as client:
        found = []
        for _ in range(3):
            found.append(client.send(VersionRequest()).version)
            time.sleep(0.05)

    async def ask() -> list[str]:
        async with AsyncClient(Settings(base_url=url)) as client:
            found = []
            for _ in range(3):
                found.append((await client.send(VersionRequest())).version)
                await asyncio.sleep(0.05)
            return found

    assert found == ["1", "2", "3"]
    count = 0
    with listening(serve_one) as url:
        assert asyncio.run(ask()) == ["1", "2", "3"]


class UnforeseenError(Exception):
    """What no library is known to raise."""


@pytest.mark.parametrize(
    "fault",
    [UnforeseenError, ValueError, KeyError, RecursionError, OSError, UnicodeError, httpx.InvalidURL, RuntimeError],
)
def test_whatever_the_libraries_raise_is_told_as_one_of_our_errors(on, fault):
    """The only exception that leaves `send` is an `OllamaError`."""

    def answering(request: httpx.Request) -> httpx.Response:
        raise fault("my secret diary")

    with pytest.raises(errors.TransportError) as raised:
        on.send(GENERATE, answering=answering, base_url="http://h", max_attempts=1)

    assert raised.value.retryable
    assert "diary" not in str(raised.value)


class Faulty(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that fails when it is read, and when it is closed."""

    def __iter__(self):
        yield FIRST
        raise UnforeseenError

    async def __aiter__(self):
        yield FIRST
        raise UnforeseenError

    def close(self):
        raise UnforeseenError

    async def aclose(self):
        raise UnforeseenError


def test_whatever_is_raised_in_the_middle_of_an_answer_or_at_its_close_is_ours(on):
    """In `send` and, behind the parts that came, in `stream`."""
    with pytest.raises(errors.TransportError, match="UnforeseenError"):
        on.send(GENERATE, answering=lambda _: httpx.Response(200, stream=Faulty()), base_url="http://h", max_attempts=1)


def test_a_source_that_fails_is_no_fault_of_the_network(on, ollama):
    """What the source of an upload raises comes out as it is, after one attempt."""

    def source():
        yield b"GGUF"
        raise FileNotFoundError("model.gguf")

    with pytest.raises(FileNotFoundError):
        on.send(PushBlobRequest(digest="sha256:" + "0" * 64, size=10, source=source), base_url=ollama.url)

    assert on.events == []


def test_a_client_may_be_closed_while_it_is_closed(ollama):
    """By a signal handler or another thread, between any two lines: neither raises."""
    for line in range(1, 6):
        client = Client(Settings(base_url=ollama.url))
        client.send(VersionRequest())
        lines = 0

        def watch(frame, event, _, client=client, line=line):
            nonlocal lines
            if frame.f_code is not ConnectionPool.close.__code__:
                return None
            lines += event == "line"
            if event == "line" and lines == line:
                client.close()
            return watch

        before = sys.gettrace()
        sys.settrace(watch)
        try:
            client.close()
        finally:
            sys.settrace(before)
        assert lines >= line


async def test_an_async_client_may_be_closed_from_many_tasks_at_once(ollama):
    """None of them raises."""
    client = AsyncClient(Settings(base_url=ollama.url))
    await client.send(VersionRequest())

    await asyncio.gather(*(client.close() for _ in range(4)))


def test_a_connection_that_cannot_be_made_gives_its_place_back(monkeypatch, ollama):
    """With one place, the second request would wait for ever."""
    with Client(Settings(base_url=ollama.url, max_attempts=1), concurrency=1) as client:
        with monkeypatch.context() as patch:
            patch.setattr(httpx, "HTTPTransport", None)
            with pytest.raises(errors.TransportError):
                client.send(VersionRequest())

        assert client.send(VersionRequest()).version


def test_no_cookie_goes_from_one_answer_to_the_next_request(on):
    """A request depends on nothing but itself."""
    heads = []

    def serve_one(connection: socket.socket) -> None:
        heads.append(connection.recv(65536))
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: a=b; Path=/\r\n"
            b'Content-Length: 15\r\nConnection: close\r\n\r\n{"version":"1"}'
        )

    with listening(serve_one) as url:
        on.send(VersionRequest(), VersionRequest(), base_url=url.replace("127.0.0.1", "localhost"))

    assert len(heads) == 2
    assert not any(b"cookie" in head.lower() for head in heads)
