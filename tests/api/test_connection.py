"""What holds between a client and its connections: reuse, turns, closing, TLS, proxies, headers."""

import asyncio
import base64
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ollama_provider.api import errors
from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.proxies import is_exempt
from ollama_provider.api.schemas import GenerateRequest, ShowRequest, TagsRequest, VersionRequest
from ollama_provider.api.settings import Settings
from ollama_provider.testing import Gate, Pace, Respond, Stall
from tests.sockets import listening
from tests.tls import make_certificate, tls_server

GENERATE = GenerateRequest(model="llama3.2", prompt="hi")


@pytest.fixture
def settings(ollama):
    return Settings(base_url=ollama.url)


# Closing


def test_closing_from_another_thread_ends_a_wait_at_once(ollama, settings):
    """`on_kill` closes the client while the task waits for the first token."""
    ollama.stand_in.script(Stall())
    client = Client(settings)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.send, GENERATE)
        ollama.stand_in.wait_until(lambda stand_in: stand_in.open_requests)
        client.close()
        with pytest.raises(errors.ClientClosedError):
            waiting.result(5)

    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_closing_ends_a_wait_on_a_connection_that_was_used_before(ollama, settings):
    """Which connection a request waits on is known also when it is an old one."""
    client = Client(settings)
    client.send(VersionRequest())
    ollama.stand_in.script(Stall())

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.send, GENERATE)
        ollama.stand_in.wait_until(lambda stand_in: stand_in.open_requests)
        client.close()
        with pytest.raises(errors.ClientClosedError):
            waiting.result(5)


def test_closing_from_a_signal_handler_ends_a_wait_at_once(ollama, settings):
    """Airflow calls `on_kill` from the handler of SIGTERM, in the very thread that waits."""
    ollama.stand_in.script(("One two three.", Stall(after=1)))
    client = Client(settings)
    before = signal.signal(signal.SIGUSR1, lambda *_: client.close())

    def interrupt() -> None:
        ollama.stand_in.wait_until(lambda stand_in: stand_in.open_requests)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(errors.ClientClosedError):
            client.send(GENERATE)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def patient(ollama, monkeypatch):
    """Settings that let a wait of a day happen: were it not ended, the test would run into its time limit."""
    monkeypatch.setattr("ollama_provider.api.retry._waits_are_free", False)
    ollama.stand_in.script(Respond(503, headers={"Retry-After": "86400"}))
    return Settings(base_url=ollama.url, max_retry_seconds=100_000)


def test_closing_ends_the_wait_between_two_attempts(patient):
    """A backoff does not outlive the client."""
    client = Client(patient, listener=lambda _: threading.Thread(target=client.close).start())

    with pytest.raises(errors.ClientClosedError):
        client.send(GENERATE)


async def test_closing_ends_the_wait_between_two_attempts_of_a_coroutine(patient):
    """A backoff does not outlive the client."""
    failed = asyncio.Event()
    client = AsyncClient(patient, listener=lambda _: failed.set())

    sending = asyncio.create_task(client.send(GENERATE))
    await failed.wait()
    await client.close()

    with pytest.raises(errors.ClientClosedError):
        await sending


async def test_closing_ends_the_requests_of_other_coroutines(ollama, settings):
    """Whoever waits for an answer learns that there will be none."""
    ollama.stand_in.script(Stall())
    client = AsyncClient(settings)

    sending = asyncio.create_task(client.send(GENERATE))
    await asyncio.to_thread(ollama.stand_in.wait_until, lambda stand_in: stand_in.open_requests)
    await client.close()

    with pytest.raises(errors.ClientClosedError):
        await sending


def test_a_closed_client_stays_closed(ollama, settings):
    """Nothing is sent any more, and closing twice does no harm."""
    client = Client(settings)
    client.close()
    client.close()

    with pytest.raises(errors.ClientClosedError, match="closed"):
        client.send(GENERATE)
    assert not ollama.stand_in.requests


