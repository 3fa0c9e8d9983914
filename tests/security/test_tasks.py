"""Canaries through every operator, decorator and sensor, waiting in the worker and deferred, on real Airflow.

All tasks run in one DAG for each fault. Then everything that is left of it is searched: log, database, metrics and
temporary files.
"""

import json
import sqlite3
import tempfile
from itertools import count
from pathlib import Path

import pytest
from airflow.providers.common.compat import sdk

from ollama_provider import operators
from ollama_provider.provider_info import get_provider_info
from ollama_provider.testing import Answer, Model
from tests.airflow.conftest import add_connection, airflow_db, no_settling, run_dag  # noqa: F401  # fixtures
from tests.security.canaries import ANSWER, HEADER, LOGIN, PASSWORD, PROMPT, found_in, logged
from tests.security.hostile import FAULTS, hostile, once_it_is_trusted
from tests.tracing import exported, text_of

_DAG = '''
import os
from datetime import datetime

from airflow.providers.common.compat.sdk import DAG, Asset, task
from ollama_provider.batch import FailurePolicy
from ollama_provider.hooks import OllamaHook
from ollama_provider.operators import *
from ollama_provider.sensors import OllamaHealthSensor

# As from a database: neither the DAG file nor what Airflow stores of it has the prompt.
PROMPT = "{{{{ canary() }}}}"
SCHEMA = {{"type": "object", "properties": {{"who": {{"type": "integer"}}}}, "required": ["who"]}}


def look_up(who: str) -> str:
    """Look somebody up."""
    return "nobody"


with DAG(
    "{dag_id}",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    user_defined_macros={{"canary": lambda: os.environ["CANARY"]}},
    default_args={{"model": "llama3.2"}},
):
    for where in (False, True):
        args = {{"deferrable": where}}
        OllamaGenerateOperator(task_id=f"generate_{{where}}", prompt=PROMPT, system=PROMPT, **args)
        OllamaGenerateOperator(task_id=f"schema_{{where}}", prompt=PROMPT, format=SCHEMA, **args)
        OllamaChatOperator(task_id=f"chat_{{where}}", messages=[{{"role": "user", "content": PROMPT}}], **args)
        OllamaEmbedOperator(task_id=f"embed_{{where}}", texts=[PROMPT], output_path="{folder}/v.jsonl", **args)
        OllamaPullModelOperator(task_id=f"pull_{{where}}", **args)
        chosen = OllamaPullModelOperator(task_id=f"chosen_{{where}}")
        OllamaBranchOperator(task_id=f"branch_{{where}}", prompt=PROMPT, system=PROMPT, **args) >> chosen
        OllamaHealthSensor(task_id=f"health_{{where}}", models="llama3.2", timeout=0.3, poke_interval=0.1, **args)
    OllamaChatOperator(task_id="tools", messages=PROMPT, tools=[look_up])
    OllamaCreateModelOperator(task_id="create", model="ours", from_="llama3.2", system=PROMPT)
    OllamaCopyModelOperator(task_id="copy", destination="copied")
    OllamaLoadModelOperator(task_id="load")
    OllamaUnloadModelOperator(task_id="unload", unload_timeout=0.2)
    OllamaDeleteModelOperator(task_id="delete", model="copied", unload_timeout=0.2)
    OllamaPruneModelsOperator(task_id="prune", match="copied")
    tolerant = FailurePolicy(max_failed_ratio=1.0, max_attempts=1, max_outage=0.1)
    rows = {{"prompt": "{{{{ row.text }}}}", "failures": tolerant}}
    told = {{"rows": "{folder}/rows.jsonl", "output_path": "{folder}/{dag_id}", "outlets": [Asset("{dag_id}")]}}
    OllamaBatchOperator(task_id="batch", **told, **rows)
    rehearsed = {{"mode": "rehearse", "rows": "{folder}/rows.jsonl", "output_path": "{folder}/{dag_id}-3"}}
    OllamaBatchOperator(task_id="rehearsal", **rehearsed, **rows)

    @task.ollama_generate
    def decorated_generate():
        return os.environ["CANARY"]

    @task.ollama_chat
    def decorated_chat():
        return os.environ["CANARY"]

    @task.ollama_branch
    def decorated_branch():
        return os.environ["CANARY"]

    @task.ollama_embed(output_path="{folder}/w.jsonl")
    def decorated_embed():
        return [os.environ["CANARY"]]

    @task.ollama_batch(output_path="{folder}/{dag_id}-2", failures=tolerant)
    def decorated_batch():
        return [os.environ["CANARY"]]

    @task
    def by_hook():
        with OllamaHook() as hook:
            return len(hook.generate(os.environ["CANARY"], model="llama3.2").text)

    decorated_generate(), decorated_chat(), decorated_embed(), decorated_batch()
    decorated_branch() >> by_hook()
'''
_NUMBERS = count()
#: Tables of Airflow's database, and what may be there: docs/security.md has them.
STORED = {
    "rendered_task_instance_fields": {"prompt"},
    "xcom": {"answer"},
    "trigger": {"prompt"},
}
#: Faults that differ in where a canary could get out; tests/security/test_requests.py has all of them.
QUOTING = {
    "401 that quotes headers": FAULTS["401 that quotes headers"],
    "an error within the answer": once_it_is_trusted(FAULTS["an error within the answer"]),
    "half an answer": once_it_is_trusted(FAULTS["half an answer"]),
}


