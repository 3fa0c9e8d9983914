"""Every DAG of dags/ runs to its end, on Airflow, against the stand-in."""

import base64
import json
import re
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ollama_provider.testing import Answer, Fail, Ordinary, Pace
from tests.airflow.conftest import DagBag

DAGS = Path(__file__).parents[3] / "dags"
#: One grey pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


def values(run) -> dict:
    """What each task returned, the mapped ones left out: a DAG run of Airflow 3.1 cannot read theirs."""
    tasks = [task for task in run.get_task_instances() if task.map_index < 0]
    return {task.task_id: task.xcom_pull(task_ids=task.task_id) for task in tasks}


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def run(request, run_dag, ollama_conn):
    """Return a function that runs a DAG by its name; with the waits in workers, and where they can be, in triggers."""

    def run_it(name: str, **conf):
        source = (DAGS / f"{name}.py").read_text()
        if request.param:
            # As [operators] default_deferrable does, which is read once in a process.
            source = source.replace("start_date=", "default_args={'deferrable': True}, start_date=")
        run = run_dag(source, **conf)
        assert str(run.state) == "success"
        return values(run)

    return run_it


def test_nightly_summaries(run, ollama, tmp_path) -> None:
    """One row a document, in their order, each with the summary that the model gave; the missing model was pulled."""
    ollama.stand_in.remove("llama3.2")

    done = run("ollama_nightly_summaries", output_path=f"file://{tmp_path}", documents=5)

    assert done["model"]["pulled"] is True
    assert (done["summaries"]["ok"], done["summaries"]["failed"]) == (5, 0)
    documents = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["id"] for row in results] == [document["name"] for document in documents]
    assert all(row["output"] for row in results)


def test_nightly_summaries_of_the_next_night(run, ollama, tmp_path) -> None:
    """What was summarised before is not asked again."""
    run("ollama_nightly_summaries", output_path=f"file://{tmp_path}", documents=3)

    done = run("ollama_nightly_summaries", output_path=f"file://{tmp_path}", documents=4)

    assert (done["summaries"]["requests"], done["summaries"]["reused"]) == (1, 3)


def test_first_batch(run, tmp_path, monkeypatch) -> None:
    """The ten lines of the README."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_text('{"text": "Rain falls. It is wet."}\n{"text": "The sun shines."}\n')

    done = run("ollama_first_batch")

    assert done["summaries"]["ok"] == 2
    assert len((tmp_path / "summaries" / "results.jsonl").read_text().splitlines()) == 2


def test_chat_with_history(run, ollama) -> None:
    """The second round has the first one's answer in its messages."""
    ollama.stand_in.script("The moon pulls.", "The moon tugs the sea.")

    done = run("ollama_chat_with_history", subject="ebb and flow")

    assert done == {"explain": "The moon pulls.", "simplify": "The moon tugs the sea."}
    second = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat"][1]
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][1]["content"] == "Explain ebb and flow."
    assert second["messages"][2]["content"] == "The moon pulls."


def test_embeddings(run, tmp_path) -> None:
    """All texts are in the file, and near texts are found by their vectors."""
    path = tmp_path / "packages.jsonl"

    done = run("ollama_embeddings", output_path=f"file://{path}", question="httpx: The next generation HTTP client.")

    assert done["vectors"]["rows"] == len(done["texts"]) == len(path.read_text().splitlines())
    assert len(done["nearest"]) == 3
    assert done["nearest"][0] == "httpx: The next generation HTTP client."


def test_prepare_tonight(run, ollama) -> None:
    """The variant is in memory, with its system prompt; a second run changes nothing."""
    ollama.stand_in.remove("llama3.2")

    changes = []
    for _ in range(2):
        done = run("ollama_prepare_tonight", keep_alive="2h")
        changes.append((done["pull"]["pulled"], done["create"]["created"], done["load"]["loaded"]))

    assert changes == [(True, True, True), (False, False, False)]
    assert done["load"]["model"] == "nightly:latest"
    assert ollama.stand_in.model("nightly").system.startswith("You summarise")
    assert ollama.stand_in.loads == ["nightly:latest"]


