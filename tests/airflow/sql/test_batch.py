"""A batch from a database and back into one, run by Airflow and by processes that die."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from ollama_provider.testing import Pace

DAG = """
from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, task
from ollama_provider.batch import Pace
from ollama_provider.operators import OllamaBatchOperator
from ollama_provider.sql import SqlRows, SqlTable

with DAG(
    "with_tables", schedule=None, start_date=datetime(2026, 1, 1), params={{"least": 0, "table": "summaries"}},
    default_args={{"retries": 1, "retry_delay": timedelta(0)}},
):
{tasks}
"""
ROUND_TRIP = """
OllamaBatchOperator(
    task_id="t", model="llama3.2", output_path={out!r}, resume="task", id_column="id", pace=Pace(concurrency=1),
    rows=SqlRows(
        "warehouse", "SELECT id, title, text FROM documents WHERE id >= {mark} ORDER BY id", ["{{{{ params.least }}}}"]
    ),
    into=SqlTable(
        "warehouse", "{{{{ params.table }}}}", "doc", {{"doc": "id", "title": "row.title", "summary": "output"}}
    ),
)
"""


@pytest.fixture(params=["postgres", "mysql", "sqlite", "duck"])
def database(request):
    """Each of them."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def run(run_dag, ollama_conn, tmp_path, database, capfd, caplog):
    """Return a function that runs a DAG with these tasks; it returns state, XCom and log of the task ``t``."""
    database.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, title TEXT, summary TEXT)")

    def run_it(tasks=ROUND_TRIP, **params):
        capfd.readouterr()
        caplog.clear()
        tasks = textwrap.indent(tasks.format(out=str(tmp_path / "out"), mark=database.mark), "    ")
        ran = run_dag(DAG.format(tasks=tasks), **params)
        (instance,) = [instance for instance in ran.get_task_instances() if instance.task_id == "t"]
        # Airflow 2 logs elsewhere.
        log = "".join(capfd.readouterr()) + caplog.text
        return str(instance.state), instance.xcom_pull(task_ids="t"), log

    return run_it


def prompts(ollama):
    return [body["prompt"] for seen in ollama.stand_in.requests if (body := seen.json or {}).get("prompt")]


def test_round_trip(run, ollama, database):
    """Templates in query and table are filled in; every row is there once, with what the model said of it."""
    database.documents(6)

    state, summary, log = run(least=2)

    assert (state, summary["rows"], summary["written"]) == ("success", 4, 4)
    rows = database.summaries()
    assert [(doc, title) for doc, title, _ in rows] == [(number, f"title {number}") for number in range(2, 6)]
    assert all(text for _, _, text in rows)
    assert sorted(prompts(ollama)) == [f"text {number}" for number in range(2, 6)]
    assert "text 3" not in log


def test_the_next_run_of_the_dag(run, ollama, database):
    """It asks the database again, the model for new rows only, and writes only what changed."""
    database.documents(3)
    run()
    database.run("INSERT INTO documents VALUES (7, 'title 7', 'text 7')")
    database.run("UPDATE documents SET text = 'another text' WHERE id = 1")

    _, summary, _ = run()

    assert (summary["rows"], summary["reused"], summary["written"]) == (4, 2, 2)
    assert sorted(prompts(ollama)[3:]) == ["another text", "text 7"]
    assert [row[0] for row in database.summaries()] == [0, 1, 2, 7]


def test_a_refused_row(run, database, tmp_path):
    """The task is red after its retries, the row is in failed.jsonl with the database's words, all others are there."""
    database.documents(3)
    database.run("DROP TABLE summaries")
    database.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY CHECK (doc <> 1), title TEXT, summary TEXT)")

    state, summary, log = run()

    (failed,) = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert (state, summary["failed"]) == ("failed", 1)
    assert (failed["id"], failed["error"]["class"]) == (1, "RefusedByTable")
    assert "constraint" in failed["error"]["text"].lower()
    assert [row[0] for row in database.summaries()] == [0, 2]
    assert failed["reply"] not in log


def test_a_missing_table_uses_no_retry(run, ollama, database):
    """It would be missing again; the log says how to make it, and the model was not asked."""
    database.documents(3)

    state, _, log = run(table="sumaries")

    assert state == "failed"
    how = "sumaries does not exist" if database.kind == "duckdb" else 'CREATE TABLE IF NOT EXISTS ["`]sumaries["`]'
    assert re.search(how, log)
    assert prompts(ollama) == []


@pytest.mark.parametrize(
    "returned",
    [
        "['{{ no template }}', 'b']",
        "({'text': text} for text in ('{{ no template }}', 'b'))",
        "SqlRows('warehouse', \"SELECT title AS text FROM documents WHERE id >= {{ params.least }} ORDER BY id\")",
        "'file://{out}.jsonl'",
    ],
    ids=["list", "iterator", "query", "path"],
)
def test_the_decorator(run, ollama, database, tmp_path, returned):
    """``@task.ollama_batch``: the function returns the rows, whatever gives them; everything else is the operator's."""
    database.run("CREATE TABLE documents (id INTEGER, title TEXT)")
    database.run("INSERT INTO documents VALUES (1, 'no'), (5, '{{ no template }}'), (6, 'b')")
    (tmp_path / "out.jsonl").write_text('{"text": "{{ no template }}"}\n{"text": "b"}\n')
    returned = returned.replace("{out}", str(tmp_path / "out")).replace("{", "{{").replace("}", "}}")

    state, summary, _ = run(
        f"""
@task.ollama_batch(
    model="llama3.2", output_path={{out!r}}, pace=Pace(concurrency=1), prompt="Say: {{{{{{{{ row.text }}}}}}}}"
)
def t(params=None):
    assert params["least"] == 3
    return {returned}

t()
""",
        least=3,
    )

    assert (state, summary["rows"], summary["ok"]) == ("success", 2, 2)
    assert prompts(ollama) == ["Say: {{ no template }}", "Say: b"]


