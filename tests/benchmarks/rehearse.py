"""How well a rehearsal of 20 rows tells how long 3,000 take: its estimate beside the night itself, in real time.

    python tests/benchmarks/rehearse.py [nights [seconds]]

One server is that of the other benchmarks, with 4 slots; the other is the stand-in that comes with the package, with 4
and with 16. A request takes 0.1 s for each slot, or so many seconds, ± lognormal (sigma 0.3, then 0.5); nobody is told.
So a night takes five minutes, with ten rows a second, and those of one sigma run at the same time, each with a server
of its own: 4 nights of each kind keep a core busy to a third.

The mean of twenty such times has a standard error of 7 and 12 %, so within 15 % of the truth are 97 and 79 of 100
estimates at best. How often that is so over hundreds of nights is in tests/batch/rehearsal/test_estimate.py, without a
clock. On a machine that is busy with something else, let requests take longer than the work of this program on them.
"""

import contextlib
import json
import logging
import math
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

from common import serve, tell
from rows import prompt

from ollama_provider import testing
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, rehearse_batch, run_batch

ROWS = 3000
SPAWN = multiprocessing.get_context("spawn")
#: Server and its slots.
SERVERS = (("the other benchmarks' server", 4), ("stand-in", 4), ("stand-in", 16))


def _stand_in(connection: Connection, slots: int, seconds: float, sigma: float, seed: int) -> None:
    """Serve a stand-in until the other end of the connection is closed."""
    stand_in, chance = testing.StandIn(["bench"], parallel=slots), random.Random(seed)
    middle = math.log(seconds) - sigma**2 / 2
    stand_in.script(
        *(testing.Pace(first_token=chance.lognormvariate(middle, sigma)) for _ in range(ROWS)),
        where=lambda body: bool(body.get("prompt")),  # the others load the model
    )
    with testing.serve(stand_in) as server, contextlib.suppress(EOFError):
        connection.send(server.url)
        connection.recv()


@contextlib.contextmanager
def serve_stand_in(slots: int, seconds: float, sigma: float, seed: int) -> Iterator[str]:
    """Run a stand-in in a process of its own, with random times for the rows of a night; give its URL."""
    ours, its = SPAWN.Pipe()
    process = SPAWN.Process(target=_stand_in, args=(its, slots, seconds, sigma, seed))
    process.start()
    its.close()
    with ours:
        yield ours.recv()
    process.join()


def a_night(name: str, slots: int, seconds: float, sigma: float, night: int) -> tuple[float, bool]:
    """Rehearse and run; return estimate over truth, and whether the range has the truth."""
    logging.disable()
    times = {"slots": slots, "seconds": seconds, "sigma": sigma}
    server = serve_stand_in(**times, seed=night) if name == "stand-in" else serve(**times)
    with tempfile.TemporaryDirectory() as folder, server as url:
        file = Path(folder, "rows.jsonl")
        with file.open("w") as lines:
            for number in range(ROWS):
                lines.write(json.dumps({"text": f"night {night} {prompt(number)}"}) + "\n")
        spec, settings = BatchSpec(model="bench", rows=file), Settings(base_url=url)
        found = rehearse_batch(spec, settings, f"{folder}/out").night
        assert found is not None
        summary = run_batch(spec, settings, f"{folder}/out")
        truth = summary.seconds * ROWS / (ROWS - summary.reused)
        return found.seconds / truth, found.low <= truth <= found.high


def main(nights: int, seconds: float | None) -> None:
    """Measure and print."""
    with ProcessPoolExecutor(nights * len(SERVERS), SPAWN) as processes:
        for sigma in (0.3, 0.5):
            started = {
                (name, slots): [
                    processes.submit(a_night, name, slots, seconds or 0.1 * slots, sigma, night)
                    for night in range(nights)
                ]
                for name, slots in SERVERS
            }
            for (name, slots), futures in started.items():
                found = [future.result() for future in futures]
                errors = [abs(ratio - 1) for ratio, _ in found]
                tell(
                    f"rehearse-{name if name == 'stand-in' else 'server'}-{slots}-{sigma}",
                    f"rehearsal: 20 of {ROWS} rows, {name}, {slots} slots, sigma {sigma}, {nights} nights",
                    f"{sum(error <= 0.15 for error in errors)} within 15 %",
                    f"estimate/truth {' '.join(f'{ratio:.2f}' for ratio, _ in found)}, "
                    f"in range {sum(has for _, has in found)}",
                    "within 15 %",
                    1 / (1 + fmean(errors)),
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, float(sys.argv[2]) if len(sys.argv) > 2 else None)