def test_clean_up_models(run, ollama) -> None:
    """Nothing is deleted before somebody has read the list; with so much room nothing goes at all."""
    done = run("ollama_clean_up_models")

    assert done["prune"]["dry_run"] is True
    assert done["prune"]["models"] == []
    assert done["prune"]["kept"]["llama3.2:latest"] == "on the keep list"
    assert "/api/delete" not in [seen.path for seen in ollama.stand_in.requests]


def test_chat_with_tool(run, ollama) -> None:
    """The model asks for a version, is told it, and answers."""
    ollama.stand_in.script(Answer(tool_calls=(("package_version", {"name": "httpx"}),)), Ordinary())

    done = run("ollama_chat_with_tool", package="httpx")

    assert version("httpx") in done["ask"]
    asked, told = (seen.json["messages"] for seen in ollama.stand_in.requests if seen.path == "/api/chat")
    assert told[: len(asked)] == asked
    assert told[-1]["tool_name"] == "package_version"


def test_image_captions(run, ollama, tmp_path) -> None:
    """A sentence for each picture."""
    for name in ("b.png", "a.png", "c.png", "notes.txt"):
        (tmp_path / name).write_bytes(PNG)
    ollama.stand_in.script("A grey dot.", times=2)

    done = run("ollama_image_captions", pictures=f"file://{tmp_path}", at_most=2)

    assert done["captions"] == {f"file://{tmp_path}/{name}.png": "A grey dot." for name in "ab"}


def test_image_captions_on_any_machine(run) -> None:
    """By default with pictures that come with Airflow."""
    assert len(run("ollama_image_captions")["captions"]) == 3


def test_deferred_night(run, ollama) -> None:
    """The model that was missing is pulled, and answers."""
    ollama.stand_in.remove("llama3.2")
    ollama.stand_in.script("Once upon a time.")

    done = run("ollama_deferred_night", subject="rain")

    assert done["model"]["pulled"] is True
    assert done["report"] == "Once upon a time."
    (sent,) = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/generate"]
    assert sent["prompt"] == "Write a report of ten pages about rain."


def test_taskflow_reviews(run, ollama) -> None:
    """A verdict for each review, counted."""
    moods = {"money back": "bad", "Five stars": "good", "{{ no language }}": "mixed"}
    for words, mood in moods.items():
        ollama.stand_in.script({"mood": mood, "topics": []}, where=lambda body, words=words: words in body["prompt"])

    assert run("ollama_taskflow_reviews")["count"] == {"bad": 1, "good": 1, "mixed": 1}


def test_taskflow_answers(run, ollama) -> None:
    """The model is given the note that fits the question."""
    ollama.stand_in.script("At ten.", path="chat")

    done = run("ollama_taskflow_answers", question="When does the nightly run start at 22:00?")

    assert done["nearest"].startswith("The nightly run starts")
    assert done["answer"] == "At ten."
    (sent,) = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat"]
    assert sent["messages"][1]["content"].endswith("Question: When does the nightly run start at 22:00?")


def test_structured_answer(run, ollama) -> None:
    """The answer is a dict that fits the class, and decides what follows."""
    ollama.stand_in.script({"product": "K2", "urgency": "high", "summary": "It burns."})

    done = run("ollama_structured_answer")

    assert done["ticket"] == {"product": "K2", "urgency": "high", "summary": "It burns."}
    assert done["route"] == "somebody, now"


