"""One server for all faults."""

from collections.abc import Iterator

import pytest

from tests.api.faults.server import Server, server


@pytest.fixture(scope="session")
def faults_server() -> Iterator[Server]:
    """Where the faults are played."""
    with server() as running:
        yield running
