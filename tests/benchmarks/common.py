"""What the benchmarks of the batch share: a server in a process of its own, our run and the peers', a line a result."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import prompt

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Pace, run_batch

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".venv-peers/bin/python"


@contextlib.contextmanager
def serve(**options: float) -> Iterator[str]:
    """Run the server in a process of its own, with these options; give its URL."""
    given = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen([sys.executable, str(HERE / "server.py"), *given], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def statistics(url: str) -> dict[str, float]:
    """Seconds of service and on the clock since the last call, as the server measured them."""
    with urllib.request.urlopen(f"{url}/statistics") as reply:  # noqa: S310  # http://127.0.0.1
        found: dict[str, float] = json.load(reply)
        return found


def ours(url: str, rows: int, concurrency: Any) -> dict[str, float]:
    """Run a batch over the rows, journal and results included; return seconds on the clock and of the processor."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        with file.open("w") as lines:
            for number in range(rows):
                lines.write(json.dumps({"id": number, "text": prompt(number).partition("\n")[2]}) + "\n")
        spec = BatchSpec(
            model="bench",
            rows=file,
            prompt="Summarise in one sentence:\n{{ row.text }}",
            id_column="id",
            options=Options(seed=1, num_ctx=4096),
            pace=Pace(concurrency=concurrency),
        )
        wall, processor = time.perf_counter(), time.process_time()
        summary = run_batch(spec, Settings(base_url=url), f"{folder}/out")
        assert summary.ok == rows, summary
        return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def peer(which: str, url: str, rows: int, concurrency: int, warm_up: int = 0) -> dict[str, float]:
    """Let a peer ask the same rows; return seconds on the clock and of the processor."""
    command = [str(PEERS), str(HERE / "peers.py"), which, url, str(rows), str(concurrency), str(warm_up)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def tell(key: str, what: str, value: str, beside: str, wanted: str, ratio: float) -> None:
    """Print a line of the table, and hand it to `make bench`.

    Args:
        key: names the line in the history.
        what: what is measured.
        value: ours.
        beside: what it was compared with in the same run.
        wanted: the goal.
        ratio: how many times better ours is than what it was compared with; more is better. Only this is kept, since
            seconds of one machine say nothing on another.
    """
    print(f"| {what:<56} | {value:>16} | {beside:<58} | {wanted:>10} |", flush=True)
    if file := os.environ.get("BENCHMARK_RESULTS"):
        line = {"key": key, "what": what, "value": value, "beside": beside, "wanted": wanted, "ratio": ratio}
        with Path(file).open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def reference_seconds() -> float:
    """Return seconds of the processor for a fixed piece of work, to compare with where there is no peer.

    It makes and reads 50,000 small JSON objects. The best of three counts.
    """

    def once() -> float:
        began = time.process_time()
        for number in range(50_000):
            json.loads(json.dumps({"number": number, "text": "lorem ipsum dolor sit amet", "done": False}))
        return time.process_time() - began

    return min(once() for _ in range(3))
