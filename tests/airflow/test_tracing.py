"""Spans of tasks: below the one that is current, as Airflow's own of a task is."""

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from ollama_provider.testing import Fail, Model
from tests.tracing import exported

_DAG = """
from datetime import datetime

from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import *

with DAG("traced", schedule=None, start_date=datetime(2026, 1, 1), default_args={{"model": "llama3.2"}}):
    {task}
"""
BATCH = """OllamaBatchOperator(
        task_id="t", rows=["one", "two", "three", "fail"], output_path={folder!r}, resume="task",
        failures=FailurePolicy(max_failed_rows={tolerated}, max_attempts=1),
    )"""


@pytest.fixture
def run_traced(run_dag, ollama_conn, monkeypatch):
    """Return a function that runs a DAG of one task below a span, and returns the spans below that one by name."""

    def run(task: str):
        with exported(monkeypatch) as spans:
            with trace.get_tracer("test").start_as_current_span("task") as above:
                run_dag(_DAG.format(task=task))
            found = spans()
        assert {span.context.trace_id for span in found} == {above.get_span_context().trace_id}
        return {span.name: span for span in found if span.name != "task"}, found

    return run


def test_a_batch(run_traced, ollama, tmp_path):
    """One span with its numbers, and below it the load of the model; none for each row."""
    ollama.stand_in.script(Fail("it failed"), where=lambda body: body.get("prompt") == "fail", always=True)
    named, spans = run_traced(BATCH.format(folder=str(tmp_path), tolerated=1))

    batch = named["batch llama3.2"]
    assert {span.name for span in spans} == {"task", "batch llama3.2", "load llama3.2"}
    assert named["load llama3.2"].parent.span_id == batch.context.span_id
    told = dict(batch.attributes)
    assert {name: told[f"ollama.batch.{name}"] for name in ("rows", "ok", "failed", "reused")} == {
        "rows": 4, "ok": 3, "failed": 1, "reused": 0,
    }  # fmt: skip
    assert told["gen_ai.operation.name"] == "batch"
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.usage.output_tokens"] > 0
    assert batch.status.status_code is StatusCode.UNSET


def test_a_failed_batch(run_traced, ollama, tmp_path):
    """It says why, and has its numbers too."""
    ollama.stand_in.script(Fail("it failed"), where=lambda body: body.get("prompt") == "fail", always=True)
    named, _ = run_traced(BATCH.format(folder=str(tmp_path), tolerated=0))

    batch = named["batch llama3.2"]
    assert (batch.status.status_code, batch.attributes["error.type"]) == (StatusCode.ERROR, "TooManyFailedError")
    assert batch.status.description.startswith("1 of 4 rows failed")
    assert batch.attributes["ollama.batch.ok"] == 3


def test_rows_where_they_are_asked_for(run_traced, tmp_path, monkeypatch):
    """Below the batch."""
    monkeypatch.setenv("AIRFLOW__OLLAMA__TRACE_ROWS", "1")
    named, spans = run_traced(BATCH.format(folder=str(tmp_path), tolerated=0))

    rows = [span for span in spans if span.name == "text_completion llama3.2"]
    assert len(rows) == 4
    assert {span.parent.span_id for span in rows} == {named["batch llama3.2"].context.span_id}


@pytest.mark.parametrize("share", ["2", "-1"])
def test_a_share_that_is_none_is_refused(share, run_traced, ollama, tmp_path, monkeypatch):
    """Before a request is sent."""
    monkeypatch.setenv("AIRFLOW__OLLAMA__TRACE_ROWS", share)
    named, _ = run_traced(BATCH.format(folder=str(tmp_path), tolerated=0))

    assert "[ollama] trace_rows" in named["batch llama3.2"].status.description
    assert not ollama.stand_in.requests


def test_a_pull_and_a_load(run_traced, ollama):
    """And none of the questions that such tasks ask besides."""
    ollama.stand_in.offer(Model("fresh"))
    pull, _ = run_traced('OllamaPullModelOperator(task_id="t", model="fresh")')
    load, _ = run_traced('OllamaLoadModelOperator(task_id="t")')

    assert (list(pull), list(load)) == (["pull fresh"], ["load llama3.2"])


@pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
def test_a_single_request(deferrable, run_traced):
    """In the worker as in a trigger."""
    named, _ = run_traced(f'OllamaGenerateOperator(task_id="t", prompt="Hi", deferrable={deferrable})')

    assert list(named) == ["text_completion llama3.2"]
