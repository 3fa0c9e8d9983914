"""How much memory a large batch takes: rows of 1 kB, asked, written and put in order.

    python tests/benchmarks/memory.py [rows [rows of each other kind of batch]]

Peak of the resident memory above what the imports take, each size in a process of its own. A million rows take some six
minutes, most of them the server's. The other kinds: answers in a schema that go to Parquet and into a table of SQLite,
and vectors in packs. Their default is a fiftieth of the rows, and the size is doubled to show how it grows.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import serve, tell

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Embedding, Pace, run_batch

MEGABYTE = 1 << 20
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


def write_rows(file: Path, rows: int) -> None:
    """Make the input: 1 kB a row."""
    filler = "lorem ipsum dolor sit amet " * 40
    with file.open("w") as lines:
        for number in range(rows):
            lines.write(json.dumps({"id": f"row-{number:010}", "text": f"{number} {filler}"[:1000]}) + "\n")


def arguments(kind: str) -> dict[str, Any]:
    """Return the arguments of `BatchSpec` for a kind of batch."""
    match kind:
        case "table":
            from ollama_provider.sql import SqlTable  # it loads Airflow, which the others do without

            table = SqlTable("warehouse", "words", "document", {"document": "id", "word": "output.word"}, create=True)
            return {"output_type": SCHEMA, "results": "parquet", "into": table}
        case "packs":
            return {"embedding": Embedding()}
    return {}


def measure(url: str, rows: int, folder: str, kind: str) -> None:
    """Run the batch in this process; print peaks in bytes, before and after."""
    logging.disable()
    file, options = Path(folder, "rows.jsonl"), Options(num_ctx=4096)
    # The first batch loads what is loaded late (the transport, the database), and is part of the baseline.
    few = [{"id": f"warm-up {number}", "text": "a"} for number in range(100)]
    spec = BatchSpec(model="bench", rows=few, id_column="id", options=options, **arguments(kind))
    run_batch(spec, Settings(base_url=url), f"{folder}/warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pace = Pace(concurrency=16)
    spec = BatchSpec(model="bench", rows=file, id_column="id", options=options, pace=pace, **arguments(kind))
    summary = run_batch(spec, Settings(base_url=url), f"{folder}/out")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"ok": summary.ok, "before": before, "after": after, "seconds": summary.seconds}))


def peak(url: str, rows: int, kind: str = "plain") -> int:
    """Return the bytes above the baseline for so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.jsonl"), rows)
        command = [sys.executable, __file__, "--measure", url, str(rows), folder, kind]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
            "AIRFLOW_HOME": folder,
            "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "sqlite", "host": f"{folder}/warehouse.db"}),
        }
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])  # Airflow may print before
        assert found["ok"] == rows, found
        return found["after"] - found["before"]


def main(rows: int, others: int) -> None:
    """Measure and print."""
    with serve() as url:
        tenth, all_rows = peak(url, rows // 10), peak(url, rows)
        tell(
            "memory",
            f"memory: {rows:,} rows of 1 kB, above the imports",
            f"{all_rows / MEGABYTE:.0f} MB",
            f"{rows // 10:,} rows: {tenth / MEGABYTE:.0f} MB; bound {(1.5 * tenth + 150 * rows) / MEGABYTE:.0f} MB",
            "<= 400 MB",
            1000 * rows / all_rows,
        )
        for kind, what in (("table", "with schema, Parquet and table"), ("packs", "as vectors in packs")):
            once, twice = peak(url, others, kind), peak(url, 2 * others, kind)
            tell(
                f"memory-{kind}",
                f"memory: {2 * others:,} rows {what}",
                f"{twice / MEGABYTE:.0f} MB",
                f"{others:,} rows: {once / MEGABYTE:.0f} MB; {(twice - once) / others:.0f} bytes for each row more",
                "<= 400 MB",
                1000 * 2 * others / twice,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
        main(rows, int(sys.argv[2]) if len(sys.argv) > 2 else rows // 50)
