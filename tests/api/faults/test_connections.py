"""No connection, no TLS, no HTTP."""

import pytest

from tests.api.faults.connections import CONNECTIONS
from tests.api.faults.matrix import check, variants


@pytest.mark.parametrize(("fault", "variant"), variants(CONNECTIONS))
def test_connections(faults_server, fault, variant):
    """Every operation, with both clients: what comes of it is what the list says."""
    check(fault, variant, faults_server)