async def test_cancelling_closes_the_connection(ollama, settings):
    """A task that is cancelled ends the work on the server, and the cancellation is not swallowed."""
    ollama.stand_in.script(("One two three.", Stall(after=1)), "fine")

    async with AsyncClient(settings) as client:
        sending = asyncio.create_task(client.send(GENERATE))
        await asyncio.to_thread(ollama.stand_in.wait_until, lambda stand_in: stand_in.open_requests)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.to_thread(ollama.stand_in.wait_until, lambda stand_in: not stand_in.open_requests)

        assert (await client.send(GENERATE)).text == "fine"


def test_leaving_a_stream_early_closes_the_connection(on, ollama):
    """It is how a caller ends a generation."""
    ollama.stand_in.script(("One two three.", Stall(after=2)))

    parts = on.stream(GENERATE, parts=1, base_url=ollama.url)

    assert len(parts) == 1
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


# Reuse and turns


class Counting:
    """Counts connections on their way to a server."""

    def __init__(self, url: str) -> None:
        self.made = 0
        self._target = httpx.URL(url)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.made += 1
                server = socket.create_connection((self._target.host, self._target.port))
                for pair in (client, server), (server, client):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_connections_are_used_again(on, ollama):
    """One client, one connection, for as many requests as come one after another, refused ones included."""
    ollama.stand_in.script(Respond(400, {"error": "invalid model name"}))
    with Counting(ollama.url) as way:
        with pytest.raises(errors.BadRequestError):
            on.send(GENERATE, base_url=way.url)
        assert way.made == 1

        on.send(GENERATE, VersionRequest(), TagsRequest(), GENERATE, base_url=way.url)
        assert way.made == 2


async def test_coroutines_wait_for_their_turn(ollama, settings):
    """No more requests are under way than `concurrency` says, and all get their answers."""
    gate = Gate()
    ollama.stand_in.script(Stall(until=gate), times=2)

    async with AsyncClient(settings, concurrency=2) as client:
        sending = [asyncio.create_task(client.send(GENERATE)) for _ in range(6)]
        await asyncio.to_thread(ollama.stand_in.wait_until, lambda stand_in: len(stand_in.open_requests) == 2)
        await asyncio.sleep(0.02)
        assert len(ollama.stand_in.requests) == 2
        gate.open()
        replies = await asyncio.gather(*sending)

    assert all(reply.done for reply in replies)


def test_threads_may_share_a_client(ollama, settings):
    """Each has a connection of its own while it needs one."""
    ollama.stand_in.script((Pace(first_token=0.01), "x"), always=True)

    with Client(settings) as client, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: client.send(GENERATE), range(40)))

    assert len(replies) == 40


async def test_coroutines_share_a_pull(ollama, settings):
    """However many miss the model at the same time, it is pulled once, and all get their answers."""
    async with AsyncClient(settings) as client:
        replies = await asyncio.gather(*[client.send(GenerateRequest(model="mistral", prompt="x")) for _ in range(8)])

    assert all(reply.done for reply in replies)
    assert [seen.path for seen in ollama.stand_in.requests].count("/api/pull") == 1


async def test_coroutines_share_the_failure_of_a_pull(ollama, settings):
    """A pull that failed is not tried again by everyone who waited for it."""
    async with AsyncClient(settings) as client:
        found = await asyncio.gather(
            *[client.send(GenerateRequest(model="no-such-model", prompt="x")) for _ in range(8)], return_exceptions=True
        )

    assert {type(error) for error in found} == {errors.PullFailedError}
    assert [seen.path for seen in ollama.stand_in.requests].count("/api/pull") == 1


async def test_a_later_miss_pulls_again(ollama, settings):
    """What is shared is one pull, not its outcome for all times."""
    async with AsyncClient(settings) as client:
        await client.send(GenerateRequest(model="mistral", prompt="x"))
        ollama.stand_in.remove("mistral")
        await client.send(GenerateRequest(model="mistral", prompt="x"))

    assert [seen.path for seen in ollama.stand_in.requests].count("/api/pull") == 2


