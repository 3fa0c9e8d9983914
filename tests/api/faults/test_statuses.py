"""Every status that says no, with every kind of body."""

import pytest

from tests.api.faults.matrix import check, variants
from tests.api.faults.statuses import RETRY_AFTER, STATUSES


@pytest.mark.parametrize(("fault", "variant"), variants([*STATUSES, *RETRY_AFTER]))
def test_statuses(faults_server, fault, variant):
    """Every operation, with both clients: what comes of it is what the list says."""
    check(fault, variant, faults_server)
