"""How much memory a large batch takes: rows of 1 kB, asked, written and put in order.

    python tests/benchmarks/memory.py [rows]

Peak of the resident memory above what the imports take, each size in a process of its own. A million rows take some six
minutes, most of them the server's.
"""

import json
import logging
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import serve, tell

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Pace, run_batch

MEGABYTE = 1 << 20


def write_rows(file: Path, rows: int) -> None:
    """Make the input: 1 kB a row."""
    filler = "lorem ipsum dolor sit amet " * 40
    with file.open("w") as lines:
        for number in range(rows):
            lines.write(json.dumps({"id": f"row-{number:010}", "text": f"{number} {filler}"[:1000]}) + "\n")


def measure(url: str, rows: int, folder: str) -> None:
    """Run the batch in this process; print peaks in bytes, before and after."""
    logging.disable()
    file = Path(folder, "rows.jsonl")
    # The first batch loads what is loaded late (the transport), and is part of the baseline.
    run_batch(BatchSpec(model="bench", rows=["a"]), Settings(base_url=url), f"{folder}/warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spec = BatchSpec(model="bench", rows=file, id_column="id", options=Options(num_ctx=4096), pace=Pace(concurrency=16))
    summary = run_batch(spec, Settings(base_url=url), f"{folder}/out")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"ok": summary.ok, "before": before, "after": after, "seconds": summary.seconds}))


def peak(url: str, rows: int) -> int:
    """Return the bytes above the baseline for so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.jsonl"), rows)
        command = [sys.executable, __file__, "--measure", url, str(rows), folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert found["ok"] == rows
        return found["after"] - found["before"]


def main(rows: int) -> None:
    """Measure and print."""
    with serve() as url:
        tenth, all_rows = peak(url, rows // 10), peak(url, rows)
    tell(
        f"memory: {rows:,} rows of 1 kB, above the imports",
        f"{all_rows / MEGABYTE:.0f} MB",
        f"{rows // 10:,} rows: {tenth / MEGABYTE:.0f} MB; bound {(1.5 * tenth + 150 * rows) / MEGABYTE:.0f} MB",
        "<= 400 MB",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
