"""The Test button: what is wrong, in words, soon, and without a download."""

import os
import re
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from ollama_provider.api.settings import Settings
from ollama_provider.diagnosis import BUDGET, diagnose
from ollama_provider.hooks import OllamaHook
from ollama_provider.testing import Gate, Model, Respond, Stall, StandIn, serve
from tests.sockets import listening
from tests.tls import make_certificate, tls_server

_PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "connection.md").read_text()
_ROWS = re.findall(r"^\| (`[^|]+) \|", _PAGE.partition("\n## Test\n")[2].partition("\n## ")[0], re.MULTILINE)
#: What the button says, as the page quotes it; "…" stands for anything.
QUOTED = re.findall(r"`([^`]+)`", "".join(_ROWS))


@pytest.fixture
def check(add_connection):
    """Return a function that tests a connection as Airflow does, by its hook."""

    def check(**fields) -> tuple[bool, str]:
        return BaseHook.get_hook(add_connection(**fields)).test_connection()

    return check


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


# Faults: each gives the connection's fields for as long as it lasts; its argument is a certificate.


def ollama_that(answer=None, *, below="", fields=None, **settings):
    """An Ollama, or what answers everything in its place."""

    @contextmanager
    def fault(_):
        with serve(StandIn(**settings)) as server:
            if answer:
                server.stand_in.script(answer, path="*", always=True)
            yield {"host": server.url + below, **(fields or {})}

    return fault


def something_that_says(data: bytes):
    """A program that speaks something else, and hangs up."""

    @contextmanager
    def fault(_):
        def serve_one(connection):
            connection.recv(4096)
            connection.sendall(data)

        with listening(serve_one) as url:
            yield {"host": url}

    return fault


@contextmanager
def no_such_host(_):
    """In the top-level domain that is reserved for this."""
    yield {"host": "no-such-host.invalid"}


@contextmanager
def closed_port(_):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield {"host": f"127.0.0.1:{port}"}


