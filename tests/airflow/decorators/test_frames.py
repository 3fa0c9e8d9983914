"""Tables of pandas, polars and DuckDB as rows of a batch in TaskFlow, returned by its function or by another task."""

import json

import pytest

_DAG = """
from datetime import datetime

import duckdb
import pandas as pd
import polars as pl
from airflow.providers.common.compat.sdk import DAG, task

# Airflow 3.1 may remember a DAG of the same name for the whole process.
with DAG("{dag_id}", schedule=None, start_date=datetime(2026, 1, 1)):

    {tasks}
"""
_OWN = """@task.ollama_batch(model="llama3.2", output_path="file://{path}", resume="task", id_column="name")
    def rows():
        return {table}

    rows()
"""
_OF_ANOTHER = """@task
    def extract():
        return {table}

    @task.ollama_batch(model="llama3.2", output_path="file://{path}", resume="task", id_column="name")
    def rows(table):
        return table

    rows(extract())
"""
TABLES = {
    "pandas": 'pd.DataFrame({"name": ["a", "b"], "text": ["one", "two"]})',
    "polars": 'pl.DataFrame({"name": ["a", "b"], "text": ["one", "two"]})',
    "duckdb": "duckdb.sql(\"SELECT * FROM (VALUES ('a', 'one'), ('b', 'two')) AS t(name, text) ORDER BY name\")",
}


def results(path):
    return [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("library", TABLES)
def test_the_function_of_the_batch_returns_a_table(run_dag, ollama, ollama_conn, tmp_path, library):
    """Its rows are asked one by one, with their columns in the prompt and in the results."""
    run = run_dag(_DAG.format(dag_id=f"frames_{library}", tasks=_OWN.format(path=tmp_path, table=TABLES[library])))

    assert str(run.state) == "success"
    assert [(row["id"], row["status"]) for row in results(tmp_path)] == [("a", "ok"), ("b", "ok")]
    prompts = {(seen.json or {}).get("prompt") for seen in ollama.stand_in.requests}
    assert {"one", "two"} <= prompts


def test_another_task_returns_one_of_pandas(run_dag, ollama_conn, tmp_path):
    """It goes through XCom, for which Airflow can serialise those of pandas."""
    tasks = _OF_ANOTHER.format(path=tmp_path, table=TABLES["pandas"])

    run = run_dag(_DAG.format(dag_id="frames_of_another", tasks=tasks))

    assert str(run.state) == "success"
    assert [(row["id"], row["status"]) for row in results(tmp_path)] == [("a", "ok"), ("b", "ok")]
