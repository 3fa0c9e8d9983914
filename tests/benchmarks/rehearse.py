"""How well a rehearsal of 20 rows tells how long 3,000 take: its estimate beside the night itself, in real time.

    python tests/benchmarks/rehearse.py [nights [seconds]]

One server is that of the other benchmarks, with 4 slots; the other is the stand-in that comes with the package, with 4
and with 16. A request takes 100 ms, or so many seconds, ± lognormal (sigma 0.3, then 0.5); nobody is told. The mean of
twenty such times has a standard error of 7 and 12 %, so within 15 % of the truth are 97 and 79 of 100 estimates at
best. How often that is so over hundreds of nights is in tests/batch/rehearsal/test_estimate.py, without a clock. On a
machine that is busy with something else, let requests take longer than the work of this program on them.
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
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

from common import serve, tell
from rows import prompt

from ollama_provider import testing
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, rehearse_batch, run_batch

ROWS = 3000


def _stand_in(connection: Connection, slots: int, seconds: float, sigma: float, requests: int) -> None:
    """Serve a stand-in until the other end of the connection is closed."""
    stand_in, chance = testing.StandIn(["bench"], parallel=slots), random.Random(sigma)
    middle = math.log(seconds) - sigma**2 / 2
    stand_in.script(
        *(testing.Pace(first_token=chance.lognormvariate(middle, sigma)) for _ in range(requests)),
        where=lambda body: bool(body.get("prompt")),  # the others load the model
    )
    with testing.serve(stand_in) as server, contextlib.suppress(EOFError):
        connection.send(server.url)
        connection.recv()


@contextlib.contextmanager
def serve_stand_in(slots: int, seconds: float, sigma: float, requests: int) -> Iterator[str]:
    """Run a stand-in in a process of its own, with times for so many requests; give its URL."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_stand_in, args=(its, slots, seconds, sigma, requests))
    process.start()
    its.close()
    with ours:
        yield ours.recv()
    process.join()


def a_night(url: str, night: int) -> tuple[float, bool]:
    """Rehearse and run; return estimate over truth, and whether the range has the truth."""
    with tempfile.TemporaryDirectory() as folder:
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


def main(nights: int, seconds: float) -> None:
    """Measure and print."""
    logging.disable()
    for sigma in (0.3, 0.5):
        for key, name, server in (
            (f"rehearse-{sigma}", "4 slots", serve(slots=4, seconds=seconds, sigma=sigma)),
            (f"rehearse-stand-in-{sigma}", "stand-in, 4 slots", serve_stand_in(4, seconds, sigma, nights * ROWS)),
            (f"rehearse-stand-in-16-{sigma}", "stand-in, 16 slots", serve_stand_in(16, seconds, sigma, nights * ROWS)),
        ):
            with server as url:
                found = [a_night(url, night) for night in range(nights)]
            errors = [abs(ratio - 1) for ratio, _ in found]
            tell(
                key,
                f"rehearsal: 20 of {ROWS} rows, {name}, sigma {sigma}, {nights} nights",
                f"{sum(error <= 0.15 for error in errors)} within 15 %",
                f"estimate/truth {' '.join(f'{ratio:.2f}' for ratio, _ in found)}, "
                f"in range {sum(has for _, has in found)}",
                "within 15 %",
                1 / (1 + fmean(errors)),
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, float(sys.argv[2]) if len(sys.argv) > 2 else 0.1)