def test_table_summaries(run, database, tmp_path) -> None:
    """Every document has its summary in the other table, which was made; the next night nothing is asked or written."""
    database.documents(5)

    night = run("ollama_table_summaries", output_path=f"file://{tmp_path}")["summaries"]
    rows = database.run("SELECT document, title, summary FROM summaries ORDER BY document")
    next_night = run("ollama_table_summaries", output_path=f"file://{tmp_path}")["summaries"]

    assert (night["ok"], night["written"]) == (5, 5)
    assert [(document, title) for document, title, _ in rows] == [(number, f"title {number}") for number in range(5)]
    assert all(summary for _, _, summary in rows)
    assert (next_night["requests"], next_night["reused"], next_night["written"]) == (0, 5, 0)


def test_taskflow_batch(run, tmp_path) -> None:
    """A row for each package, and the sentence about them in XCom."""
    done = run("ollama_taskflow_batch", output_path=f"file://{tmp_path}")

    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert "airflow-provider-ollama" in [row["id"] for row in rows]
    assert done["report"] == f"{len(rows)} packages explained, 0 not: {tmp_path}/results.jsonl"


def test_classified_tickets(run, ollama, tmp_path) -> None:
    """Each answer fits the class; one that never does goes the other way, with what the model said."""
    ollama.stand_in.script("A bug, I would say.", where=lambda body: "camera" in str(body), always=True)

    done = run("ollama_classified_tickets", output_path=f"file://{tmp_path}")

    (results,) = tmp_path.glob("*/results.jsonl")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in rows] == [(1, "ok"), (2, "failed"), (3, "ok")]
    assert all(row["output"]["about"] in {"billing", "bug", "question"} for row in rows if row["output"])
    assert rows[1]["reply"] == "A bug, I would say."
    assert done["look_at_failed"] == f"1 of 3 tickets: {results.parent}/failed.jsonl"
    assert done["done"] is None


def test_answered_tickets(run, ollama, tmp_path) -> None:
    """A ticket that got no class is not answered; where the rows are stands in the event of the asset."""
    ollama.stand_in.script("A bug, I would say.", where=lambda body: "camera" in str(body), always=True)
    ollama.stand_in.script({"about": "billing", "urgency": 2}, where=lambda body: "urgent" in str(body), always=True)
    run("ollama_classified_tickets", output_path=f"file://{tmp_path}/classes")

    done = run("ollama_answered_tickets", output_path=f"file://{tmp_path}/answers")

    assert (done["answers"]["ok"], done["answers"]["failed"]) == (2, 1)
    (results,) = tmp_path.glob("answers/*/results.jsonl")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in rows] == [(1, "ok"), (2, "failed"), (3, "ok")]
    prompts = [seen.json["prompt"] for seen in ollama.stand_in.requests if "two sentences" in str(seen.json)]
    assert prompts[0] == "Answer this ticket (billing) in two sentences.\n\nI was charged twice in October."
    assert len(prompts) == 2


def test_corpus_vectors(run, tmp_path) -> None:
    """A vector for each text, of one length, in Parquet."""
    done = run("ollama_corpus_vectors", output_path=f"file://{tmp_path}")

    table = parquet.read_table(tmp_path / "results.parquet")
    assert table.num_rows == done["vectors"]["rows"] > 50
    assert pa.types.is_fixed_size_list(table.schema.field("output").type)


def test_document_vectors(run, ollama, pgvector, bucket) -> None:
    """Documents of a bucket are found by a question; what became shorter loses the pieces that it had more."""
    bucket.put("notes/oil.md", "How to change the oil. " * 300)
    bucket.put("notes/more/tyres.md", "Tyres are round.")
    where = {
        "documents": f"{bucket.url}/notes/**/*.md",
        "output_path": f"{bucket.url}/vectors",
        "question": "Tyres are round.",
    }
    oil, tyres = (f"{bucket.url}/notes/{name}.md" for name in ("oil", "more/tyres"))
    table = "SELECT path, chunk, vector_dims(embedding) FROM document_vectors ORDER BY path, chunk"
    # The question has the vector of the last document.
    nearest = """
        SELECT path FROM document_vectors
        ORDER BY embedding <=> (SELECT embedding FROM document_vectors WHERE text = 'Tyres are round.') LIMIT 1
    """

    first = run("ollama_document_vectors", **where)
    rows = pgvector.run(table)
    # S3 tells the time of a file in whole seconds.
    time.sleep(1)
    bucket.put("notes/oil.md", "How to change the oil. " * 100)
    next_night = run("ollama_document_vectors", **where)

    assert first["vectors"]["ok"] == first["vectors"]["written"] == len(rows) == 5
    assert rows == [(tyres, 0, 768), *((oil, chunk, 768) for chunk in range(4))]
    assert first["nearest"][0]["path"] == tyres
    assert pgvector.run(nearest) == [(tyres,)]
    assert next_night["vectors"]["reused"] > 0
    assert [row[:2] for row in pgvector.run(table)] == [(tyres, 0), (oil, 0), (oil, 1)]
    assert "results.parquet" in bucket.names("vectors/")


