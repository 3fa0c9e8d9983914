"""No connection, no TLS, no HTTP: every operation, both clients."""

import pytest

from tests.api.faults.connections import CONNECTIONS
from tests.api.faults.matrix import check, variants


@pytest.mark.parametrize(("fault", "variant"), variants(CONNECTIONS))
def test_connections(faults_server, fault, variant):
    """What comes of each is what the list says."""
    check(fault, variant, faults_server)
