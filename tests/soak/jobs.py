"""The batches of the soak test: what each is asked, and whether its results are exact.

The stand-in answers the same request always in the same way, so a second one, without a socket, knows the answers.
"""

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any, Self

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchError, BatchSpec, Embedding, FailurePolicy, Pace, StopSignal, Timeouts, run_batch
from ollama_provider.testing import StandIn

KINDS = ("schema", "chat", "vectors", "sqlite", "postgresql", "shards")
SHARDS = 3
#: Share of connections to several servers.
SEVERAL = 0.4
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "colour": {"enum": ["red", "green", "blue"]}},
    "required": ["title", "colour"],
}
#: Answers are short of a second, so what takes longer is a fault.
TIMEOUTS = Timeouts(load=30, first_token=6, idle=3)
COLUMNS = {"id": "id", "answer": "output", "place": "index"}


@dataclass(frozen=True)
class Job:
    """A batch.

    Attributes:
        kind: one of `KINDS`.
        number: makes its rows different from those of other batches.
        rows: how many.
        folder: rows, results and SQLite's file.
        urls: the servers, one or several.
        per_minute: limit of requests, so that the machine has other things to do, too.
    """

    kind: str
    number: int
    rows: int
    folder: str
    urls: Sequence[str]
    per_minute: float | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `as_text` has written."""
        return cls(**json.loads(text))

    def as_text(self) -> str:
        """Return the job as JSON."""
        return json.dumps(asdict(self))

    @cached_property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    def prompt(self, number: int) -> str:
        """Return the prompt of a row, which no other row of any batch has."""
        return f"Row {number} of batch {self.number}: the weather is fair, and the colour is one of three."

    def prepare(self) -> None:
        """Write the rows, unless they are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        if (file := self.path / "rows.jsonl").exists():
            return
        lines = (json.dumps({"id": n, "text": self.prompt(n)}) + "\n" for n in range(self.rows))
        (partial := file.with_suffix(".new")).write_text("".join(lines))
        partial.replace(file)

    def run(self, stop: StopSignal | None = None) -> Iterator[Any]:
        """Run the batch; give a summary for it, or for each of its shards and their merge."""
        specs = [self._spec()]
        if self.kind == "shards":
            specs = [replace(specs[0], shard=(n, SHARDS)) for n in range(SHARDS)] + [replace(specs[0], mode="merge")]
        settings = Settings(base_url=self.urls[0], other_urls=self.urls[1:], max_attempts=3)
        for spec in specs:
            yield run_batch(spec, settings, self.path / "out", stop=stop)

    def _spec(self) -> BatchSpec:
        kind: dict[str, Any] = {}
        model = "llama3.2"
        if self.kind == "schema":
            kind = {"output_type": SCHEMA}
        elif self.kind == "chat":
            kind = {"messages": [{"role": "user", "content": "{{ row.text }}"}]}
        elif self.kind == "vectors":
            model, kind = "nomic-embed-text", {"embedding": Embedding()}
        elif self.kind in {"sqlite", "postgresql"}:
            kind = {"into": self._table()}
        return BatchSpec(
            model=model,
            rows=self.path / "rows.jsonl",
            id_column="id",
            options=Options(num_ctx=2048),
            failures=FailurePolicy(retry_delay=0.2, max_outage=120),
            pace=Pace(requests_per_minute=self.per_minute, checkpoint_every=2, report_every=5),
            timeouts=TIMEOUTS,
            **kind,
        )

    def _table(self) -> Any:
        from ollama_provider.sql import SqlTable

        if self.kind == "sqlite":
            where = {"conn_type": "sqlite", "host": str(self.path / "table.db")}
            os.environ["AIRFLOW_CONN_SOAK_SQLITE"] = json.dumps(where)
        return SqlTable(f"soak_{self.kind}", f"job_{self.number}", "id", COLUMNS, create=True)

    def problems(self) -> list[str]:
        """What is wrong with the results of the complete batch; empty if they are exact."""
        out = self.path / "out"
        if not (out / "summary.json").exists():
            return [f"{self}: there is no summary.json"]
        if (out / "failed.jsonl").read_text():
            return [f"{self}: there are failed rows"]
        rows = self._vectors() if self.kind == "vectors" else self._lines()
        found = (
            [] if [row["id"] for row in rows] == list(range(self.rows)) else [f"{self}: not every row once, in order"]
        )
        right = Answers()
        wrong = [row["id"] for row in rows if not right.is_answer(self.kind, self.prompt(row["id"]), row["output"])]
        found += [f"{self}: wrong output of rows {wrong[:5]}, {len(wrong)} in all"] if wrong else []
        if self.kind in {"sqlite", "postgresql"}:
            written = {row["id"]: (row["output"], row["index"]) for row in rows}
            table = self._rows_of_table()
            if len(table) != self.rows or {int(i): (answer, place) for i, answer, place in table} != written:
                found.append(f"{self}: the table has {len(table)} rows, or others than the results")
        return found

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "out/results.jsonl").read_text().split("\n")[:-1]]

    def _vectors(self) -> list[dict[str, Any]]:
        from pyarrow import parquet

        table = parquet.read_table(self.path / "out/results.parquet")
        columns = (table.column("id").to_pylist(), table.column("output").to_pylist())
        return [{"id": row, "output": vector} for row, vector in zip(*columns, strict=True)]

    def _rows_of_table(self) -> list[tuple[Any, ...]]:
        query = f"SELECT id, answer, place FROM job_{self.number:d}"  # noqa: S608 - a number
        if self.kind == "sqlite":
            connection: Any = sqlite3.connect(self.path / "table.db")
        else:
            import psycopg2

            where = json.loads(os.environ["AIRFLOW_CONN_SOAK_POSTGRESQL"])
            connection = psycopg2.connect(
                host=where["host"], port=where["port"], user=where["login"], dbname=where["schema"]
            )
        try:
            cursor = connection.cursor()
            cursor.execute(query)
            return list(cursor.fetchall())
        finally:
            connection.close()


