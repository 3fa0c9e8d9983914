"""The page of the servers: what they have, what is wrong with them, and nothing that waits for a dead one."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
from airflow.models import Connection
from airflow.utils.session import create_session
from sqlalchemy import update

from ollama_provider.api.client import Client
from ollama_provider.api.schemas import GenerateRequest
from ollama_provider.api.settings import Settings
from ollama_provider.hooks import OllamaHook
from ollama_provider.testing import Model, Respond, StandIn, serve
from tests.sockets import listening

PAGE = "/ollama/servers"


@pytest.fixture
def ollama():
    """A server with one model."""
    with serve(StandIn(models=[Model("llama3.2")])) as server:
        yield server


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}/test_gpus/test"])
@pytest.mark.parametrize(("role", "status"), [("", 401), (None, 403), ("viewer", 403), ("user", 403)])
def test_nobody_sees_it_who_may_not_read_connections(browse, stored, ollama, path, role, status):
    """As in Airflow's own list of connections; and no server is asked."""
    stored("test_gpus", host=ollama.url)

    assert browse(path, role).status_code == status
    assert ollama.stand_in.requests == []


@pytest.mark.parametrize("role", ["op", "admin"])
def test_what_a_server_has(browse, stored, ollama, role):
    """On disk, and in memory until when."""
    stored("test_gpus", host=ollama.url)
    client = Client(Settings(base_url=ollama.url))
    client.send(GenerateRequest(model="llama3.2", prompt="a", keep_alive=-1))
    client.close()

    answer = browse(PAGE, role)

    assert answer.status_code == 200
    for text in (
        "test_gpus", ollama.url, "reachable", "Ollama 0.24.0", "On disk: 1 model", "llama3.2:latest", "2.0 GB", "3.2B",
        "Q4_K_M", "131,072", "completion", "In memory", "4,096", "no limit",
    ):  # fmt: skip
        assert text in answer.text


def test_only_connections_of_type_ollama(browse, stored, ollama):
    """A web server is not asked whether it has models."""
    stored("test_gpus", host=ollama.url)
    stored("test_web", "http", host="http://web.example")

    page = browse(PAGE, "op").text

    assert "test_gpus" in page
    assert "test_web" not in page
    assert browse(f"{PAGE}/test_web/test", "op").status_code == 404
    assert browse(f"{PAGE}/test_absent/test", "op").status_code == 404


