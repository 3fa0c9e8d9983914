"""Answers that are cut at every byte."""

import pytest

from tests.api.faults.cuts import CUTS
from tests.api.faults.matrix import check, variants


@pytest.mark.parametrize(("fault", "variant"), variants(CUTS))
def test_cuts(faults_server, fault, variant):
    """Every operation, with both clients: what comes of it is what the list says."""
    check(fault, variant, faults_server)