def some(chance: Random, urls: list[str]) -> list[str]:
    """Return all servers, or one of them."""
    return urls if chance.random() < SEVERAL else [chance.choice(urls)]


class Answers:
    """Knows the right answers."""

    def __init__(self) -> None:
        self._server = StandIn(keep_requests=0)
        self._lock = Lock()

    def is_answer(self, kind: str, prompt: str, output: Any) -> bool:
        """Return whether this is what the server answers to *prompt*."""
        if kind == "vectors":
            vector = self._ask("embed", {"model": "nomic-embed-text", "input": [prompt]})["embeddings"][0]
            return len(output) == len(vector) and all(
                abs(a - b) < 1e-6 for a, b in zip(output, vector, strict=True)
            )  # float32 in the file
        return bool(output == self.of(prompt, SCHEMA if kind == "schema" else None))

    def of(self, prompt: str, schema: Any = None) -> Any:
        """Return the answer to *prompt* of generate and chat."""
        body = {"model": "llama3.2", "prompt": prompt, "stream": False} | ({"format": schema} if schema else {})
        text = self._ask("generate", body)["response"]
        return json.loads(text) if schema else text

    def _ask(self, endpoint: str, body: dict[str, Any]) -> Any:
        # One at a time: without a socket, a second request cannot wait for the slot of the first.
        with self._lock:
            return self._answer(endpoint, body)

    def _answer(self, endpoint: str, body: dict[str, Any]) -> Any:
        return json.loads(self._server.answer("POST", f"/api/{endpoint}", body).body)


def complete(job: Job, counts: Counter[str], *, stop: StopSignal | None = None, tries: int = 50) -> list[str]:
    """Run a job until it is complete without a failed row, as the retries of a task would; return its problems."""
    job.prepare()
    last = ""
    for _ in range(tries):
        try:
            summaries = list(job.run(stop))
        except (BatchError, OllamaError) as error:
            last = f", the last with {error}"
            counts[f"a run ended with {type(error).__name__}"] += 1
            time.sleep(0.5)
            continue
        except Exception as error:  # whatever it is, it is a problem
            return [f"{job}: {type(error).__name__} left run_batch: {error}"]
        if stop is not None and stop.reason:
            return []
        if all(summary.complete and not summary.failed for summary in summaries):
            counts["requests for rows"] += sum(summary.requests for summary in summaries)
            return job.problems()
    return [f"{job}: not complete after {tries} runs{last}"]
