"""How long a million finished rows hold up the first new one.

    python tests/benchmarks/resume.py [rows]

The directory is what a run leaves that was killed before its last row: the parts are written by the journal itself.
Time is taken from the start of the run to the arrival of the one new request at the server.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from common import serve, statistics, tell
from memory import write_rows

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Outcome, run_batch
from ollama_provider.batch.requests.tasks import Generate
from ollama_provider.batch.rows.prompts import PromptTemplate
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.keys import Keys
from ollama_provider.batch.store.lines import shared_fields
from ollama_provider.batch.store.storage import open_storage

TEMPLATE = "Summarise in one sentence:\n{{ row.text }}"
OPTIONS = Options(num_ctx=4096)
PER_PART = 5_000


def finish(folder: Path, rows: int, digest: str) -> None:
    """Write the parts of all rows but the last."""
    journal = Journal(open_storage(folder / "out"), 1)
    prompts, keys = PromptTemplate(TEMPLATE), Keys(digest, Generate(model="bench", options=OPTIONS).identity())
    shared = shared_fields({"model": "bench", "digest": digest, "server": "http://127.0.0.1:11434", "seed": None})
    for number, row in enumerate(read_rows(folder / "rows.jsonl")):
        if number == rows - 1:
            break
        key = keys.key(prompts.render(row.columns))
        outcome = Outcome(key.hex(), "ok", output="an answer of some length " * 12, tokens=80, prompt_tokens=250)
        journal.add(journal.find(key)[0], outcome, shared)
        if number % PER_PART == PER_PART - 1:
            journal.end_part()
            journal.seal_parts()
    journal.end_part()
    journal.seal_parts()


def main(rows: int) -> None:
    """Measure and print."""
    logging.disable()
    with tempfile.TemporaryDirectory() as name, serve() as url:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", rows)
        finish(folder, rows, "0" * 64)
        spec = BatchSpec(model="bench", rows=folder / "rows.jsonl", prompt=TEMPLATE, id_column="id", options=OPTIONS)
        began = time.perf_counter()
        with (folder / "rows.jsonl").open() as lines:
            for line in lines:
                json.loads(line)
        bare = time.perf_counter() - began
        began = time.perf_counter()
        summary = run_batch(spec, Settings(base_url=url), folder / "out")
        ended = time.perf_counter()
        # The clocks of two processes on one machine are the same.
        first = statistics(url)["first"] - began
    assert (summary.ok, summary.reused) == (rows, rows - 1), summary
    tell(
        "resume",
        f"resume: {rows:,} finished rows, first new request",
        f"{first:.1f} s",
        f"reading the rows as JSON {bare:.1f} s; whole run with results in order {ended - began:.1f} s",
        "<= 20 s",
        bare / first,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