SCRIPT = """
import json
import sys
from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Pace, run_batch
from ollama_provider.sql import SqlRows, SqlTable
url, out, arguments = sys.argv[1:]
arguments = json.loads(arguments)
summary = run_batch(
    BatchSpec(
        model="llama3.2", rows=SqlRows("warehouse", "SELECT id, text FROM documents ORDER BY id"), id_column="id",
        into=SqlTable(
            "warehouse", "summaries", "doc", {"doc": "id", "summary": "output", "place": "index"},
            create=arguments.pop("create", True),
        ),
        pace=Pace(concurrency=2, checkpoint_every=0.05), options=Options(num_ctx=4096), **arguments,
    ),
    Settings(base_url=url), out,
)
assert summary.complete
"""
ROWS = 120


@pytest.fixture(params=["postgres", "mysql"])
def server(request):
    """A database in a server that can be killed."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def start(ollama, tmp_path, server):
    """Return a function that starts the batch in a process of its own."""
    server.documents(ROWS)
    ollama.stand_in.script(Pace(first_token=0.02), always=True, where=lambda body: body.get("prompt"))
    processes = []

    def start_it(**arguments):
        (script := tmp_path / "script.py").write_text(SCRIPT)
        command = [sys.executable, str(script), ollama.url, str(tmp_path / "out"), json.dumps(arguments)]
        with (tmp_path / "log").open("ab") as log:
            processes.append(subprocess.Popen(command, env=dict(os.environ), stdout=log, stderr=log))
        return processes[-1]

    yield start_it
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def count(server):
    """How many rows the table has; none as long as it is not made."""
    where = "table_name = 'summaries'" + (" AND table_schema = DATABASE()" if server.kind == "mysql" else "")
    tables = server.run(f"SELECT count(*) FROM information_schema.tables WHERE {where}")  # noqa: S608  # a constant
    return len(server.summaries()) if tables != [(0,)] else 0


def check(server, tmp_path):
    """The table says for each row what the results say."""
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["id"] for row in results] == list(range(ROWS))
    assert server.summaries() == [(row["id"], row["output"], row["index"]) for row in results]


def test_killed_half_way_and_resumed(start, ollama, server, tmp_path):
    """kill -9 with some rows in the table: the next run completes it, and asks no row again that had been written."""
    for share in (ROWS // 4, ROWS // 2):
        process = start()
        wait_for(lambda share=share: count(server) >= share)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert count(server) < ROWS
    written = sum(part.read_bytes().count(b"\n") for part in (tmp_path / "out" / "parts").glob("*.jsonl"))
    asked = len(prompts(ollama))
    assert asked - written <= 2 * 2  # kills and requests in flight

    assert start().wait(timeout=60) == 0

    check(server, tmp_path)
    assert len(prompts(ollama)) - asked == ROWS - written


@pytest.mark.parametrize("server", ["duck"], indirect=True)
def test_killed_half_way_in_a_file_of_its_own(start, ollama, server, tmp_path):
    """The same in DuckDB, whose file is one process's, and whose rows are written one by one."""
    server.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT, place INTEGER)")
    log = tmp_path / "warehouse.duckdb.wal"  # there from the first rows that are written on
    for share in (ROWS // 4, ROWS // 2):
        process = start(create=False)
        wait_for(lambda share=share: len(prompts(ollama)) >= share and log.exists() and log.stat().st_size)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 0 < len(server.summaries()) < ROWS
    written = sum(part.read_bytes().count(b"\n") for part in (tmp_path / "out" / "parts").glob("*.jsonl"))
    asked = len(prompts(ollama))

    assert start(create=False).wait(timeout=60) == 0

    check(server, tmp_path)
    assert len(prompts(ollama)) - asked == ROWS - written


def test_a_database_that_is_killed_and_comes_back(start, ollama, server, request, tmp_path):
    """In the middle of writing back: the requests go on, and in the end no row is lost or doubled."""
    its_server = request.getfixturevalue("a_postgresql" if server.kind == "postgresql" else "a_mariadb")
    process = start()
    wait_for(lambda: count(server) >= ROWS // 4)
    its_server.kill()
    try:
        asked = len(prompts(ollama))
        wait_for(lambda: b"no result is lost" in (tmp_path / "log").read_bytes())
        wait_for(lambda: len(prompts(ollama)) > asked)
    finally:
        its_server.start()

    assert process.wait(timeout=60) == 0
    check(server, tmp_path)
    assert len(prompts(ollama)) == ROWS


def test_shards_that_are_killed_while_they_write(start, ollama, server, tmp_path):
    """They make the table and write into it at the same time, each its rows; the merge has none left to write."""
    shards = [{"shard": [number, 2]} for number in range(2)]
    processes = [start(**shard) for shard in shards]
    wait_for(lambda: count(server) >= ROWS // 4)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert count(server) < ROWS

    processes = [start(**shard) for shard in shards]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert count(server) == ROWS
    asked = len(prompts(ollama))
    assert start(mode="merge").wait(timeout=60) == 0

    check(server, tmp_path)
    assert len(prompts(ollama)) == asked
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["written"] == 0
