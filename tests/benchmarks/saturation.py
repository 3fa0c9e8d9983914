"""How busy the slots of a server are kept: (sum of service times / slots) / time on the clock.

    python tests/benchmarks/saturation.py [--quick]

The server has N slots and takes 200 ms ± lognormal (sigma 0.5) for a request; service and clock are measured by the
server, from the first row's arrival to the last row's answer. Every client gets the same times, since they are drawn
from the prompt.
"""

import sys

from common import ours, peer, serve, statistics, tell

SECONDS = 0.2


def busy(url: str, slots: int) -> float:
    """The share of slots in use since the last call."""
    found = statistics(url)
    return found["served"] / slots / found["wall"]


def main(*, quick: bool) -> None:
    """Measure and print."""
    for slots, rows, wanted in ((4, 500, 0.97), (16, 3000, 0.95)):
        with serve(slots=slots, seconds=SECONDS) as url:
            ours(url, rows, "auto")
            batch = busy(url, slots)
            told = []
            if not quick:
                # People guess a number: too small, right, too large.
                for concurrency in (slots // 2, slots, 2 * slots):
                    peer("ollama", url, rows, concurrency)
                    told.append(f"{concurrency}: {busy(url, slots):.2f}")
                if slots == 4:
                    peer("ollama", url, rows // 5, 1)
                    told.append(f"loop: {busy(url, slots):.2f}")
        tell(
            f"saturation-{slots}",
            f"saturation: {slots} slots, {rows} rows, auto",
            f"{batch:.3f}",
            "ollama with " + ", ".join(told),
            f">= {wanted}",
            batch,
        )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
