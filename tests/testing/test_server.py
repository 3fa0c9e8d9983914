"""The stand-in behind its socket: HTTP details, concurrent requests, clients that disconnect."""

import asyncio
import gc
import http.client
import json
import socket
import warnings

import httpx
import pytest

from ollama_provider.testing import Gate, Pace, Server, Stall, StandIn, serve

ASK = {"model": "llama3.2", "prompt": "hello", "stream": False}


def raw(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
    """Send a request whose path no client has changed."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    response.content = response.read()
    connection.close()
    return response


def test_liveness(ollama: Server) -> None:
    """GET / is text; HEAD has the same headers and no body."""
    assert raw(ollama, "GET", "/").content == b"Ollama is running"
    assert raw(ollama, "HEAD", "/").getheader("Content-Length") == "17"
    assert raw(ollama, "HEAD", "/api/tags").status == 200


@pytest.mark.parametrize(
    ("path", "method", "status", "location"),
    [
        ("//api/chat", "POST", 307, "/api/chat"),
        ("//api/tags", "GET", 307, "/api/tags"),
        ("//nonsense", "GET", 307, "/nonsense"),
        ("/x/../api/tags?a=1&b", "GET", 307, "/api/tags?a=1&b"),
        ("/api/tags/", "GET", 301, "/api/tags"),
        ("/api/chat/", "POST", 307, "/api/chat"),
    ],
)
def test_unclean_paths_are_redirected(ollama: Server, path: str, method: str, status: int, location: str) -> None:
    """A base URL with a trailing slash in front of an absolute path ends in a redirect, before any other check."""
    response = raw(ollama, method, path, Host="evil.example.com")

    assert (response.status, response.getheader("Location")) == (status, location)
    assert (f'href="{location.replace("&", "&amp;")}"'.encode() in response.content) is (method == "GET")
    assert response.getheader("Content-Type") == ("text/html; charset=utf-8" if method == "GET" else None)


def test_a_query_does_not_change_the_path(ollama: Server) -> None:
    """Queries are ignored."""
    assert raw(ollama, "GET", "/api/version?x=1").status == 200


def test_foreign_hosts_are_refused_with_an_empty_body(ollama: Server) -> None:
    """A server that listens on loopback refuses them, against DNS rebinding."""
    refused = raw(ollama, "GET", "/api/version", Host="ollama.example.com")

    assert (refused.status, refused.content) == (403, b"")
    for host in ("localhost:1", "127.0.0.1", "[::1]:11434", "box.local", "10.1.2.3:80"):
        assert raw(ollama, "GET", "/api/version", Host=host).status == 200


@pytest.mark.ollama(loopback=False)
def test_a_server_on_all_addresses_accepts_any_host(ollama: Server) -> None:
    """A server that listens on 0.0.0.0 accepts them."""
    assert raw(ollama, "GET", "/api/version", Host="ollama.example.com").status == 200


def test_bodies_may_be_large(ollama: Server) -> None:
    """Ollama has no limit: a 413 always comes from a proxy."""
    response = httpx.post(f"{ollama.url}/api/generate", json=ASK | {"prompt": "word " * 600_000})

    assert response.status_code == 200


def test_requests_are_logged(ollama: Server) -> None:
    """A test can read method, path, headers and JSON body."""
    httpx.post(f"{ollama.url}/api/generate", json=ASK, headers={"X-Team": "data"})

    (seen,) = ollama.stand_in.requests

    assert (seen.method, seen.path, seen.model, seen.json) == ("POST", "/api/generate", "llama3.2", ASK)
    assert seen.headers["x-team"] == "data"


async def test_one_slot_serves_first_come_first_served() -> None:
    """With parallel=1 the others wait in their order. Only `total_duration` contains the wait."""
    stand_in = StandIn()
    gate = Gate()
    stand_in.script(("first", Stall(until=gate)), "second", "third")
    with serve(stand_in) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(client.post("/api/generate", json=ASK | {"prompt": str(number)})))
                await asyncio.to_thread(stand_in.wait_until, lambda s, n=number: len(s.open_requests) == n + 1)
            done_before = [task.done() for task in tasks]
            gate.open()
            replies = [response.json() for response in await asyncio.gather(*tasks)]

    assert done_before == [False] * 3
    assert [reply["response"] for reply in replies] == ["first", "second", "third"]


async def test_as_many_slots_as_it_was_given() -> None:
    """With parallel=2 two requests are answered while a third waits."""
    stand_in = StandIn(parallel=2)
    gates = [Gate(), Gate()]
    stand_in.script(*(("held", Stall(until=gate)) for gate in gates), "free")
    with serve(stand_in) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
            held = [asyncio.create_task(client.post("/api/generate", json=ASK)) for _ in gates]
            await asyncio.to_thread(stand_in.wait_until, lambda s: len(s.open_requests) == 2)
            third = asyncio.create_task(client.post("/api/generate", json=ASK))
            await asyncio.to_thread(stand_in.wait_until, lambda s: len(s.open_requests) == 3)
            gates[1].open()
            free = await third
            still_held = [task.done() for task in held]
            gates[0].open()
            await asyncio.gather(*held)

    assert free.json()["response"] == "free"
    assert still_held.count(False) == 1


def test_a_client_that_leaves_while_the_model_loads_aborts_the_load(ollama: Server) -> None:
    """The next request starts the load again."""
    ollama.stand_in.script(Pace(load=30))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{ollama.url}/api/generate", json=ASK, timeout=0.05)
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)
    aborted = ollama.stand_in.loads

    assert aborted == []
    assert httpx.post(f"{ollama.url}/api/generate", json=ASK).status_code == 200
    assert ollama.stand_in.loads == ["llama3.2:latest"]


def test_a_client_that_leaves_the_stream_frees_the_slot(ollama: Server) -> None:
    """A client cancels a request by closing the connection."""
    ollama.stand_in.script(("word " * 1000, Pace(between_tokens=0.01)))
    with httpx.stream("POST", f"{ollama.url}/api/generate", json=ASK | {"stream": True}) as response:
        first = next(response.iter_lines())
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    assert json.loads(first)["response"] == "word"
    assert httpx.post(f"{ollama.url}/api/generate", json=ASK).status_code == 200


def test_clients_that_leave_a_stalled_stream_leave_nothing_behind(ollama: Server) -> None:
    """One scripted stall serves for every request, however many clients give up."""
    stall = Stall(after=1)
    ollama.stand_in.script(stall, always=True)
    for _ in range(3):
        with httpx.stream("POST", f"{ollama.url}/api/generate", json=ASK | {"stream": True}) as response:
            next(response.iter_lines())
        ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    assert stall.until._waiting == []


def test_a_taken_port_is_an_error() -> None:
    """The server that could not listen is cleaned up."""
    with serve() as first, pytest.raises(OSError, match="address already in use"), serve(port=first.port):
        pass


def test_start_and_stop_may_be_repeated(ollama: Server) -> None:
    """`stop` on a stopped server and `start` on a running one do nothing."""
    ollama.start()
    ollama.stop()
    ollama.stop()
    ollama.start()

    assert httpx.get(f"{ollama.url}/api/version").status_code == 200


def test_a_condition_that_never_holds_times_out(ollama: Server) -> None:
    """`wait_until` raises an error that lists the open requests."""
    with pytest.raises(TimeoutError, match="open requests"):
        ollama.stand_in.wait_until(lambda _: False, seconds=0.01)


def test_closing_leaves_no_socket_open() -> None:
    """Also a connection that was accepted just before is closed."""
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(5):
            with serve() as server:
                clients = [socket.create_connection((server.host, server.port)) for _ in range(5)]
            for client in clients:
                client.close()
            del server
        gc.collect()

    assert [str(warning.message) for warning in seen] == []


def test_a_query_is_no_part_of_the_path() -> None:
    """`answer` gives the same reply as the socket."""
    assert StandIn().answer("GET", "/api/version?x=1").status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "nonsense"])
def test_a_compressed_body_is_no_json(ollama: Server, encoding: str) -> None:
    """Ollama ignores Content-Encoding."""
    answer = raw(ollama, "POST", "/api/generate", b"\x1f\x8b\x08", **{"Content-Encoding": encoding})

    assert (answer.status, json.loads(answer.content)) == (
        400,
        {"error": r"invalid character '\x1f' looking for beginning of value"},
    )


HEAD = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        (b"zz\r\n{}\r\n0\r\n\r\n", b"invalid byte in chunk length"),
        (b"2\r\n{}XX0\r\n\r\n", b"malformed chunked encoding"),
    ],
)
@pytest.mark.parametrize("later", [True, False], ids=["in a packet of their own", "with the head"])
def test_broken_chunks(
    ollama: Server, caplog: pytest.LogCaptureFixture, chunks: bytes, text: bytes, later: bool
) -> None:
    """The reply is Ollama's, whenever the invalid chunk arrives, and no traceback is logged."""
    with socket.create_connection((ollama.host, ollama.port), timeout=5) as client:
        for part in (HEAD, chunks) if later else (HEAD + chunks,):
            client.sendall(part)
            if later and part is HEAD:
                # The server waits for the body by then; if it does not, this is the other case.
                client.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(5)
        answer = b"".join(iter(lambda: client.recv(4096), b""))

    assert b" 400 Bad Request\r\n" in answer
    assert answer.endswith(b'{"error":"' + text + b'"}')
    assert not caplog.records


@pytest.mark.parametrize("head", [b"GET api/tags HTTP/1.1\r\nHost: localhost", b"GET /api/tags HTTP/1.1\r\nno header"])
def test_what_is_no_http(ollama: Server, caplog: pytest.LogCaptureFixture, head: bytes) -> None:
    """The reply is that of Go's HTTP server, and no traceback is logged."""
    with socket.create_connection((ollama.host, ollama.port), timeout=5) as client:
        client.sendall(head + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))

    assert answer.endswith(b"\r\n\r\n400 Bad Request")
    assert not caplog.records