async def test_a_slow_404_does_not_pull_again(settings):
    """A request that was on its way while another one's pull ended finds the model, and pulls nothing."""
    arrived, pulled, overtaken = asyncio.Event(), asyncio.Event(), asyncio.Event()
    pulls = 0

    async def server(request: httpx.Request) -> httpx.Response:
        nonlocal pulls
        if request.url.path == "/api/pull":
            pulls += 1
            pulled.set()
            return httpx.Response(200, content=b'{"status":"success"}\n')
        missing = httpx.Response(404, json={"error": "model 'm' not found"})
        if b"slow" in request.content and not overtaken.is_set():
            arrived.set()
            await overtaken.wait()
            return missing
        return httpx.Response(200, content=b'{"response":"x","done":true}\n') if pulled.is_set() else missing

    async with AsyncClient(settings, transport=httpx.MockTransport(server)) as client:
        slow = asyncio.ensure_future(client.send(GenerateRequest(model="m", prompt="slow")))
        await arrived.wait()
        await client.send(GenerateRequest(model="m", prompt="fast"))
        overtaken.set()
        await slow

    assert pulls == 1


# Headers


def sent_headers(on, ollama, **settings) -> dict[str, str]:
    on.send(VersionRequest(), base_url=ollama.url, **settings)
    return {name.lower(): value for name, value in ollama.stand_in.requests[-1].headers.items()}


def test_login_and_password_are_basic_auth(on, ollama):
    """As a proxy in front of Ollama wants it; not only ASCII."""
    header = sent_headers(on, ollama, login="me", password="pässword")["authorization"]

    assert base64.b64decode(header.removeprefix("Basic ")).decode() == "me:pässword"


def test_a_password_alone_is_a_bearer_token(on, ollama):
    """An API key has no login."""
    assert sent_headers(on, ollama, password="key")["authorization"] == "Bearer key"


def test_without_credentials_none_are_sent(on, ollama, monkeypatch):
    """Neither OLLAMA_API_KEY nor a .netrc of the machine goes to a server they are not meant for."""
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")

    assert "authorization" not in sent_headers(on, ollama)


def test_headers_of_the_settings_win(on, ollama):
    """Extra headers are sent with each request, and take the place of ours."""
    headers = sent_headers(on, ollama, headers={"X-Team": "data", "Authorization": "Custom x"}, password="key")

    assert (headers["x-team"], headers["authorization"]) == ("data", "Custom x")