def test_sharded_batch(run, tmp_path) -> None:
    """Four tasks share the rows, the last one has all of them in their order."""
    rows = [json.dumps({"text": f"Row {number}."}) + "\n" for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))

    done = run("ollama_sharded_batch", rows=str(tmp_path / "rows.jsonl"), output_path=f"file://{tmp_path}/out")

    assert (done["summaries.merge"]["complete"], done["summaries.merge"]["rows"]) == (True, 12)
    (results,) = (tmp_path / "out").glob("*/results.jsonl")
    assert [json.loads(line)["index"] for line in results.read_text().splitlines()] == list(range(12))


def test_repair_failed(run, ollama, tmp_path) -> None:
    """The form chooses that only the failed row is asked again; the new one has to wait."""
    ollama.stand_in.script(Fail("invalid image", status=400), where=lambda body: "Row 2" in str(body))
    where = {"rows": str(tmp_path / "rows.jsonl"), "output_path": f"file://{tmp_path}/out"}
    (tmp_path / "rows.jsonl").write_text('{"text": "Row 1."}\n{"text": "Row 2."}\n')

    night = run("ollama_repair_failed", **where, max_failed_ratio=0.5)
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write('{"text": "Row 3."}\n')
    repair = run("ollama_repair_failed", **where, mode="failed_only")
    prompts = [seen.json["prompt"] for seen in ollama.stand_in.requests if "Row" in str(seen.json)]

    assert (night["summaries"]["ok"], night["summaries"]["failed"]) == (1, 1)
    assert (repair["summaries"]["requests"], repair["summaries"]["failed"]) == (1, 0)
    assert [number for number in "123" if any(f"Row {number}" in prompt for prompt in prompts)] == ["1", "2"]
    assert "Row 2" in prompts[-1]


def test_route_mails(run, ollama) -> None:
    """The model knows the tasks by their docstrings; where it says nothing that fits, a person reads the mail."""
    ollama.stand_in.script({"task": "refund"}, "Pay!")

    chosen, default = run("ollama_route_mails"), run("ollama_route_mails", mail="What a lamp!")

    assert (chosen["refund"], chosen["send_manual"], chosen["read_it"]) == ("paid back", None, None)
    assert (default["refund"], default["send_manual"], default["read_it"]) == (None, None, "shown")
    system, user = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat")["messages"]
    assert "- send_manual: Send the manual: the customer does not know how to use something." in system["content"]
    assert user["content"].endswith("I want my money back.")


def test_prompt_with_the_day(run, ollama, tmp_path) -> None:
    """Each row is asked on the day of the run and in the tone of the form."""
    done = run("ollama_prompt_with_the_day", output_path=f"file://{tmp_path}", tone="dry")

    assert done["invitations"]["ok"] == 2
    first = next(body["prompt"] for seen in ollama.stand_in.requests if (body := seen.json or {}).get("prompt"))
    assert re.fullmatch(r"Today is \d{4}-\d\d-\d\d\. In a dry tone, invite Ada, who came on 2026-03-01\.", first)