class Metrics:
    """Airflow's Stats, which remembers names and tags."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.seen.append((name, args, kwargs))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for rows and results, and an empty one for temporary files."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": PROMPT}) + "\n")
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.fixture
def run_all(folder, run_dag, airflow_db, add_connection, debug_log, no_waits, monkeypatch, capfd):  # noqa: F811
    """Return a function that runs all tasks against a server; it returns their states, what is left, what is stored.

    The database is that of all tests of this worker, and others store canaries where they belong for them.
    """

    def run(url: str) -> tuple[dict[str, str], dict[str, set], dict[str, set[str]]]:
        secrets = {"login": LOGIN, "password": PASSWORD}
        add_connection(host=url, extra={"headers": {"X-Api-Key": HEADER}, "max_attempts": 1}, **secrets)
        monkeypatch.setenv("CANARY", PROMPT)
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
        metrics = Metrics()
        monkeypatch.setattr(sdk, "Stats", metrics, raising=False)
        capfd.readouterr()
        monkeypatch.setenv("AIRFLOW__OLLAMA__TRACE_ROWS", "1")
        before = rows_of(airflow_db)
        with exported(monkeypatch) as spans:
            ran = run_dag(_DAG.format(dag_id=f"canaries_{next(_NUMBERS)}", folder=folder))
            traced = spans()
        assert "batch llama3.2" in {span.name for span in traced}
        states = {one.task_id: str(one.state) for one in ran.get_task_instances()}
        assert metrics.seen
        left = {
            "log": logged(debug_log.records),
            "printed": set(found_in("".join(capfd.readouterr()))),
            "metrics": set(found_in(repr(metrics.seen))),
            "spans": {(span.name, found) for span in traced for found in found_in(text_of(span))},
            "temporary files": {path.name for path in (folder / "temporary").rglob("*") if path.is_file()},
        }
        return states, left, canaries_added(before, rows_of(airflow_db))

    return run


def rows_of(file: Path) -> dict[str, set[str]]:
    """Return the rows of each table of a database, each as one text."""
    with sqlite3.connect(file) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            table: {"\n".join(map(str, row)) for row in connection.execute(f'SELECT * FROM "{table}"')}  # noqa: S608
            for table in tables
        }


def canaries_added(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return which canaries are in which table, in rows that were not there before."""
    added = {table: found_in("\n".join(rows - before.get(table, set()))) for table, rows in after.items()}
    return {table: set(found) for table, found in added.items() if found}