def test_no_compression_is_asked_for(on, ollama):
    """A proxy that compresses would hold tokens back until a block is full."""
    assert sent_headers(on, ollama)["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"headers": {"X-Team": "se\ncret"}}, "headers: 'x-team'"),
        ({"headers": {"X Team": "secret"}}, "headers: 'x team'"),
        ({"headers": {"": "secret"}}, "headers: ''"),
        ({"password": "secret\n"}, "password"),
        ({"verify": "/no/such/secret.pem", "base_url": "https://h"}, "verify: cannot read"),
        ({"verify": __file__, "base_url": "https://h"}, "verify: .* no PEM|verify: cannot read"),
        ({"client_cert": "/no/such.pem", "base_url": "https://h"}, "client_cert: cannot read"),
        ({"client_cert": __file__, "base_url": "https://h"}, "client_cert: cannot read"),
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_wrong_setting_is_found_when_the_client_is_made(client, settings, says):
    """The field is named, and no value of a header or a password."""
    with pytest.raises(errors.InvalidRequestError, match=says) as raised:
        client(Settings(**settings))

    if "verify" not in settings:
        assert "secret" not in str(raised.value)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


def test_a_private_ca(on, certificate):
    """`verify` names the file of the CA."""
    with tls_server(certificate) as url:
        (reply,) = on.send(VersionRequest(), base_url=url, verify=certificate)

    assert reply.version == "0.24.0"


def test_an_untrusted_certificate(on, certificate):
    """It is refused, and the error says what to set."""
    with tls_server(certificate) as url, pytest.raises(errors.TLSError, match="'verify'") as raised:
        on.send(VersionRequest(), base_url=url)

    assert "self-signed" in str(raised.value) or "self signed" in str(raised.value)
    assert not raised.value.retryable


def test_no_verification(on, certificate):
    """`verify=False` takes any certificate."""
    with tls_server(certificate) as url:
        (reply,) = on.send(VersionRequest(), base_url=url, verify=False)

    assert reply.version == "0.24.0"


def test_a_client_certificate(on, certificate, tmp_path):
    """It is shown to a server that asks for one; without it the server hangs up."""
    own = make_certificate(tmp_path, "client")
    with tls_server(certificate, client_ca=own) as url:
        (reply,) = on.send(VersionRequest(), base_url=url, verify=certificate, client_cert=own)
        with pytest.raises(errors.TransportError):
            on.send(VersionRequest(), base_url=url, verify=certificate, max_attempts=1)

    assert reply.version == "0.24.0"


# Proxies


@pytest.fixture
def proxy(monkeypatch):
    """A proxy of the environment that answers everything itself, and what was asked of it."""
    asked: list[bytes] = []
    body = b'{"version":"from the proxy"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def serve_one(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(answer)

    with listening(serve_one) as address:
        url = address.replace("http://", "http://me:pass@")
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("HTTPS_PROXY", url)
        yield asked


def test_a_proxy_of_the_environment_is_used(on, proxy):
    """HTTP_PROXY counts for both clients, and its password goes to it."""
    (reply,) = on.send(VersionRequest(), base_url="http://gpu1.example:11434")

    assert reply.version == "from the proxy"
    (message,) = proxy
    assert message.startswith(b"GET http://gpu1.example:11434/api/version HTTP/1.1\r\n")
    assert message.lower().count(b"proxy-authorization: basic bwu6cgfzcw==") == 1


def test_a_proxy_is_asked_for_a_tunnel_to_a_server_with_tls(on, proxy):
    """HTTPS_PROXY counts for both clients; it sees its own password, and nothing of the request."""
    with pytest.raises(errors.TransportError):
        on.send(VersionRequest(), base_url="https://gpu1.example:443", password="key", max_attempts=1)

    (message,) = proxy
    assert message.startswith(b"CONNECT gpu1.example:443 HTTP/1.1\r\n")
    assert message.lower().count(b"proxy-authorization: basic bwu6cgfzcw==") == 1
    assert b"key" not in message


@pytest.mark.parametrize("no_proxy", ["gpu1.example", ".example", "*"])
def test_no_proxy_is_obeyed(on, proxy, monkeypatch, no_proxy):
    """NO_PROXY counts for both clients."""
    monkeypatch.setenv("NO_PROXY", no_proxy)

    with pytest.raises(errors.UnreachableError):
        on.send(VersionRequest(), base_url="http://gpu1.example:11434", max_attempts=1)

    assert proxy == []


@pytest.mark.parametrize(
    ("host", "no_proxy", "exempt"),
    [
        ("10.96.3.4", "localhost,10.0.0.0/8,.svc", True),
        ("10.96.3.4", "10.96.0.0/16:11434", True),
        ("10.96.3.4", "10.0.0.0/8:80", False),
        ("11.96.3.4", "10.0.0.0/8", False),
        ("10.96.3.4", "10.96.3.4", True),
        ("10.96.3.44", "10.96.3.4", False),
        ("::ffff:10.96.3.4", "10.0.0.0/8", True),
        ("fd00::5", "fd00::5", True),
        ("fd00::5", "[fd00::5]", True),
        ("fd00::5", "[FD00::5]:11434", True),
        ("fd00::5", "[fd00::5]:80", False),
        ("fd00::5", "fd00:0:0::/48", True),
        ("fd00::5", "[fd00::/8]:11434", True),
        ("fd00::5", "10.0.0.0/8", False),
        ("ollama.ai.svc", ".svc", True),
        ("ollama.ai.svc", "svc", True),
        ("ollama.ai.svc", "*.svc", True),
        ("OLLAMA.AI.SVC", "Ai.Svc.", True),
        ("ollama.aisvc", "svc", False),
        ("gpu1", "gpu1:11434", True),
        ("gpu1", "gpu1:80", False),
        ("gpu12", "gpu1", False),
        ("gpu12", "*.corp, gpu*", True),
        ("gpu1", " gpu2  gpu1 ", True),
        ("gpu1", "gpu2,*", True),
        ("gpu1", "", False),
        ("gpu1", ",.,/8,:11434,[],10.0.0.0/99", False),
    ],
)
def test_no_proxy_names_hosts_addresses_and_networks(host, no_proxy, exempt):
    """As Kubernetes, Go and curl write them."""
    assert is_exempt(host, 11434, no_proxy) is exempt


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("status", [200, 302, 403, 404, 407, 429, 500, 503])
def test_what_a_proxy_of_the_environment_refuses_is_told_as_its_own(on, monkeypatch, variable, status):
    """Which variable names it and how to do without it; not what Ollama or the connection's login could do about it."""

    def serve_one(connection: socket.socket) -> None:
        connection.recv(65536)
        page = b"<html><title>Blocked by policy</title></html>"
        connection.sendall(b"HTTP/1.1 %d X\r\nContent-Type: text/html\r\nContent-Length: 45\r\n\r\n%s" % (status, page))

    with listening(serve_one) as url:
        monkeypatch.setenv(variable, url.replace("//", "//me:secret@"))
        with pytest.raises(errors.OllamaError) as raised:
            on.send(VersionRequest(), base_url="http://gpu1.example:11434", max_attempts=1)

    text = str(raised.value)
    assert f"through the proxy {url} that {variable} names" in text
    assert "NO_PROXY" in text
    assert "OLLAMA_MAX_QUEUE" not in text
    assert "API key" not in text
    assert "secret" not in text


def test_ollamas_own_refusal_keeps_its_advice_behind_a_proxy(on, monkeypatch):
    """The proxy is named and not blamed."""

    def serve_one(connection: socket.socket) -> None:
        connection.recv(65536)
        body = b'{"error":"model \'mistral\' not found"}'
        head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)

    with listening(serve_one) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        with pytest.raises(errors.ModelNotFoundError) as raised:
            on.send(ShowRequest(model="mistral"), base_url="http://gpu1.example:11434")

    assert f"through the proxy {url}" in str(raised.value)
    assert "Pull it first" in str(raised.value)


