"""OllamaBatchOperator with shards, windows, vectors and schemas, run by Airflow against the stand-in."""

import json

import pytest
from pyarrow import parquet

from ollama_provider.testing import Model

pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)


def batch(tmp_path, *arguments: str, model: str = "llama3.2") -> str:
    """The source of a batch task with forty rows."""
    rows = "[{'text': f'text {n}'} for n in range(40)]"
    given = [f"rows={rows}", f"output_path='{tmp_path}/out'", "resume='task'", f"model='{model}'", *arguments]
    return f"task_id='t', {', '.join(given)}"


def prompts(ollama) -> list:
    """What was asked of the model."""
    return [body["prompt"] for seen in ollama.stand_in.requests if (body := seen.json or {}).get("prompt")]


def test_shards_are_mapped_tasks_and_merged(run_task, ollama, tmp_path) -> None:
    """Each row is asked once, and the last task has the summary of all."""
    above = "from ollama_provider.operators.batch import sharded"

    ran = run_task(f"sharded(3, {batch(tmp_path)})", above=above)

    assert ran.state == "success"
    assert (ran.value["complete"], ran.value["rows"], ran.value["reused"], ran.value["requests"]) == (True, 40, 40, 0)
    assert sorted(prompts(ollama)) == sorted(f"text {number}" for number in range(40))
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 40


def test_a_closed_window_is_no_failure(run_task, ollama, tmp_path) -> None:
    """The task succeeds, says that it is not complete, and asks nothing."""
    given = batch(tmp_path, "stop_at='2020-01-01T06:00'")
    ran = run_task(f"OllamaBatchOperator({given})")

    assert (ran.state, ran.value["complete"]) == ("success", False)
    assert "before this run began" in ran.value["reason"]
    assert prompts(ollama) == []


def test_a_window_that_is_open(run_task, tmp_path) -> None:
    """A time of day counts from the beginning of the DAG run, in the DAG's timezone."""
    ran = run_task(f"OllamaBatchOperator({batch(tmp_path, 'stop_at=timedelta(hours=1)', 'unload_after=True')})")

    assert (ran.state, ran.value["complete"]) == ("success", True)


@pytest.mark.ollama(models=[Model("emb", ("embedding",), embedding_length=16)])
def test_vectors(run_task, tmp_path) -> None:
    """Into Parquet."""
    given = batch(tmp_path, "task='embed'", model="emb")
    ran = run_task(f"OllamaBatchOperator({given})")

    assert ran.state == "success", ran.log
    table = parquet.read_table(tmp_path / "out/results.parquet")
    assert (table.num_rows, table.schema.field("output").type.list_size) == (40, 16)


def test_a_pydantic_class(run_task, tmp_path) -> None:
    """Its schema is asked for and its rules are checked; the answers are data."""
    above = "import pydantic\nclass Label(pydantic.BaseModel):\n    name: str\n    score: int"

    ran = run_task(f"OllamaBatchOperator({batch(tmp_path, 'output_type=Label')})", above=above)

    assert ran.state == "success", ran.log
    first = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])
    assert set(first["output"]) == {"name", "score"}
