"""Fixtures for people who test their own DAGs: a stand-in for Ollama, and an Airflow connection to it."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from ollama_provider.testing.server import Server


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "ollama(**settings): arguments of the StandIn of the `ollama` fixture, such as strict=True"
    )


@pytest.fixture
def ollama(request: pytest.FixtureRequest) -> "Iterator[Server]":
    """A stand-in for Ollama that listens on a free port of this machine; a new one for each test.

    `@pytest.mark.ollama(strict=True, version="0.1.30", …)` gives arguments to its `StandIn`. A test that scripts an
    answer nobody asks for fails, and so does one that is strict and asks for what was not scripted.
    """
    # Not above: this module is imported in every run of pytest.
    from ollama_provider.testing import StandIn, serve

    marker = request.node.get_closest_marker("ollama")
    with serve(StandIn(**(marker.kwargs if marker else {}))) as server:
        yield server
        unused, unscripted = server.stand_in.unused, server.stand_in.unscripted
    if unused or unscripted:
        parts = [
            ("Scripted for the stand-in, but never asked for:", unused),
            ("Asked of the stand-in, but not scripted:", unscripted),
        ]
        pytest.fail(
            "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in parts if lines),
            pytrace=False,
        )


@pytest.fixture
def ollama_conn(ollama: "Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """The Airflow connection `ollama_default`, which points at the stand-in; its id."""
    parts = urlsplit(ollama.url)
    value = {"conn_type": "ollama", "host": f"{parts.scheme}://{parts.hostname}", "port": parts.port}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps(value))
    return "ollama_default"
