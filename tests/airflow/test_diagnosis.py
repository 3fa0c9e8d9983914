"""The Test button: what is wrong, in words, soon, and without a download."""

import socket
import threading
from contextlib import contextmanager

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from ollama_provider.api.settings import Settings
from ollama_provider.diagnosis import diagnose
from ollama_provider.hooks import OllamaHook
from ollama_provider.testing import Model, Respond, Stall


@pytest.fixture
def check(add_connection):
    """Return a function that tests a connection as Airflow does, by its hook."""

    def check(**fields) -> tuple[bool, str]:
        return BaseHook.get_hook(add_connection(**fields)).test_connection()

    return check


@contextmanager
def listening(answer: bytes):
    """A port that answers every connection with the same bytes, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


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


@pytest.mark.parametrize(("auto_pull", "advice"), [(True, "pulled when it is first used"), (False, "Pull it first")])
def test_a_default_model_that_is_missing_is_named_with_the_nearest(ollama, check, auto_pull, advice):
    """A misspelt model is found here, and not at night."""
    good, text = check(host=ollama.url, extra={"model": "lama3.2", "auto_pull": auto_pull})

    assert not good
    assert "'lama3.2'" in text
    assert "Did you mean 'llama3.2:latest'" in text
    assert advice in text


def test_nothing_is_downloaded(ollama, check):
    """The API server waits for the answer; 40 GB would take a while."""
    ollama.stand_in.offer(Model("fresh"))
    check(host=ollama.url, extra={"model": "fresh", "auto_pull": True})

    assert not ollama.stand_in.downloads


def test_a_server_that_is_down(ollama, check):
    """Refused."""
    ollama.stop()

    good, text = check(host=ollama.url)

    assert not good
    assert f"connection refused (at {ollama.url})" in text


def test_a_host_that_does_not_exist(check):
    """DNS: a name of the top-level domain that is reserved for this."""
    good, text = check(host="no-such-host.invalid")

    assert not good
    assert "no such host" in text
    assert "no-such-host.invalid" in text


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_not_accepted(ollama, check, status):
    """The fields to check, and not what stands in them."""
    ollama.stand_in.script(Respond(status, {"error": "unauthorized"}), path="version")

    good, text = check(host=ollama.url, password="hunter2!")

    assert not good
    assert "login and password" in text
    assert "hunter2!" not in text


def test_tls_to_a_plain_port(ollama, check):
    """https where http is spoken."""
    good, text = check(host=ollama.url.replace("http:", "https:"))

    assert not good
    assert "TLS failed" in text
    assert "http or https" in text


def test_a_base_path_that_is_not_there(ollama, check):
    """The server says 404 to everything below it."""
    good, text = check(host=f"{ollama.url}/wrong")

    assert not good
    assert "/wrong" in text
    assert "base path" in text


@pytest.mark.parametrize(
    "answer",
    [
        Respond(404, "<html><title>nginx</title></html>"),
        Respond(302, headers={"Location": "https://login.example.com/"}),
        Respond(200, "<html>It works!</html>"),
    ],
)
def test_a_web_server_that_is_no_ollama(ollama, check, answer):
    """A proxy's page, a login, somebody's home page."""
    ollama.stand_in.script(answer, path="*", always=True)

    good, text = check(host=ollama.url)

    assert not good
    assert "host, port and base path" in text


@pytest.mark.parametrize("body", [{}, {"version": "3.3.2"}])
def test_a_json_api_that_is_no_ollama(ollama, check, body):
    """It answers everything with JSON, even with a version, but it has no list of models."""
    ollama.stand_in.script(Respond(200, body), path="*", always=True)

    good, text = check(host=ollama.url)

    assert not good
    assert "not Ollama" in text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"220 mail.example.com ESMTP\r\n500 what?\r\n\r\n", "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the connection broke before an answer"),
    ],
)
def test_a_port_that_speaks_something_else(check, answer, words):
    """Mail answers in its own way; SSH greets and hangs up. Both point at host and port."""
    with listening(answer) as url:
        good, text = check(host=url)

    assert not good
    assert words in text
    assert url in text
    assert "host" in text
    assert "port" in text


@pytest.mark.ollama(version="0.1.10")
def test_a_server_that_is_too_old(ollama, check):
    """Before 0.1.14 there is neither chat nor a version to ask for; the text says what is needed."""
    good, text = check(host=ollama.url)

    assert not good
    assert "too old" in text
    assert "0.1.14" in text


@pytest.mark.ollama(version="0.1.30")
def test_an_old_server_will_do(ollama, check):
    """The whole range that the package speaks to."""
    assert check(host=ollama.url)[0]


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
    """The same for a hook that is used by hand."""
    good, text = OllamaHook("no_such_one").test_connection()

    assert not good
    assert "no_such_one" in text


def test_a_ca_file_that_is_not_there_is_named(check):
    """A path of another machine is the usual mistake."""
    good, text = check(host="https://127.0.0.1:1", extra={"verify": "/no/such/ca.pem"})

    assert not good
    assert "verify" in text
    assert "/no/such/ca.pem" in text
