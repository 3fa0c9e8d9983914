"""Rows a second against a server that answers at once: ours with journal, rendering and validation, and the peers bare.

    python tests/benchmarks/overhead.py [rows]

Counted in seconds of the client's processor, all threads together, which is what "on one core" means and what other
work on the machine disturbs least. Each is run three times in turn with the others; the best of each counts.
"""

import sys

from common import ours, peer, serve, tell

CONCURRENCY = 16


def main(rows: int) -> None:
    """Measure and print."""
    speeds: dict[str, float] = {}
    with serve() as url:
        ours(url, 200, CONCURRENCY)
        for _ in range(3):
            for name in ("batch", "ollama", "aiohttp"):
                count = rows // 4 if name == "ollama" else rows
                found = ours(url, count, CONCURRENCY) if name == "batch" else peer(name, url, count, CONCURRENCY, 100)
                speeds[name] = max(speeds.get(name, 0.0), count / found["processor"])
    tell(
        "overhead",
        "overhead: rows/s of one core, 16 in flight",
        f"{speeds['batch']:.0f}",
        f"ollama {speeds['ollama']:.0f} ({speeds['batch'] / speeds['ollama']:.1f}x), "
        f"aiohttp {speeds['aiohttp']:.0f} ({speeds['batch'] / speeds['aiohttp']:.2f}x)",
        ">= 4x",
        speeds["batch"] / speeds["ollama"],
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