@pytest.mark.parametrize(
    "value", ["proxy:notaport", "http://", "http://me:secret@proxy:99999", "http://me:secret@pro xy:3128", "//"]
)
def test_a_proxy_that_is_no_address(monkeypatch, value):
    """The variable is named, and what stands in it is not."""
    monkeypatch.setenv("HTTP_PROXY", value)

    with pytest.raises(errors.InvalidRequestError, match="HTTP_PROXY") as raised:
        Client(Settings(base_url="http://gpu1.example:11434"))

    assert "secret" not in str(raised.value)


def test_the_environment_may_be_ignored(on, proxy):
    """`trust_env=False` goes straight to the server."""
    with pytest.raises(errors.UnreachableError):
        on.send(VersionRequest(), base_url="http://gpu1.example:11434", trust_env=False, max_attempts=1)

    assert proxy == []


def test_this_machine_is_never_asked_for_through_a_proxy(on, proxy, ollama):
    """A proxy elsewhere could not reach it."""
    (reply,) = on.send(VersionRequest(), base_url=ollama.url)

    assert reply.version == "0.24.0"
    assert proxy == []


def test_a_proxy_that_is_down(on, monkeypatch):
    """The error says that it is the proxy, and keeps its password to itself."""
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:1")

    with pytest.raises(errors.UnreachableError) as raised:
        on.send(VersionRequest(), base_url="http://gpu1.example:11434", max_attempts=1)

    assert "secret" not in str(raised.value)
    assert "through the proxy http://127.0.0.1:1 that HTTP_PROXY names" in str(raised.value)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_proxy_of_another_kind(client, monkeypatch):
    """What is not supported is said when the client is made, with the ways out."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")

    with pytest.raises(errors.InvalidRequestError, match="NO_PROXY"):
        client(Settings(base_url="http://gpu1.example:11434"))


# What is loaded


def test_importing_the_clients_loads_no_aiohttp():
    """DAG files import this at every parse; aiohttp comes with the first request of an AsyncClient."""
    code = "import sys, ollama_provider.api.client; print([m for m in ('aiohttp', 'airflow') if m in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
