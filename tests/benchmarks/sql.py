"""What rows out of PostgreSQL and results into it add to a row, beside JSON lines and a directory alone.

    python tests/benchmarks/sql.py [rows]

PostgreSQL runs on this machine, from the distribution's package. The rows are answered first, by a server that does so
at once. Then two kinds of run find all of them answered, with files alone and with query and table, and their
difference is what counts: all of the way in and out, and nothing of the requests between.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
HOME = tempfile.TemporaryDirectory(prefix="airflow-")
os.environ["AIRFLOW_HOME"] = HOME.name

from common import serve, tell  # noqa: E402
from rows import prompt  # noqa: E402

from ollama_provider.api.schemas import Options  # noqa: E402
from ollama_provider.api.settings import Settings  # noqa: E402
from ollama_provider.batch import BatchSpec, Pace, run_batch  # noqa: E402
from ollama_provider.sql import SqlRows, SqlTable  # noqa: E402
from tests.services import Postgresql, postgresql, program  # noqa: E402


def run(url: str, folder: str, rows: Any, into: SqlTable | None) -> tuple[float, float]:
    """Run a batch; return seconds on the clock and of the client's processor."""
    spec = BatchSpec(
        model="bench",
        rows=rows,
        into=into,
        prompt="Summarise in one sentence:\n{{ row.text }}",
        id_column="id",
        options=Options(seed=1, num_ctx=4096),
        pace=Pace(concurrency=16),
    )
    wall, processor = time.perf_counter(), time.process_time()
    summary = run_batch(spec, Settings(base_url=url), folder)
    assert summary.complete, summary
    assert summary.written == (summary.rows if into else 0), summary
    return time.perf_counter() - wall, time.process_time() - processor


def fill(server: Postgresql, file: Path) -> None:
    """Put the rows of the file into the table ``documents``."""
    psql = [program("psql"), "-q", "-h", "127.0.0.1", "-p", str(server.port), "-U", "airflow", "airflow", "-c"]
    subprocess.run([*psql, "CREATE TABLE documents (id BIGINT PRIMARY KEY, text TEXT)"], check=True)
    with file.open() as lines:
        values = "".join(f"{row['id']}\t{row['text']}\n" for row in map(json.loads, lines))
    subprocess.run([*psql, "COPY documents FROM STDIN"], input=values, text=True, check=True)


def main(rows: int) -> None:
    """Measure and print."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder, "logs")) as server, serve() as url:
        file = Path(folder, "rows.jsonl")
        with file.open("w") as lines:
            for number in range(rows):
                text = " ".join(prompt(number).partition("\n")[2].split())
                lines.write(json.dumps({"id": number, "text": text}) + "\n")
        fill(server, file)
        where = {"conn_type": "postgres", "host": "127.0.0.1", "port": server.port, "login": "airflow"}
        os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps(where | {"schema": "airflow"})
        columns = {"document": "id", "summary": "output", "tokens": "tokens"}
        query = SqlRows("warehouse", "SELECT id, text FROM documents ORDER BY id")
        run(url, folder, file, None)
        files, both = [], []
        for number in range(3):
            files.append(run(url, folder, file, None))
            table = SqlTable("warehouse", f"summaries{number}", "document", columns, create=True)
            both.append(run(url, folder, replace(query, occasion=str(number)), table))
    wall, processor = (
        1000 * (min(b) - min(a)) / rows for a, b in zip(zip(*files, strict=True), zip(*both, strict=True), strict=True)
    )
    alone = 1000 * min(processor for _, processor in files) / rows
    tell(
        "sql",
        f"PostgreSQL in and out: ms a row more ({rows:,} rows)",
        f"{wall:.3f}",
        f"{processor:.3f} of it the client's processor; files alone {alone:.3f}",
        "< 0.2 ms",
        alone / processor,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
