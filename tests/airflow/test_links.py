"""The buttons beside a task in Airflow's UI."""

import airflow

from ollama_provider.links import BatchResultsLink
from ollama_provider.testing import Respond


def link(run) -> str:
    """What Airflow opens: 3 stores it when the task ends, 2 asks for it."""
    (task,) = run.get_task_instances()
    if airflow.__version__.startswith("2."):
        return BatchResultsLink().get_link(None, ti_key=task.key)
    return task.xcom_pull(task_ids=task.task_id, key=BatchResultsLink().xcom_key)


def run_batch(run_dag, tmp_path):
    """Run a batch of one row."""
    return run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaBatchOperator
with DAG("under_test", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator(
        task_id="rows", model="llama3.2", rows=["Rain fell."], output_path="file://{tmp_path}/out", resume="one"
    )
""")


def test_a_batch_links_to_its_results(run_dag, ollama_conn, tmp_path) -> None:
    """*Results* is the directory in which results.jsonl is, also with a folder that the task chose."""
    run = run_batch(run_dag, tmp_path)

    assert str(run.state) == "success"
    assert link(run) == f"file://{tmp_path}/out/one"
    assert (tmp_path / "out/one/results.jsonl").exists()


def test_a_batch_that_fails_links_to_what_it_has(run_dag, ollama, ollama_conn, tmp_path) -> None:
    """The morning after a bad night is when one looks there."""
    ollama.stand_in.script(Respond(401, ""), path="tags", always=True)

    run = run_batch(run_dag, tmp_path)

    assert str(run.state) == "failed"
    assert link(run) == f"file://{tmp_path}/out/one"
