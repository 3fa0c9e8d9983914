"""Hostile servers: redirects, escapes in names, paths in digests. What is bounded is in tests/api/test_bounds.py."""

import json
import logging
from pathlib import Path

import pytest

from ollama_provider.api.errors import InvalidRequestError, NotOllamaError, OllamaError
from ollama_provider.api.schemas import (
    HeadBlobRequest,
    PullRequest,
    PushBlobRequest,
    ShowRequest,
    VersionRequest,
)
from ollama_provider.batch import BatchError
from ollama_provider.diagnosis import diagnose
from ollama_provider.hooks import OllamaHook
from ollama_provider.operators import OllamaLoadModelOperator, OllamaPruneModelsOperator
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.testing import Model, StandIn
from tests.airflow.conftest import add_connection  # noqa: F401  # a fixture
from tests.airflow.deferring import Pushed
from tests.api.conftest import OnAsyncClient, OnClient
from tests.batch.conftest import Batch
from tests.security.canaries import HEADER, LOGIN, PASSWORD
from tests.security.hostile import Hostile, Seen, hostile, lines, respond

EVIL = "\x1b[2J\x1b[31mevil\r\n2026-01-01 ERROR forged\u202e\x00"
DIGEST = "../../../../tmp/evil\n"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", [OnClient, OnAsyncClient])
def test_a_redirect_takes_no_credentials_anywhere(kind, status):
    """To another host, to the same one by another path, or back to itself: it is an error, and nothing is sent."""
    secrets = {"login": LOGIN, "password": PASSWORD, "headers": {"X-Api-Key": HEADER}}
    with hostile(lambda _: respond(200, '{"version": "1"}')) as other:
        for place in (f"{other.url}/api/version", "/api/other", "/api/version"):
            with (
                hostile(lambda _, place=place: respond(status, "", f"Location: {place}")) as server,
                pytest.raises(NotOllamaError, match="a redirect"),
            ):
                kind().send(VersionRequest(), base_url=server.url, max_attempts=1, **secrets)
            assert len(server.seen) == 1
        assert other.seen == []


def evil(seen: Seen) -> bytes:
    """An Ollama all of whose names, versions, digests and states are attacks."""
    model = {"name": EVIL, "model": EVIL, "digest": DIGEST, "size": 2**62, "size_vram": 1, "details": {"family": EVIL}}
    match seen.path:
        case "/api/version":
            return respond(200, json.dumps({"version": EVIL}))
        case "/api/tags" | "/api/ps":
            return respond(200, json.dumps({"models": [model, {**model, "model": "llama3.2:latest"}]}))
        case "/api/pull":
            states = [EVIL, f"pulling {EVIL}", "pulling x", "success"]
            return lines(*({"status": state, "digest": DIGEST, "total": 2**62, "completed": 1} for state in states))
        case "/api/show":
            return respond(200, json.dumps({"capabilities": ["completion", EVIL], "modelfile": EVIL, "details": model}))
    reply = StandIn(models=[Model("llama3.2")]).answer("POST", seen.path, body=seen.body)
    return respond(reply.status, reply.body.replace(b'"stop"', json.dumps(EVIL).encode()))


@pytest.fixture
def server(add_connection):  # noqa: F811
    with hostile(evil) as server:
        add_connection(host=server.url, extra={"max_attempts": 1})
        yield server


def harmless(*texts: str) -> bool:
    """Whether texts neither move a cursor nor look like a line of their own."""
    return all(text.isprintable() for text in texts)


def test_names_are_labels(server):
    """As soon as they are read."""
    with OllamaHook() as hook:
        for model in (*hook.list_models(), *hook.ps()):
            assert harmless(model.tag, model.name, model.digest, model.details.family)
        assert harmless(hook.version(), *hook.show("llama3.2").capabilities or ())


def test_the_button_and_the_log_show_them_on_one_line(server, caplog, monkeypatch):
    """A log with a forged line would lie about the night."""
    caplog.set_level(logging.DEBUG)
    for kind in (OllamaHook, OllamaOperator):  # Airflow 3 writes its own logs past Python's
        monkeypatch.setattr(kind, "log", logging.getLogger("the task's log"))
    texts = [OllamaHook().test_connection()[1], diagnose(OllamaHook(model="absent").settings)[1]]
    with OllamaHook() as hook:
        hook.pull("llama3.2")
    for task in (
        OllamaPruneModelsOperator(task_id="prune", match="*"),
        OllamaLoadModelOperator(task_id="load", model="llama3.2"),
    ):
        task.execute({"ti": Pushed()})

    logged = [record.getMessage() for record in caplog.records if record.name == "the task's log"]
    assert "evil" in " ".join(texts)
    assert "evil" in " ".join(logged)
    assert harmless(*texts)
    assert not [line for line in logged if "\x1b" in line or "\nERROR" in line or "\r" in line or "\u202e" in line]


def test_they_name_no_file(server: Hostile, tmp_path: Path):
    """A batch puts digest and version into its files as JSON, and names nothing after them."""
    before = set(Path("/tmp").glob("evil*"))  # noqa: S108  # where the digest points to
    batch = Batch(server, tmp_path / "out")  # type: ignore[arg-type]  # only its URL is used
    told = ""
    try:
        batch.run(["a", "b"])
    except (OllamaError, BatchError) as error:
        told = str(error)

    assert harmless(told)
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if "evil" in name]
    assert set(Path("/tmp").glob("evil*")) == before  # noqa: S108
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert not set(file.read_bytes()) & {0, 13, 27}


@pytest.mark.parametrize(
    "digest", ["sha256:../../api/tags", "../x", "sha256:" + "g" * 64, "sha256:" + "0" * 63, "", "\0"]
)
def test_a_digest_that_is_none_gets_into_no_url(digest):
    """Blobs are the only thing whose name is part of a URL."""
    for request in (
        lambda: HeadBlobRequest(digest=digest),
        lambda: PushBlobRequest(digest=digest, source=lambda: [b""]),
    ):
        with pytest.raises(InvalidRequestError, match="digest"):
            request()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\nb", "a\0b", "x" * 10_000, "http://[", "a b", "\x1b[31m"])
def test_a_name_that_is_none_is_shown_harmlessly(name, ollama):
    """Of a model that a request asks for; it travels in the body, never in the URL."""
    kinds = (lambda: ShowRequest(model=name), lambda: PullRequest(model=name))
    for kind in kinds:
        with pytest.raises(OllamaError) as raised:
            OnClient().send(kind(), base_url=ollama.url, max_attempts=1)
        assert harmless(str(raised.value))
    assert {seen.path for seen in ollama.stand_in.requests} <= {"/api/show", "/api/pull"}
