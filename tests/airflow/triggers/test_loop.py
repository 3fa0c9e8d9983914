"""The triggers never block the triggerer's event loop, which all deferred tasks share."""

import asyncio
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from airflow.providers.common.compat import sdk
from airflow.providers.common.compat.connection import get_async_connection

from ollama_provider.api.schemas import EmbedRequest, GenerateRequest, PullRequest
from ollama_provider.payloads import write_request
from ollama_provider.testing import Answer, Model, Ordinary, Respond, Stall
from ollama_provider.triggers import OllamaHealthTrigger, OllamaRequestTrigger
from tests.airflow.deferring import fired


class Watchdog:
    """Notes what a thread does that can block it: files, host names, the import of a module.

    Python reports these before it does them (PEP 578), so no clock is needed and a busy machine changes nothing.
    """

    _EVENTS = frozenset({"open", "socket.getaddrinfo", "socket.gethostbyname", "import"})

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._thread: int | None = None
        self._nested = False
        # A hook cannot be taken away again; outside of `watching` it does nothing.
        sys.addaudithook(self._audit)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def _audit(self, event: str, arguments: tuple) -> None:
        if event not in self._EVENTS or threading.get_ident() != self._thread or self._nested:
            return
        if event == "import" and str(arguments[0]).startswith("airflow."):
            # In Airflow 2 the compat provider looks for what only Airflow 3 has, each time it is asked.
            return
        self._nested = True
        try:
            where = "".join(traceback.format_stack(limit=12)[:-1])
            self.seen.append(f"{event} {arguments[:1]}\n{where}")
        finally:
            self._nested = False


@pytest.fixture(scope="module")
def the_watchdog() -> Watchdog:
    # What Airflow and Python load at first need, a triggerer that has been at work has loaded.
    import_module("airflow.jobs.triggerer_job_runner")
    import_module("encodings.idna")
    sdk.Stats.incr("any")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW_CONN_ANY", "ollama://gpu1")
        asyncio.run(get_async_connection("any"))
    return Watchdog()


@pytest.fixture
def watchdog(the_watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """The only one there is."""
    # Handlers that Airflow 2 set up in earlier tests write to streams that are closed now, and open files to say so.
    monkeypatch.setattr("logging.raiseExceptions", False)
    return the_watchdog


async def test_the_watchdog_detects_blocking_calls(watchdog):
    """Otherwise the other tests here would prove nothing."""
    with watchdog.watching():
        socket.getaddrinfo("127.0.0.1", 80)
        Path("/dev/null").read_bytes()
    assert [line.split()[0] for line in watchdog.seen] == ["socket.getaddrinfo", "open"]

    with watchdog.watching():
        await asyncio.sleep(0)
    assert watchdog.seen == []


async def test_a_wait_blocks_nothing(ollama, ollama_conn, watchdog):
    """From the look-up of the connection to the last answer."""
    ollama.stand_in.script(Respond(503, ""), path="tags", times=3)
    trigger = OllamaHealthTrigger(conn_id="ollama_default", models=["llama3.2"], poll_interval=0.01)

    with watchdog.watching():
        payload = await fired(trigger)

    assert payload["status"] == "ready"
    assert not watchdog.seen, "\n".join(watchdog.seen)


@pytest.mark.ollama(models=["llama3.2", Model("nomic-embed-text", ("embedding",))])
@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(model="llama3.2", prompt="word " * 20_000, options={"num_ctx": 65536}, truncate=False),
        EmbedRequest(model="nomic-embed-text", input=["text"] * 70, truncate=False),
    ],
    ids=["generate", "embed"],
)
async def test_large_requests_and_answers_block_nothing(ollama, ollama_conn, watchdog, tmp_path, request_):
    """They are read from files and written to files, in threads."""
    if isinstance(request_, GenerateRequest):
        ollama.stand_in.script(Answer("word " * 60_000))
    payload = write_request(request_, str(tmp_path))
    trigger = OllamaRequestTrigger(conn_id="ollama_default", parcel=payload, folder=str(tmp_path))

    with watchdog.watching():
        payload = await fired(trigger)

    assert "file" in payload["answers"]
    assert not watchdog.seen, "\n".join(watchdog.seen)


@pytest.mark.parametrize("model", ["mistral", "nonesuch"])
async def test_a_download_blocks_nothing(ollama, ollama_conn, watchdog, model):
    """With its lines in the log; nor does one that fails."""
    trigger = OllamaRequestTrigger(conn_id="ollama_default", parcel=write_request(PullRequest(model=model), None))

    with watchdog.watching():
        payload = await fired(trigger)

    assert ("file does not exist" in payload["answers"]["body"]) is (model == "nonesuch")
    assert not watchdog.seen, "\n".join(watchdog.seen)


async def test_a_cancelled_request_blocks_nothing(ollama, ollama_conn, watchdog, tmp_path, monkeypatch):
    """The file that it had begun is closed and removed in a thread as well."""
    monkeypatch.setattr("ollama_provider.payloads.ANSWERS_LIMIT", 1)
    ollama.stand_in.install(Model("nomic-embed-text", ("embedding",)))
    ollama.stand_in.script(Ordinary(), Stall())
    payload = write_request(EmbedRequest(model="nomic-embed-text", input=["text"] * 70, truncate=False), None)
    trigger = OllamaRequestTrigger(conn_id="ollama_default", parcel=payload, folder=str(tmp_path))

    with watchdog.watching():
        waiting = asyncio.create_task(fired(trigger))
        await asyncio.to_thread(
            ollama.stand_in.wait_until, lambda s: sum(seen.path == "/api/embed" for seen in s.requests) == 2
        )
        waiting.cancel()
        await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert not watchdog.seen, "\n".join(watchdog.seen)
