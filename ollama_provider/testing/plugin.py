"""The pytest plugin: fixtures with a stand-in for Ollama, and with an Airflow connection to it."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from ollama_provider.testing.server import Server


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `ollama`."""
    config.addinivalue_line(
        "markers", "ollama(**settings): arguments of the StandIn of the `ollama` fixture, such as strict=True"
    )


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
        unused, unscripted = server.stand_in.unused, server.stand_in.unscripted
    if unused or unscripted:
        parts = [
            ("Scripted replies that no request has used:", unused),
            ("Requests that were refused, since they were not scripted:", unscripted),
        ]
        pytest.fail(
            "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in parts if lines),
            pytrace=False,
        )


@pytest.fixture
def ollama_conn(ollama: "Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of an Airflow connection to the stand-in: `ollama_default`."""
    parts = urlsplit(ollama.url)
    value = {"conn_type": "ollama", "host": f"{parts.scheme}://{parts.hostname}", "port": parts.port}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps(value))
    return "ollama_default"
