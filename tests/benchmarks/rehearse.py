"""How well a rehearsal of 20 rows tells how long 3,000 take: its estimate beside the night itself, in real time.

    python tests/benchmarks/rehearse.py [nights]

The server has 4 slots and takes 100 ms ± lognormal (sigma 0.3, then 0.5) for a request; nobody is told. The mean of
twenty such times has a standard error of 7 and 12 %, so within 15 % of the truth are 97 and 79 of 100 estimates at
best. How often that is so over hundreds of nights is in tests/batch/rehearsal/test_estimate.py, without a clock.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from common import serve, tell
from rows import prompt

from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, rehearse_batch, run_batch

ROWS, SLOTS, SECONDS = 3000, 4, 0.1


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


def main(nights: int) -> None:
    """Measure and print."""
    logging.disable()
    for sigma in (0.3, 0.5):
        with serve(slots=SLOTS, seconds=SECONDS, sigma=sigma) as url:
            found = [a_night(url, night) for night in range(nights)]
        errors = [abs(ratio - 1) for ratio, _ in found]
        tell(
            f"rehearse-{sigma}",
            f"rehearsal: 20 of {ROWS} rows, sigma {sigma}, {nights} nights",
            f"{sum(error <= 0.15 for error in errors)} within 15 %",
            f"estimate/truth {' '.join(f'{ratio:.2f}' for ratio, _ in found)}, in range {sum(has for _, has in found)}",
            "within 15 %",
            1 / (1 + fmean(errors)),
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
