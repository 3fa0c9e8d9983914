"""The faults that docs/howto/move-from-a-loop.md finds in a loop are there, and the batch does not have them."""

import json
from pathlib import Path

import pytest

from tests.airflow.conftest import RunDag

HERE = Path(__file__).parent
REVIEWS = ["Works as it should.", "Broke on the first day."]
GOOD = {"mood": "good"}


def source(name: str) -> str:
    """A DAG file without its waits: those of its own, and those before another try."""
    text = (HERE / name).read_text()
    return text.replace("retries=2", "retries=0").replace("time.sleep(1)", "time.sleep(0)")


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that both read, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in REVIEWS))
    return path


@pytest.fixture
def loop(reviews, ollama, run_dag: RunDag):
    """Return a function that runs the loop; returns what it puts into XCom."""
    dag = source("requests_loop.py").replace("http://localhost:11434", ollama.url)

    def run() -> list[dict]:
        (done,) = run_dag(dag).get_task_instances()
        return done.xcom_pull(task_ids="moods")

    return run


@pytest.fixture
def batch(reviews, ollama_conn, run_dag: RunDag):
    """Return a function that runs the batch; returns the rows of its results."""

    def run() -> list[dict]:
        run_dag(source("instead_of_the_loop.py"))
        return [json.loads(line) for line in Path("moods/results.jsonl").read_text().splitlines()]

    return run


def prompts(ollama) -> list[dict]:
    """The bodies of the requests for an answer that the server got."""
    return [request.json for request in ollama.stand_in.requests if request.json and request.json.get("prompt")]


def test_both_do_the_same_on_a_good_day(loop, batch, ollama) -> None:
    """A mood for each review."""
    ollama.stand_in.script(GOOD, always=True)

    assert [row["mood"] for row in loop()] == ["good", "good"]
    assert [row["output"] for row in batch()] == [GOOD, GOOD]


def test_the_loop_makes_up_a_value(loop, batch, ollama) -> None:
    """For an answer that has none; the batch says that the row failed, and keeps the answer."""
    ollama.stand_in.script("I would rather not say.", where=lambda body: "Broke" in body.get("prompt", ""), always=True)
    ollama.stand_in.script(GOOD, always=True)

    assert [row["mood"] for row in loop()] == ["good", "neutral"]
    good, bad = batch()
    assert (good["status"], good["output"]) == ("ok", GOOD)
    assert (bad["status"], bad["output"], bad["reply"]) == ("failed", None, "I would rather not say.")


def test_the_loop_begins_again(loop, batch, ollama) -> None:
    """Each run asks everything; the batch asks what it has no answer to."""
    ollama.stand_in.script(GOOD, always=True)
    loop()
    loop()
    by_loop = len(prompts(ollama))
    batch()
    batch()

    assert (by_loop, len(prompts(ollama)) - by_loop) == (4, 2)


def test_the_loop_reads_a_part_of_a_long_review(loop, batch, ollama, reviews) -> None:
    """The server cuts it and says nothing; the batch asks for a context that holds it."""
    reviews.write_text(json.dumps({"text": "It is very good. " * 2000}) + "\n")
    ollama.stand_in.script(GOOD, always=True)

    assert [row["mood"] for row in loop()] == ["good"]
    (row,) = batch()

    of_loop, of_batch = prompts(ollama)
    assert "options" not in of_loop
    assert row["prompt_tokens"] > 4096  # what a model has by default
    assert of_batch["options"]["num_ctx"] > row["prompt_tokens"]
    assert of_batch["truncate"] is False
