"""The stand-in passes the tests that are written for a real server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_provider.testing import StandIn, serve

LIVE = Path(__file__).parents[1] / "live" / "test_contract.py"


@pytest.mark.parametrize("version", ["0.24.0", "0.33.0"])
def test_the_stand_in_keeps_the_contract(version):
    """All tests for a real server pass, and none is skipped."""
    with serve(StandIn(version=version)) as server:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(LIVE)],
            capture_output=True,
            text=True,
            env=os.environ | {"OLLAMA_HOST": server.url},
            check=False,
        )

    assert ran.returncode == 0, ran.stdout
    assert f"Ollama: {server.url}" in ran.stdout
    assert "skipped" not in ran.stdout
