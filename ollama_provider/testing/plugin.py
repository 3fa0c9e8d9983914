"""The pytest plugin: fixtures with stand-ins for Ollama, and with an Airflow connection to them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from ollama_provider.testing.server import Server


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers `ollama` and `ollama_servers`."""
    for marker in (
        "ollama(**settings): arguments of the StandIn of the `ollama` fixture, such as strict=True",
        "ollama_servers(*settings): for each server of the `ollama_servers` fixture, the arguments of its StandIn",
    ):
        config.addinivalue_line("markers", marker)


@pytest.fixture
def ollama(request: pytest.FixtureRequest) -> "Iterator[Server]":
    """A stand-in for Ollama that listens on a free port of this machine; a new one for each test.

    `@pytest.mark.ollama(strict=True, version="0.1.30", …)` gives arguments to its `StandIn`. The test fails at its end
    if a scripted reply was not used, or if a strict stand-in refused a request.
    """
    # Imported here, since pytest imports this module in every run.
    from ollama_provider.testing import StandIn, serve

    marker = request.node.get_closest_marker("ollama")
    with serve(StandIn(**(marker.kwargs if marker else {}))) as server:
        yield server
        _check_scripts([server])


@pytest.fixture
def ollama_servers(request: pytest.FixtureRequest) -> "Iterator[list[Server]]":
    """Three stand-ins, each with its own port, models and pace; new ones for each test.

    `@pytest.mark.ollama_servers({"parallel": 4}, {"models": ["qwen3"]})` are two, and gives arguments to the `StandIn`
    of each. `servers[1].stop()` and `servers[1].start()` are an outage of one of them. The test fails at its end for
    the reasons of `ollama`.
    """
    from ollama_provider.testing import StandIn, serve

    marker = request.node.get_closest_marker("ollama_servers")
    with ExitStack() as stack:
        settings = marker.args if marker else ({}, {}, {})
        servers = [stack.enter_context(serve(StandIn(**of_server))) for of_server in settings]
        yield servers
        _check_scripts(servers)


@pytest.fixture
def ollama_conn(ollama: "Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of an Airflow connection to the stand-in: `ollama_default`."""
    parts = urlsplit(ollama.url)
    value = {"conn_type": "ollama", "host": f"{parts.scheme}://{parts.hostname}", "port": parts.port}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps(value))
    return "ollama_default"


@pytest.fixture
def ollama_servers_conn(ollama_servers: "list[Server]", monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of an Airflow connection to all of `ollama_servers`: `ollama_default`."""
    value = {"conn_type": "ollama", "host": ", ".join(server.url for server in ollama_servers)}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps(value))
    return "ollama_default"


def _check_scripts(servers: "Sequence[Server]") -> None:
    """Fail the test if a scripted reply was not used, or a request was refused since it was not scripted."""
    parts: dict[str, list[str]] = {
        "Scripted replies that no request has used:": [],
        "Requests that were refused, since they were not scripted:": [],
    }
    unused, unscripted = parts.values()
    for number, server in enumerate(servers):
        which = f"server {number}: " if len(servers) > 1 else ""
        unused += [which + line for line in server.stand_in.unused]
        unscripted += [which + line for line in server.stand_in.unscripted]
    if unused or unscripted:
        pytest.fail(
            "\n".join("\n  ".join([title, *lines]) for title, lines in parts.items() if lines),
            pytrace=False,
        )
