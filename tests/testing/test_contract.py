"""What we rely on a real server for holds for the stand-in too."""

import os
import subprocess
import sys
from pathlib import Path

LIVE = Path(__file__).parents[1] / "live" / "test_contract.py"


def test_the_stand_in_keeps_the_contract():
    """The tests for a real server pass against the stand-in, all of them."""
    environment = {name: value for name, value in os.environ.items() if name != "OLLAMA_HOST"}

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(LIVE)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "Ollama: the stand-in" in ran.stdout
    assert "skipped" not in ran.stdout
