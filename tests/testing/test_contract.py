"""What we rely on a real server for holds for the stand-in too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_provider.testing import StandIn, serve

LIVE = Path(__file__).parents[1] / "live" / "test_contract.py"


@pytest.mark.parametrize("version", ["0.24.0", "0.33.0"])
def test_the_stand_in_keeps_the_contract(version):
    """The tests for a real server pass against the stand-in, all of them."""
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
