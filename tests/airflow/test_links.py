"""The buttons beside a task in Airflow's UI."""

from urllib.parse import unquote

import airflow
import pytest

from ollama_provider.links import RESULTS, BatchResultsLink, batch_page
from ollama_provider.testing import Respond


def link(run, map_index=-1) -> str:
    """What Airflow opens: 3 stores it when the task ends, 2's webserver asks for it."""
    task = run.get_task_instance("rows", map_index=map_index)
    if airflow.__version__.startswith("3."):
        return unquote(xcom(run, BatchResultsLink().xcom_key, map_index))
    from airflow.www.app import create_app

    with create_app(testing=True).test_request_context():
        return unquote(BatchResultsLink().get_link(None, ti_key=task.key))


def page(run, map_index=-1) -> str:
    """Where the batch is shown: from Airflow 3.1 on, on the page *Ollama*."""
    return (
        xcom_page(run, map_index)
        if airflow.__version__.startswith("2.")
        else unquote(batch_page("linked", run.run_id, "rows", map_index))
    )


def xcom_page(run, map_index=-1) -> str:
    """Where Airflow's UI shows the XComs of the batch."""
    if airflow.__version__.startswith("2."):
        return f"/dags/linked/grid?dag_run_id={run.run_id}&task_id=rows&map_index={map_index}&tab=xcom"
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    return f"dags/linked/runs/{run.run_id}/tasks/rows{mapped}/xcom"


def xcom(run, key, map_index=-1):
    """What the task has left behind."""
    return run.get_task_instance("rows", map_index=map_index).xcom_pull("rows", key=key, map_indexes=map_index)


def run_batch(run_dag, tmp_path, batch="OllamaBatchOperator({})"):
    """Run a batch of one row."""
    arguments = f"""
        task_id="rows", model="llama3.2", rows=["Rain fell."], output_path="file://{tmp_path}/out", resume="one"
    """
    return run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaBatchOperator
with DAG("linked", schedule=None, start_date=datetime(2026, 1, 1)):
    {batch.format(arguments)}
""")


def test_a_batch_links_to_its_results(run_dag, ollama_conn, tmp_path) -> None:
    """*Results* leads to the directory with results.jsonl, also if the task chose the folder."""
    run = run_batch(run_dag, tmp_path)

    assert str(run.state) == "success"
    assert link(run) == page(run)
    assert xcom(run, RESULTS) == f"file://{tmp_path}/out/one"
    assert (tmp_path / "out/one/results.jsonl").exists()


def test_a_mapped_batch_links_to_its_own(run_dag, ollama_conn, tmp_path) -> None:
    """Each has a page, and a directory."""
    run = run_batch(run_dag, tmp_path, "OllamaBatchOperator.partial({}).expand(system=['One.', 'Two.'])")

    assert str(run.state) == "success"
    for number in range(2):
        assert link(run, number) == page(run, number)
        assert xcom(run, RESULTS, number) == f"file://{tmp_path}/out/one/{number}"
        assert (tmp_path / f"out/one/{number}/results.jsonl").exists()


def test_a_batch_that_fails_links_to_what_it_has(run_dag, ollama, ollama_conn, tmp_path) -> None:
    """A failed batch is when the link is needed most."""
    ollama.stand_in.script(Respond(401, ""), path="tags", always=True)

    run = run_batch(run_dag, tmp_path)

    assert str(run.state) == "failed"
    assert link(run) == page(run)
    assert xcom(run, RESULTS) == f"file://{tmp_path}/out/one"


def test_without_the_page_it_links_to_the_xcoms(run_dag, ollama_conn, tmp_path, monkeypatch) -> None:
    """Where the page is switched off, directory and summary are there."""
    monkeypatch.setenv("AIRFLOW__OLLAMA__SHOW_PAGE", "False")

    run = run_batch(run_dag, tmp_path)

    assert link(run) == xcom_page(run)


@pytest.mark.skipif(airflow.__version__.startswith("2."), reason="there is no page")
@pytest.mark.parametrize("fails", [False, True], ids=["good", "failed"])
def test_the_log_says_where_the_page_is(
    run_dag, ollama, ollama_conn, tmp_path, monkeypatch, capfd, caplog, fails
) -> None:
    """At the end, also of one that failed, below the address that Airflow is configured to have."""
    caplog.set_level("INFO")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/team/")
    if fails:
        ollama.stand_in.script(Respond(401, ""), path="tags", always=True)

    run = run_batch(run_dag, tmp_path)

    page = batch_page("linked", run.run_id, "rows", -1)
    assert f"Page: https://airflow.example.com/team/{page}" in "".join(capfd.readouterr()) + caplog.text


def test_the_log_names_no_page_where_there_is_none(run_dag, ollama_conn, tmp_path, monkeypatch, capfd, caplog) -> None:
    """It is switched off."""
    caplog.set_level("INFO")
    monkeypatch.setenv("AIRFLOW__OLLAMA__SHOW_PAGE", "False")

    run_batch(run_dag, tmp_path)

    log = "".join(capfd.readouterr()) + caplog.text
    assert "Report: " in log
    assert "Page: " not in log
