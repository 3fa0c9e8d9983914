"""Silence, drips, and answers without end."""

import re
from pathlib import Path

import pytest

from tests.api.faults.matrix import check, variants
from tests.api.faults.waits import ENDLESS, SILENCE

#: Bytes that an answer without end may take of the memory: a few times the longest line, in all.
MOST_MEMORY = 256 * 2**20


def memory(kind: str) -> int:
    """Return bytes that this process has in memory (`VmRSS`), or had at most (`VmHWM`)."""
    return int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize(("fault", "variant"), variants(SILENCE))
def test_silence(faults_server, fault, variant):
    """Every operation, with both clients: what comes of it is what the list says."""
    check(fault, variant, faults_server)


@pytest.mark.parametrize(("fault", "variant"), variants(ENDLESS))
def test_answers_without_end(faults_server, fault, variant):
    """They are broken off, and are never in memory as a whole."""
    Path("/proc/self/clear_refs").write_text("5")  # begins to measure the most anew
    before = memory("VmRSS")

    check(fault, variant, faults_server)

    assert memory("VmHWM") - before < MOST_MEMORY