def assert_allowed(stored: dict[str, set[str]], expected: set[str]) -> None:
    assert expected <= stored.keys(), "canaries that should be there were not found, so others might be overlooked"
    assert {table: found - STORED.get(table, set()) for table, found in stored.items()} == {
        key: set() for key in stored
    }


def test_nothing_is_left_out():
    """A new operator, sensor or decorator has its place here."""
    decorators = [known["name"] for known in get_provider_info()["task-decorators"]]

    for name in (*operators.__all__, "OllamaHealthSensor"):
        assert f"    {name}(" in _DAG
    for name in decorators:
        assert f"@task.{name}" in _DAG


NOTHING = {"log": set(), "printed": set(), "metrics": set(), "spans": set(), "temporary files": set()}


@pytest.mark.ollama(models=[Model("llama3.2", ("completion", "tools", "embedding"))])
def test_when_all_goes_well(ollama, run_all):
    """Prompts are in rendered fields and answers in XComs, as the page says, and nothing is anywhere else."""
    ollama.stand_in.script(
        Answer(json.dumps({"who": ANSWER})), where=lambda body: "who" in json.dumps(body.get("format")), always=True
    )
    ollama.stand_in.script(
        Answer(ANSWER),
        where=lambda body: bool(body.get("prompt") or body.get("messages")) and not body.get("format"),
        always=True,
    )

    states, left, stored = run_all(ollama.url)

    failed = {name for name, state in states.items() if state != "success"}
    assert failed == {"schema_False", "schema_True"}
    assert left == NOTHING
    assert_allowed(stored, {"rendered_task_instance_fields", "xcom"})
    headers = [request.headers for request in ollama.stand_in.requests]
    assert all(sent["x-api-key"] == HEADER for sent in headers)


@pytest.mark.parametrize("fault", QUOTING)
def test_when_the_server_quotes(fault, run_all):
    """No task's log, error or XCom has what it sent."""
    with hostile(QUOTING[fault]) as server:
        states, left, stored = run_all(server.url)

    assert "failed" in states.values()
    assert left == NOTHING
    assert_allowed(stored, {"rendered_task_instance_fields"})


_REHEARSAL = """
from datetime import datetime

from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import Rehearsal
from ollama_provider.operators import OllamaBatchOperator

with DAG("{dag_id}", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator(
        task_id="rehearsal",
        model="llama3.2",
        mode=Rehearsal(show_texts={shows}),
        rows="{folder}/rows.jsonl",
        output_path="{folder}/{dag_id}",
    )
"""


@pytest.mark.parametrize("shows", [True, False])
def test_a_rehearsal_shows_texts_only_where_somebody_asks_for_them(
    ollama, folder, run_dag, add_connection, debug_log, capfd, shows  # noqa: F811
):  # fmt: skip
    """In the task's log and in its XCom, as the page says; secrets in neither."""
    ollama.stand_in.script(Answer(ANSWER), where=lambda body: bool(body.get("prompt")), always=True)
    add_connection(host=ollama.url, extra={"headers": {"X-Api-Key": HEADER}}, login=LOGIN, password=PASSWORD)

    ran = run_dag(_REHEARSAL.format(dag_id=f"canaries_{next(_NUMBERS)}", folder=folder, shows=shows))

    (task,) = ran.get_task_instances()
    assert str(task.state) == "success"
    # Airflow 3 prints the log of a task that runs in this process.
    in_log = {canary for _, canary in logged(debug_log.records)} | set(found_in("".join(capfd.readouterr())))
    in_xcom = set(found_in(json.dumps(task.xcom_pull(task_ids="rehearsal"))))
    assert (in_log, in_xcom) == (({"prompt", "answer"},) * 2 if shows else (set(), set()))