@contextmanager
def packets_are_dropped(_):
    """By a full backlog, as a firewall would."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield {"host": f"127.0.0.1:{server.getsockname()[1]}"}


@contextmanager
def untrusted(certificate):
    with tls_server(certificate) as url:
        yield {"host": url}


@contextmanager
def https_to_a_plain_port(_):
    with serve() as server:
        yield {"host": server.url.replace("http:", "https:")}


@contextmanager
def http_to_a_tls_port(certificate):
    with tls_server(certificate) as url:
        yield {"host": url.replace("https:", "http:")}


@contextmanager
def a_proxy_of_the_environment_refuses(_):
    """Whatever it is asked for."""
    before = os.environ.get("HTTP_PROXY")
    with serve() as server:
        server.stand_in.script(Respond(503, "<html><title>No such domain</title></html>"), path="*", always=True)
        os.environ["HTTP_PROXY"] = server.url
        try:
            yield {"host": "gpu1.example"}
        finally:
            del os.environ["HTTP_PROXY"]
            if before is not None:
                os.environ["HTTP_PROXY"] = before


NOT_OLLAMA = "Check host, port and base path"
PROXY_ALONE = "is the server behind it running?"

#: What the page quotes, and a fault that has to be told by it.
FAULTS = {
    "good": ("Ollama 0.33.0 at … has 2 models: …", ollama_that(version="0.33.0", models=["llama3.2", "qwen3"])),
    "no such host": ("there is no such host", no_such_host),
    "refused": ("connection refused", closed_port),
    "dropped": ("no connection within …", packets_are_dropped),
    "silent": ("no answer within …", ollama_that(Stall())),
    "untrusted": ("TLS failed: …", untrusted),
    "https to a plain port": ("TLS failed: …", https_to_a_plain_port),
    "401": ("answers 401", ollama_that(Respond(401, "Unauthorized"))),
    "403": ("answers 403", ollama_that(fields={"extra": {"headers": {"Host": "ollama.example.com"}}})),
    "no such base path": ("there is no /api/version", ollama_that(below="/wrong")),
    "proxy's 404": (NOT_OLLAMA, ollama_that(Respond(404, "<html><title>nginx</title></html>"))),
    "login page": (NOT_OLLAMA, ollama_that(Respond(302, headers={"Location": "https://login.example.com/"}))),
    "home page": (NOT_OLLAMA, ollama_that(Respond(200, "<html>It works!</html>"))),
    "other JSON": (NOT_OLLAMA, ollama_that(Respond(200, {}))),
    "other version": (NOT_OLLAMA, ollama_that(Respond(200, {"version": "3.3.2"}))),
    "LM Studio": (
        "… answers to …, and not Ollama",
        ollama_that(Respond(200, {"error": "Unexpected endpoint or method. (GET /api/version)"})),
    ),
    "llama-server": (
        "… answers to …, and not Ollama",
        ollama_that(Respond(404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}})),
    ),
    "mail": (NOT_OLLAMA, something_that_says(b"220 mail.example.com ESMTP\r\n500 what?\r\n\r\n")),
    "SSH": (NOT_OLLAMA, something_that_says(b"SSH-2.0-OpenSSH_9.2\r\n")),
    # A port of TLS takes plain HTTP in one of three ways: it hangs up (OpenSSL), or says so (Go, nginx).
    "http to a TLS port": ("http or https", http_to_a_tls_port),
    "http to Go's TLS": (
        "http or https",
        something_that_says(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"),
    ),
    "http to nginx's TLS": (
        "http or https",
        ollama_that(Respond(400, "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>")),
    ),
    "proxy's 502": (PROXY_ALONE, ollama_that(Respond(502, "<html><title>502 Bad Gateway</title></html>"))),
    "proxy's 503": (PROXY_ALONE, ollama_that(Respond(503, "no available server"))),
    "environment's proxy": ("through the proxy … that HTTP_PROXY names", a_proxy_of_the_environment_refuses),
    "too old": ("This Ollama is too old", ollama_that(version="0.1.10")),
    "no default model": ("does not have the default model", ollama_that(fields={"extra": {"model": "lama3.2"}})),
}


def test_each_sentence_of_the_page_has_its_fault():
    """So that none is quoted which the button never says."""
    assert set(QUOTED) == {quoted for quoted, _ in FAULTS.values()}


@pytest.mark.parametrize("name", FAULTS)
def test_the_button_says_what_the_page_quotes(name, add_connection, certificate):
    """Each fault, brought about: its sentence and the address; nothing secret, and no setting without effect here."""
    quoted, fault = FAULTS[name]
    with fault(certificate) as fields:
        hook = BaseHook.get_hook(add_connection(password="hunter2!", **fields))
        hurried = name in {"dropped", "silent"}
        good, text = diagnose(hook.settings, budget=0.5) if hurried else hook.test_connection()

    assert good == (name == "good")
    assert re.search(".*".join(map(re.escape, quoted.split("…"))), text), text
    assert fields["host"] in text
    assert "timeout" not in text
    assert "hunter2!" not in text


def test_a_base_path_that_is_not_there_is_no_old_server(check, ollama):
    """The first thing that is missing is named, and no update is advised."""
    _, text = check(host=f"{ollama.url}/wrong")

    assert text.startswith(f"there is no /api/version (at {ollama.url}/wrong). Check the base path")
    assert "old" not in text


def test_an_untrusted_certificate_is_distinguished_from_other_tls_errors(check, certificate):
    """What is wrong with it, and the field to set; with it the connection stands."""
    with tls_server(certificate) as url:
        _, untrusted = check(host=url)
        _, trusted = check(host=url, extra={"verify": certificate})

    assert "self-signed" in untrusted or "self signed" in untrusted
    assert "'verify'" in untrusted
    assert "TLS" not in trusted


def test_success_tells_version_and_models(ollama, check):
    """Whoever presses the button sees which server it is and what it has."""
    good, text = check(host=ollama.url)

    assert good
    assert ollama.stand_in.version in text
    assert ollama.url in text
    assert "llama3.2:latest" in text


@pytest.mark.ollama(models=[f"m{number}" for number in range(8)])
def test_a_long_list_of_models_is_shortened(ollama, check):
    """A hundred names would hide the version."""
    _, text = check(host=ollama.url)

    assert "8 models" in text
    assert "and 3 more" in text


@pytest.mark.ollama(models=[])
def test_a_fresh_server_is_fine(ollama, check):
    """No models yet is no fault of the connection."""
    assert check(host=ollama.url) == (True, f"Ollama {ollama.stand_in.version} at {ollama.url} has no models yet.")


def test_the_default_model_is_looked_for(ollama, check):
    """Compared as the server does."""
    assert check(host=ollama.url, extra={"model": "LLAMA3.2"})[0]


@pytest.mark.parametrize(
    ("model", "auto_pull", "advice"),
    [
        ("lama3.2", True, "pulled when it is first used"),
        ("lama3.2", False, "Pull it by hand"),
        ("hf.co/ours/model", True, "add 'hf.co/ours/*' to pull_allow"),
    ],
)
def test_a_missing_default_model_is_named_with_how_to_get_it(ollama, check, model, auto_pull, advice):
    """A misspelt model is reported here, before a task fails. A pull is promised only if it would be allowed."""
    good, text = check(host=ollama.url, extra={"model": model, "auto_pull": auto_pull})

    assert not good
    assert repr(model) in text
    assert "llama3.2" in text.replace(repr(model), "")
    assert advice in text


@pytest.mark.parametrize(("typed", "meant"), [("lama3.2", "llama3.2"), ("phi:latest", "phi4"), ("phi", "phi4")])
def test_the_nearest_names_are_offered(ollama, check, typed, meant):
    """Whoever misspelt it wants the name, and no list; a tag that both have makes nothing alike."""
    ollama.stand_in.install(Model("phi4"))

    _, text = check(host=ollama.url, extra={"model": typed})

    assert f"Did you mean {meant!r}?" in text


def test_an_invalid_default_model_is_distinguished_from_a_missing_one(ollama, check):
    """Nothing could ever be pulled by it."""
    good, text = check(host=ollama.url, extra={"model": "llama 3"})

    assert not good
    assert "the default model 'llama 3' is not a model's name" in text
    assert ollama.url in text


@pytest.mark.parametrize("model", ["fresh", "hf.co/ours/fresh"])
def test_nothing_is_downloaded_loaded_or_changed(ollama, check, model):
    """Two questions, though a missing model would be pulled by a task; 40 GB would take a while."""
    ollama.stand_in.offer(Model(model))
    check(host=ollama.url, extra={"model": model, "auto_pull": True, "pull_allow": "hf.co/*"})

    asked = [(seen.method, seen.path) for seen in ollama.stand_in.requests]
    assert asked == [("GET", "/api/version"), ("GET", "/api/tags")]
    assert not ollama.stand_in.downloads


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_not_accepted(ollama, check, status):
    """The fields to check, and not what stands in them."""
    ollama.stand_in.script(Respond(status, {"error": "unauthorized"}), path="version")

    good, text = check(host=ollama.url, password="hunter2!")

    assert not good
    assert "login and password" in text
    assert "hunter2!" not in text


@pytest.mark.ollama(version="0.1.30")
def test_an_old_server_will_do(ollama, check):
    """The whole range that the package speaks to."""
    assert check(host=ollama.url)[0]


def test_it_takes_less_than_ten_seconds():
    """As the page says. The tests below check that the budget holds."""
    assert BUDGET < 10
    assert signature(diagnose).parameters["budget"].default == BUDGET
    assert "answers within 10 seconds" in " ".join(_PAGE.split())


@pytest.mark.parametrize("version", [b'{"version": "0.24.0"}', None], ids=["new", "old"])
def test_the_budget_is_for_all_requests_together(version):
    """Each of two answers comes in time, both together do not."""
    answers = {"/api/version": version, "/api/tags": b'{"models": []}'}

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.4)
            body = answers[self.path]
            self.send_response(404 if body is None else 200)
            self.end_headers()
            with suppress(OSError):  # nobody waits for the second one
                self.wfile.write(body or b"404 page not found")

        def log_message(self, *_):
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        settings = Settings(base_url=f"http://127.0.0.1:{server.server_port}")
        patient = diagnose(settings)
        hurried = diagnose(settings, budget=0.5)
        server.shutdown()

    assert ("no models yet" if version else "too old") in patient[1]
    assert not hurried[0]
    assert "no answer within 0.5 s" in hurried[1]


def test_an_answer_that_trickles_is_given_up():
    """Bytes that keep coming do not prolong it; and the connection is broken off."""
    broken_off = threading.Event()

    def trickle(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                connection.sendall(b"x: y\r\n")
                time.sleep(0.005)
        except OSError:
            broken_off.set()

    with listening(trickle) as url:
        good, text = diagnose(Settings(base_url=url), budget=0.1)

        assert broken_off.wait(10)

    assert not good
    assert "no answer within 0.1 s" in text


def test_a_server_that_never_answers_is_given_up(ollama):
    """Long before the connection's own timeouts, since Airflow's API server waits; and the request is not left open."""
    ollama.stand_in.script(Stall(), path="version")

    good, text = diagnose(Settings(base_url=ollama.url), budget=0.1)

    assert not good
    assert f"no answer within 0.1 s (at {ollama.url})" in text
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_a_resolver_that_never_answers_is_given_up(ollama, monkeypatch):
    """Nothing but the time in all bounds getaddrinfo."""
    hang = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait())

    good, text = diagnose(Settings(base_url="http://gpu1.example.com:11434"), budget=0.1)
    hang.set()

    assert not good
    assert "gpu1.example.com" in text


def test_a_connection_that_cannot_be_read_is_an_answer_too(check):
    """The button shows the field, and no traceback."""
    good, text = check(extra={"idle_timeout": "soon"})

    assert not good
    assert "idle_timeout" in text


def test_an_unknown_connection_is_an_answer_too():
    """The same for a hook that is created directly."""
    good, text = OllamaHook("no_such_one").test_connection()

    assert not good
    assert "no_such_one" in text


def test_a_ca_file_that_is_not_there_is_named(check):
    """A path of another machine is the usual mistake."""
    good, text = check(host="https://127.0.0.1:1", extra={"verify": "/no/such/ca.pem"})

    assert not good
    assert "verify" in text
    assert "/no/such/ca.pem" in text


class TestSeveralServers:
    def test_each_server_has_a_line(self, ollama_servers, ollama_servers_conn):
        """Version and models of each, and how many can be used."""
        fine, text = OllamaHook(ollama_servers_conn).test_connection()

        assert fine, text
        summary, *lines = text.splitlines()
        assert summary == "3 of 3 servers can be used:"
        assert [line.partition(" has ")[0] for line in lines] == [
            f"Ollama {server.stand_in.version} at {server.url}" for server in ollama_servers
        ]

    @pytest.mark.ollama_servers({}, {"version": "0.1.13"}, {"models": ["qwen3"]}, {})
    def test_one_that_cannot_be_used_fails_the_test(self, ollama_servers, add_connection):
        """Each fault has its own line, in the words that it has for a single server."""
        with listening(lambda connection: connection.recv(1) and None) as silent:
            ollama_servers[3].stop()
            conn_id = add_connection(
                host=", ".join([*(server.url for server in ollama_servers), silent]), extra={"model": "llama3.2"}
            )
            fine, text = OllamaHook(conn_id).test_connection()

        assert not fine
        summary, usable, old, lacking, down, hung_up = text.splitlines()
        assert summary == "1 of 5 servers can be used:"
        assert usable.startswith(f"Ollama 0.24.0 at {ollama_servers[0].url} has ")
        assert old.startswith("This Ollama is too old")
        assert "does not have the default model 'llama3.2'" in lacking
        assert down.startswith(f"connection refused (at {ollama_servers[3].url})")
        assert silent in hung_up

    def test_all_are_asked_at_the_same_time(self, ollama_servers):
        """No answer is waited for before all are asked."""
        gate = Gate()
        for server in ollama_servers:
            server.stand_in.script(Stall(until=gate), path="*")
        first, *others = [server.url for server in ollama_servers]
        over = threading.Event()

        def open_when_all_are_asked():
            while not all(server.stand_in.requests for server in ollama_servers) and not over.wait(0.01):
                pass
            gate.open()

        opening = threading.Thread(target=open_when_all_are_asked)
        opening.start()
        try:
            fine, text = diagnose(Settings(base_url=first, other_urls=others))
        finally:
            over.set()
            opening.join()

        assert fine, text

    def test_each_that_stays_silent_has_a_line(self, ollama_servers):
        """It says how long an answer was waited for."""
        for server in ollama_servers:
            server.stand_in.script(Stall(), path="*")
        first, *others = [server.url for server in ollama_servers]

        fine, text = diagnose(Settings(base_url=first, other_urls=others), budget=1.0)

        assert not fine
        assert text.count("no answer within 1 s") == 3

    def test_the_button_of_airflow_can_test_any_list(self, ollama_servers, monkeypatch):
        """It hands the connection to the hook as a URI in the environment, and cannot read it back itself."""
        from airflow.models.connection import Connection

        first, *others = ollama_servers
        host = ", ".join([first.url.removeprefix("http://"), *(server.url for server in others)])
        monkeypatch.setenv(
            "AIRFLOW_CONN_BUTTON", Connection(conn_id="x", conn_type="ollama", host=host, password="secret").get_uri()
        )

        fine, text = OllamaHook("button").test_connection()

        assert fine, text
        assert text.startswith("3 of 3 servers can be used:")
