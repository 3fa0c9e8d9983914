"""What the command costs before it does anything: ``python -m ollama_provider.batch --help``.

    python tests/benchmarks/startup.py

Counted in seconds of the processor, and compared with the import of the libraries that every batch needs. What the
command takes beyond those is ours.
"""

import resource
import subprocess
import sys

from common import tell

TIMES = 5
LIBRARIES = "import httpx, pydantic, tenacity, jinja2.sandbox"


def seconds(*arguments: str) -> float:
    """Return seconds of the processor of a Python with these arguments; the least of some runs."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(TIMES))


def main() -> None:
    """Measure and print."""
    command, libraries = seconds("-m", "ollama_provider.batch", "--help"), seconds("-c", LIBRARIES)
    tell(
        "startup",
        "start of the command, seconds of the processor",
        f"{command:.2f} s",
        f"its libraries {libraries:.2f} s (ours is {command - libraries:.2f} s)",
        "",
        libraries / command,
    )


if __name__ == "__main__":
    main()
