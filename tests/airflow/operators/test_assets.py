"""What the event of an asset says when a batch updates it, and a batch that starts from there."""

import json

import pytest

try:
    from airflow.models.asset import AssetEvent
except ImportError:  # Airflow 2
    from airflow.models.dataset import DatasetEvent as AssetEvent
from airflow.utils.session import create_session

from ollama_provider.testing import Fail

_DAG = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, Asset, AssetAlias
from ollama_provider.batch import FailurePolicy, Window
from ollama_provider.operators import OllamaBatchOperator
from ollama_provider.operators.batch import sharded
SUMMARIES = Asset("{asset}")
with DAG("{asset}", schedule=None, start_date=datetime(2026, 1, 1)):
    {task}
"""
_BATCH = """OllamaBatchOperator(task_id="t", model="llama3.2", rows=["one", "two", "three"], output_path="file://{path}",
        resume="task", outlets=[SUMMARIES], {more})"""


def events_of(run):
    """The extras of the asset events that tasks of a DAG run have caused, the oldest first."""
    with create_session() as session:
        found = session.query(AssetEvent).filter_by(source_run_id=run.run_id).order_by(AssetEvent.timestamp)
        return [event.extra for event in found]


@pytest.fixture
def run_batch(run_dag, ollama_conn, tmp_path, request):
    """Return a function that runs a batch of three rows, whose arguments are given as source, or another task."""

    def run(more="", task=_BATCH):
        return run_dag(_DAG.format(asset=request.node.name, task=task.format(path=tmp_path / "out", more=more)))

    return run


def test_the_event_says_what_was_done(run_batch, ollama, tmp_path):
    """Whoever starts from it knows how many rows there are, where, and of which model."""
    ollama.stand_in.script(Fail("no", status=400), where=lambda body: body.get("prompt") == "two", always=True)

    run = run_batch("failures=FailurePolicy(max_failed_rows=1)")

    assert str(run.state) == "success"
    (row, *_) = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert events_of(run) == [
        {
            "complete": True,
            "directory": f"{tmp_path}/out",
            "rows": 3,
            "ok": 2,
            "failed": 1,
            "model": "llama3.2",
            "digest": row["digest"],
        }
    ]


def test_a_batch_that_is_to_go_on_says_so(run_batch):
    """A closed window is a success of the task, so the asset is updated."""
    run = run_batch('window=Window(stop_at="2020-01-01T06:00")')

    ((event),) = events_of(run)
    assert (event["complete"], event["ok"], event["digest"]) == (False, 0, None)


def test_too_many_failed_rows_update_nothing(run_batch, ollama):
    """The task has failed."""
    ollama.stand_in.script(Fail("no", status=400), where=lambda body: body.get("prompt") == "two", always=True)

    run = run_batch()

    assert str(run.state) == "failed"
    assert events_of(run) == []


def test_what_a_dag_says_itself_stays(run_batch):
    """Here its callback before the batch."""
    run = run_batch(
        'pre_execute=lambda context: context["outlet_events"][SUMMARIES].extra.update(night="today", rows="ours")'
    )

    (event,) = events_of(run)
    assert (event["night"], event["rows"]) == ("today", 3)


def test_an_alias_is_left_alone(run_batch):
    """It has no event until the DAG says of which asset."""
    run = run_batch(task=_BATCH.replace("outlets=[SUMMARIES]", 'outlets=[AssetAlias("some-alias"), SUMMARIES]'))

    assert [event["rows"] for event in events_of(run)] == [3]


def test_shards_update_the_asset_once(run_batch):
    """When the merge has the results of all."""
    task = _BATCH.replace('OllamaBatchOperator(task_id="t"', 'sharded(2, task_id="t"')

    run = run_batch(task=task)

    assert [(event["complete"], event["rows"]) for event in events_of(run)] == [(True, 3)]
