"""Four shards over two workers: how near to the ideal, and no row twice.

    python tests/benchmarks/shards.py [rows]

Each worker is a process that runs one shard after another, as Airflow's do; the server has slots enough for both.
"""

import json
import logging
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import serve, statistics, tell
from rows import prompt

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Pace, Summary, run_batch

SHARDS, WORKERS, SLOTS, SECONDS = 4, 2, 8, 0.1


def run(url: str, folder: Path, shard: int | None) -> Summary:
    """Run a shard, or the merge."""
    logging.disable()
    spec = BatchSpec(
        model="bench",
        rows=folder / "rows.jsonl",
        options=Options(num_ctx=4096),
        # One more than its part of the slots, so that none waits for us.
        pace=Pace(concurrency=SLOTS // WORKERS + 1),
        mode="all" if shard is not None else "merge",
        shard=None if shard is None else (shard, SHARDS),
    )
    return run_batch(spec, Settings(base_url=url), folder / "out")


def main(rows: int) -> None:
    """Measure and print."""
    with (
        serve(slots=SLOTS, seconds=SECONDS) as url,
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(WORKERS) as workers,
    ):
        folder = Path(name)
        lines = (json.dumps({"text": prompt(number)}) + "\n" for number in range(rows))
        (folder / "rows.jsonl").write_text("".join(lines))
        list(workers.map(abs, range(WORKERS)))  # have them started
        began = time.perf_counter()
        done = list(workers.map(run, [url] * SHARDS, [folder] * SHARDS, range(SHARDS)))
        wall = time.perf_counter() - began
        served = statistics(url)["served"]
        merged = run(url, folder, None)
    assert sum(summary.requests for summary in done) == merged.rows == rows
    assert merged.complete
    assert merged.requests == 0
    ideal = served / SLOTS
    tell(
        "shards",
        f"shards: {SHARDS} over {WORKERS} workers, {rows} rows, seconds",
        f"{wall:.1f}",
        f"ideal {ideal:.1f} ({wall / ideal - 1:+.0%})",
        "<= +10%",
        ideal / wall,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
