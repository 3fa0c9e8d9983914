"""How long it takes to make the report of a million rows, how large it is, and what share of a batch that is.

    python tests/benchmarks/report.py [rows]

The directory is what a complete batch leaves, written by the journal and the results themselves: a hundredth of the
rows failed, for ten reasons, and as many were cut or repaired. Counted in seconds of the processor.
"""

import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from common import ours, serve, tell

from ollama_provider.batch import Outcome, Summary
from ollama_provider.batch.report.history import History
from ollama_provider.batch.report.run_report import write_report
from ollama_provider.batch.results.files import json_lines_format, write_results
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.spec import Names
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import shared_fields
from ollama_provider.batch.store.storage import Storage, open_storage, write

PER_PART, CONCURRENCY = 10_000, 16
SHARED = shared_fields({"model": "bench", "digest": "0" * 64, "server": "http://127.0.0.1:11434", "seed": None})


def outcomes(rows: int) -> Iterator[Outcome]:
    """Return the outcomes of a night, always the same."""
    dice = Random(5)
    for number in range(rows):
        tokens, seconds = int(dice.lognormvariate(4, 0.5)), round(dice.lognormvariate(0, 0.5), 3)
        known = {"tokens": tokens, "prompt_tokens": 250, "seconds": seconds, "queue_seconds": 0.0, "attempts": 1}
        key, kind = dice.randbytes(16).hex(), number % 100
        if kind == 1:
            error = {"class": f"Odd{number // 100 % 10}Error", "text": "the answer does not fit " * 20}
            yield Outcome(key, "failed", error=error, reply="a bad answer " * 100, **known)
        else:
            marks = {"rungs": ("asked_again",), "answer_cut": True} if kind == 2 else {}
            yield Outcome(key, "ok", output="an answer of some length " * 12, tokens_per_second=62.0, **known, **marks)


def finish(storage: Storage, rows: int) -> Journal:
    """Write what a complete batch leaves, and return its journal."""
    journal, order, history = Journal(storage, 1), RowOrder(with_fields=True), History(1)
    for number, outcome in enumerate(outcomes(rows)):
        key, _ = journal.find(bytes.fromhex(outcome.key))
        journal.add(key, outcome, SHARED)
        order.add(key, f"row-{number:010}")
        if number % PER_PART == PER_PART - 1:
            journal.end_part()
            journal.seal_parts()
    journal.end_part()
    journal.seal_parts()
    write_results(storage, journal, order, json_lines_format(vectors=False))
    order.close()
    history.begin(1e9)
    for second in range(1, 30_000):
        done = rows * second // 30_000
        in_flight = 16 + round(8 * math.sin(second / 900))
        history.add(1e9 + second, rows=done, tokens=80 * done, in_flight=in_flight, out=0.0)
    history.note(1e9 + 30_000, "ended", "complete")
    history.save(storage, Names().history)
    summary = Summary(complete=True, reason="complete", directory=storage.location, rows=rows, ok=rows - rows // 100)
    write(storage, Names().summary, summary.as_json())
    return journal


def seconds(storage: Storage, journal: Journal | None) -> float:
    """Return the seconds of the processor in which the page is made; the best of three."""

    def once() -> float:
        began = time.process_time()
        write_report(storage, journal)
        return time.process_time() - began

    return min(once() for _ in range(3))


def main(rows: int) -> None:
    """Measure and print."""
    logging.disable()
    with serve() as url:
        few = rows // 100
        a_row = min(ours(url, few, CONCURRENCY)["processor"] for _ in range(3)) / few
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        journal = finish(storage, rows)
        at_the_end, anew = seconds(storage, journal), seconds(storage, None)
        size = Path(folder, "report.html").stat().st_size
        began = time.process_time()
        for part in storage.names("parts"):
            with storage.local(part).open("rb") as lines:
                for line in lines:
                    json.loads(line)
        bare = time.process_time() - began
    tell(
        "report",
        f"report: {rows:,} rows, a hundredth of them failed",
        f"{at_the_end:.1f} s, {size / 1000:.0f} kB",
        f"anew out of the directory {anew:.1f} s; reading the parts as JSON {bare:.1f} s",
        "<= 10 s, 1 MB",
        bare / at_the_end,
    )
    tell(
        "report-row",
        "report: share of a batch that asks these rows",
        f"{100 * at_the_end / rows / a_row:.2f} %",
        f"{1e6 * at_the_end / rows:.1f} us a row; the batch {1e6 * a_row:.0f} us a row",
        "<= 2 %",
        a_row * rows / at_the_end,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