def test_only_connections_that_the_user_may_read(browse, stored, ollama, monkeypatch):
    """One by one, where the auth manager of this Airflow decides so."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    allowed = SimpleAuthManager.is_authorized_connection

    def is_authorized(self, *, method, user, details=None):
        secret = details is not None and details.conn_id == "test_secret"
        return not secret and allowed(self, method=method, user=user, details=details)

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_connection", is_authorized)
    stored("test_gpus", host=ollama.url)
    stored("test_secret", host="http://secret.example")

    page = browse(PAGE, "op").text

    assert "test_gpus" in page
    assert "test_secret" not in page
    assert "secret.example" not in page
    assert browse(f"{PAGE}/test_secret/test", "op").status_code == 403
    assert browse(f"{PAGE}/test_gpus/test", "op").status_code == 200


def test_several_servers_of_a_connection(browse, stored):
    """One that does not run, one without the default model, and one that is too old to say what is in memory."""
    with serve(StandIn(models=[Model("other")])) as without, serve(StandIn(models=[Model("llama3.2")])) as old:
        old.stand_in.script(Respond(404, "404 page not found"), path="/api/ps", always=True)
        stored("test_gpus", host=f"127.0.0.1:9, {without.url}, {old.url}", extra='{"model": "llama3.2"}')
        page = browse(PAGE, "op").text

    assert page.count("cannot be used") == 2
    assert "connection refused (at http://127.0.0.1:9)" in page
    assert "does not have the default model" in page
    assert "other:latest" in page
    assert "It does not say which models are in memory" in page


def test_connections_that_cannot_be_read(browse, stored, ollama):
    """Each says what is wrong with it, and the others are shown."""
    stored("test_gpus", host=ollama.url)
    stored("test_misspelt", host="gpu1", extra='{"modell": "llama3.2"}')
    stored("test_other_key", host="gpu2", password="a")
    with create_session() as session:
        wrong = update(Connection).where(Connection.conn_id == "test_other_key")
        session.execute(wrong.values(password="not what Fernet writes", is_encrypted=True))

    page = browse(PAGE, "op").text

    assert "did you mean &#39;model&#39;?" in page
    assert "Does the API server have the fernet_key" in page
    assert "reachable" in page
    assert "not what Fernet writes" not in page
    assert "fernet_key" in browse(f"{PAGE}/test_other_key/test", "op").text


@contextmanager
def one_that_hangs():
    """A server that says nothing until the event is set, and then hangs up."""
    release = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.recv(4096)
        release.wait(30)

    with listening(hang) as url:
        yield url, release
        release.set()


def test_a_server_that_hangs_does_not_hold_the_page(browse, stored, ollama, monkeypatch):
    """It is on the page when it is loaded again."""
    monkeypatch.setattr("ollama_provider.ui.servers_page._WAIT", 0.5)
    with one_that_hangs() as (url, release):
        stored("test_both", host=f"{url}, {ollama.url}")
        page = browse(PAGE, "op").text
        assert "no answer yet" in page
        assert "data-live" in page
        assert "llama3.2:latest" in page

        release.set()
        end = time.monotonic() + 20
        while "no answer yet" in page and time.monotonic() < end:
            page = browse(PAGE, "op").text
        assert "cannot be used" in page
        assert "data-live" not in page


def test_a_test_that_takes_too_long_is_refused_for_now(browse, stored, monkeypatch):
    """Such as when many servers hang: a sentence, and the answer later."""
    from ollama_provider.ui.threads import Cached  # not on Airflow 2

    monkeypatch.setattr(Cached.get, "__kwdefaults__", {"seconds": 0.2})
    with one_that_hangs() as (url, _):
        stored("test_gpus", host=url)
        answer = browse(f"{PAGE}/test_gpus/test", "op")

    assert answer.status_code == 503
    assert "There is no answer yet" in answer.text


def test_servers_are_not_asked_for_each_reader(browse, stored, ollama):
    """But anew when the connection has changed, and never twice for what a digest stands for."""
    stored("test_gpus", host=ollama.url)
    for _ in range(3):
        assert "reachable" in browse(PAGE, "op").text
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/version", "/api/tags", "/api/ps", "/api/show"]

    with create_session() as session:
        session.query(Connection).filter_by(conn_id="test_gpus").one().password = "new"
    browse(PAGE, "op")

    assert [seen.path for seen in ollama.stand_in.requests][4:] == ["/api/version", "/api/tags", "/api/ps"]


@pytest.mark.parametrize(
    "fields",
    [{}, {"extra": '{"model": "absent", "auto_pull": false}'}, {"host": "127.0.0.1:9"}, {"host": "x:y"},
     {"host": "127.0.0.1:9, 127.0.0.1:10"}],
    ids=["good", "no-model", "refused", "invalid", "several"],
)  # fmt: skip
def test_the_test_says_what_the_button_says(browse, stored, add_connection, ollama, fields):
    """Word for word."""
    fields = {"host": ollama.url} | fields
    stored("test_gpus", **fields)
    add_connection("test_gpus", **fields)
    passed, text = OllamaHook("test_gpus").test_connection()

    answer = browse(f"{PAGE}/test_gpus/test", "op")

    assert answer.status_code == 200
    assert ("Passed" in answer.text) == passed
    for line in text.split("\n"):
        assert line.replace("'", "&#39;") in answer.text


def test_what_nobody_foresaw_is_of_one_server(browse, stored, ollama, monkeypatch, caplog):
    """The page shows the others, and the log has the reason."""
    from ollama_provider.ui import servers

    def examine(settings, *args):
        if settings.base_url == "http://gpu9:1":
            raise ZeroDivisionError
        return real(settings, *args)

    real = servers.examine
    monkeypatch.setattr(servers, "examine", examine)
    stored("test_both", host=f"http://gpu9:1, {ollama.url}")

    page = browse(PAGE, "op").text

    assert "an unexpected ZeroDivisionError" in page
    assert "llama3.2:latest" in page
