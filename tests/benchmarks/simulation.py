"""A million rows over 64 servers of speeds 1:8, a quarter of which fail and come back: the plan alone, simulated.

    python tests/benchmarks/simulation.py [rows]

The makespan is compared with the time in which all slots would be busy from the first moment to the last, the down
times left out. Decisions are counted in seconds of the processor. Memory is what the run adds.
"""

import random
import resource
import sys
from pathlib import Path

from common import tell

sys.path.insert(0, str(Path(__file__).parents[1] / "batch/scheduling"))
from simulation import Simulation, machines

SERVERS = 64


def memory() -> float:
    """The most memory that this process has used, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(rows: int) -> None:
    """Measure and print."""
    servers, chance = machines(SERVERS), random.Random(1)
    night = rows / sum(machine.slots / machine.seconds for machine in servers)
    for machine in servers[::4]:
        begin = chance.uniform(0.1, 0.8) * night
        machine.outages = ((begin, begin + chance.uniform(5, 60)),)
    before = memory()
    run = Simulation(servers, rows).run()
    assert run.stopped is None
    assert set(run.answers) == {1}, "each row has one answer"
    again = sum(run.requests) - rows
    tell(
        f"simulation: {SERVERS} servers, {rows} rows",
        f"{run.finished_at / run.ideal():.3f}",
        f"{run.decisions / rows * 1e6:.0f} µs a row, {memory() - before:.0f} MB, {again} requests again",
        "<= 1.03",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