def test_night_window(run, tmp_path) -> None:
    """A night that is over leaves its rows to the next one, and the asset to the night that does the last of them."""
    (tmp_path / "rows.jsonl").write_text('{"text": "Row 1."}\n{"text": "Row 2."}\n')
    where = {"rows": str(tmp_path / "rows.jsonl"), "output_path": f"file://{tmp_path}/out"}

    first = run("ollama_night_window", **where, stop_at="2026-01-02T06:00:00+00:00")
    second = run("ollama_night_window", **where)

    assert (first["night"]["complete"], first["complete"]) == (False, None)
    assert second["night"]["ok"] == 2
    assert second["complete"] == f"{tmp_path}/out"


def test_rehearsed_night(run, tmp_path) -> None:
    """The rows of the rehearsal are not asked again."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "Row {number}."}}\n' for number in range(50)))

    done = run("ollama_rehearsed_night", rows=str(tmp_path / "rows.jsonl"), output_path=f"file://{tmp_path}/out")

    assert (done["rehearsal"]["rows"], done["rehearsal"]["failing"]) == (50, 0.0)
    assert (done["rehearsal"]["prompt"], done["rehearsal"]["sample"][0]["output"]) == (None, None)
    assert (done["night"]["ok"], done["night"]["reused"], done["not_tonight"]) == (50, 20, None)


@pytest.mark.parametrize("wrong", ["rows", "night"])
def test_a_night_that_is_not_worth_it(run_dag, ollama, ollama_conn, tmp_path, wrong) -> None:
    """Too many rows fail, or it is too short: the batch does not begin, and the run is red."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "Row {number}."}}\n' for number in range(50)))
    where = {"rows": str(tmp_path / "rows.jsonl"), "output_path": f"file://{tmp_path}/out"}
    if wrong == "rows":
        ollama.stand_in.script(
            Fail("no", 400), where=lambda body: (body.get("prompt") or "").endswith("Row 0."), always=True
        )
    else:
        ollama.stand_in.script(Pace(first_token=0.1), always=True)

    done = run_dag(DAGS / "ollama_rehearsed_night.py", **where, show_texts=True, hours=8 if wrong == "rows" else 1e-6)

    tasks = {task.task_id: task for task in done.get_task_instances()}
    found = tasks["rehearsal"].xcom_pull(task_ids="rehearsal")
    assert (tasks["night"].state, tasks["not_tonight"].state, done.state) == ("skipped", "failed", "failed")
    assert found["prompt"] == "Summarise in one sentence:\nRow 0."
    assert found["failed"] == (wrong == "rows")
    assert "Row" in found["sample"][5]["output"]


@pytest.mark.usefixtures("ollama")
def test_after_the_night(run) -> None:
    """It waits for the asset that the night tells of."""
    assert run("ollama_after_the_night") == {"publish": "published"}
    names = [
        (DAGS / f"ollama_{name}.py").read_text().count('Asset("ollama-night-summaries")')
        for name in ("night_window", "after_the_night")
    ]
    assert names == [1, 1]


def test_every_dag_says_in_the_ui_what_it_is_for(airflow_db) -> None:
    """A line for the list of DAGs, and behind *Docs* the docstring of the file: the same line at more length."""
    bag = DagBag(dag_folder=str(DAGS))

    assert bag.import_errors == {}
    assert len(bag.dags) == len(list(DAGS.glob("*.py")))
    for name, dag in bag.dags.items():
        title, _, more = (dag.doc_md or "").partition("\n\n")
        assert 10 < len(dag.description or "") <= 70, name
        assert (DAGS / f"{name}.py").read_text().startswith(f'"""{title}'), name
        assert len(more) > 60, f"{name}: what it needs, what to change, where its results are"


def test_every_dag_has_its_test() -> None:
    """A new DAG file needs a test above."""
    tests = Path(__file__).read_text()

    assert [path.stem for path in sorted(DAGS.glob("*.py")) if f'run("{path.stem}"' not in tests] == []
