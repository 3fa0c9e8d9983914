"""Damaged HTTP, damaged JSON, and errors in answers."""

import pytest

from tests.api.faults.framing import FRAMING
from tests.api.faults.matrix import check, variants
from tests.api.faults.objects import BODIES, ERRORS


@pytest.mark.parametrize(("fault", "variant"), variants([*FRAMING, *BODIES, *ERRORS]))
def test_answers(faults_server, fault, variant):
    """Every operation, with both clients: what comes of it is what the list says."""
    check(fault, variant, faults_server)
