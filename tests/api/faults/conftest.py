"""One server for all faults."""

from collections.abc import Iterator

import pytest

from ollama_provider.api import timeouts
from tests.api.faults.server import Server, server


@pytest.fixture(scope="session")
def faults_server() -> Iterator[Server]:
    """Where the faults are played."""
    with server() as running:
        yield running


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait shorter for what is no setting: the end of what is finished, and of a refusal."""
    monkeypatch.setattr(timeouts, "END_TIMEOUT", 0.2)
    monkeypatch.setattr(timeouts, "REFUSAL_TIMEOUT", 0.3)
