"""The OpenLineage events of tasks, as Airflow's provider for it writes them into a file during real DAG runs."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.lineage import MOST_FILES, SCHEMA, _name_of_file, _read, _written
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.sql import SqlRows, SqlTable
from ollama_provider.testing import Answer, Fail, serve
from tests.docs.pages import ROOT, blocks
from tests.security.canaries import ANSWER, HEADER, LOGIN, PASSWORD, PROMPT, found_in

PAGE = "docs/howto/lineage.md"
FACET_SCHEMA = json.loads((ROOT / "docs/reference/ollama-run-facet.json").read_text())
NIGHTLY, OTHERS = "dags/ollama_nightly_summaries.py", "tests/airflow/dags/with_lineage.py"


@dataclass(frozen=True)
class Lineage:
    """What the last event of a task says: its type, its datasets as ``namespace name``, and our facet."""

    kind: str
    inputs: list[str]
    outputs: dict[str, int | None]
    facet: dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of the files that the tasks read and write."""
    folder = tmp_path_factory.mktemp("lineage")
    for name, files, text in (("few", 3, '{"text": "row"}\n'), ("many", MOST_FILES + 1, "row")):
        (folder / name).mkdir()
        for number in range(files):
            (folder / name / f"{number:03}.{'jsonl' if name == 'few' else 'txt'}").write_text(text)
    (folder / "weights.gguf").write_bytes(b"GGUF" + b"weights")
    with sqlite3.connect(folder / "warehouse.db") as warehouse:
        warehouse.execute("CREATE TABLE documents (id INTEGER, text TEXT)")
        warehouse.execute("CREATE TABLE days (id INTEGER, day TEXT)")
        warehouse.execute("INSERT INTO documents VALUES (7, 'seven')")
        warehouse.execute("INSERT INTO days VALUES (7, '1')")
    return folder


@pytest.fixture(scope="module")
def events(folder, airflow_db, dags_folder) -> list[dict[str, Any]]:
    """All events of the nightly DAG and of ``with_lineage``, whose tasks run in a process with the provider at work."""
    file = folder / "events.jsonl"
    with serve() as server:
        server.stand_in.script(Fail("it failed"), where=lambda body: "fail" in json.dumps(body), always=True)
        server.stand_in.script(
            Answer(ANSWER), where=lambda body: bool(body.get("prompt")) and "fail" not in body["prompt"], always=True
        )
        secret = {"login": LOGIN, "password": PASSWORD, "extra": {"headers": {"X-Api-Key": HEADER}}}
        connections = {
            "ollama_default": {"conn_type": "ollama", "host": server.url, **secret},
            "nowhere": {"conn_type": "nothing"},
            "warehouse": {"conn_type": "sqlite", "host": str(folder / "warehouse.db")},
        }
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "LINEAGE_FOLDER": str(folder),
            "CANARY": PROMPT,
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(file), "append": True}),
            **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()},
        }
        # Airflow runs what is in its folder of DAGs.
        dags = [shutil.copy(ROOT / dag, dags_folder) for dag in (NIGHTLY, OTHERS)]
        for dag in dags:  # each in a process of its own: Airflow keeps what hooks report as long as its process lives
            command = [sys.executable, ROOT / "tests/airflow/lineage_run.py", dag]
            ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            Path(dag).unlink()
            assert ran.returncode == 0, ran.stderr[-4000:]
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def lineage(events) -> dict[str, Lineage]:
    """What the last event of each task says, by the task's id; of mapped tasks, that of the last one."""
    return {
        event["job"]["name"].partition(".")[2]: Lineage(
            event["eventType"],
            [f"{dataset['namespace']} {dataset['name']}" for dataset in event["inputs"]],
            {
                f"{dataset['namespace']} {dataset['name']}": dataset.get("outputFacets", {})
                .get("outputStatistics", {})
                .get("rowCount")
                for dataset in event["outputs"]
            },
            event["run"]["facets"].get("ollama_run", {}),
        )
        for event in events
        if event["eventType"] in {"COMPLETE", "FAIL"}
    }


def test_the_nightly_dag(events, lineage, airflow_home):
    """Documents became summaries, by this model: the event that the page shows."""
    results = airflow_home / "ollama/summaries"
    summaries = lineage["summaries"]

    assert summaries.kind == "COMPLETE"
    assert summaries.inputs == [f"file {results}/documents.jsonl"]
    assert summaries.outputs == {f"file {results}/results.jsonl": 12}
    facet = summaries.facet
    assert (facet["model"], facet["rows"], facet["ok"], facet["failed"], facet["reused"]) == ("llama3.2", 12, 12, 0, 0)
    assert len(facet["digest"]) == 64
    assert facet["server"].startswith("http://127.0.0.1:")
    assert facet["promptTokens"] > facet["tokens"] > 0


def test_the_facet_is_as_its_schema_says(events):
    """Whoever reads events can rely on it; the number of the schema changes with its fields."""
    facets = [event["run"]["facets"]["ollama_run"] for event in events if "ollama_run" in event["run"]["facets"]]

    assert len(facets) > 10
    for facet in facets:
        jsonschema.validate(facet, FACET_SCHEMA)
        assert facet["_schemaURL"] == SCHEMA == FACET_SCHEMA["$id"]


def test_a_glob_is_its_files(folder, lineage):
    """So that each is the dataset that another task has written."""
    assert lineage["night.shards"].inputs == [f"file {folder}/few/{number:03}.jsonl" for number in range(3)]


def test_many_files_are_their_folder(folder, lineage):
    """An event has to be carried and stored."""
    assert lineage["many"].inputs == [f"file {folder}/many"]
    assert lineage["many"].facet["rows"] == MOST_FILES + 1


def test_tables(folder, lineage):
    """Those of the query, and the one for the results."""
    namespace = f"sqlite://{folder}/warehouse.db"

    assert lineage["table"].kind == "COMPLETE"
    assert sorted(lineage["table"].inputs) == [f"{namespace} main.days", f"{namespace} main.documents"]
    assert lineage["table"].outputs == {
        f"file {folder}/table-results/results.jsonl": 1,
        f"{namespace} main.summaries": 1,
    }


def test_tables_of_each_kind_of_database(database):
    """By OpenLineage's rules: a query finds the table that another task wrote."""
    database.documents(1)
    server, name = f"127.0.0.1:{database.connection.get('port')}", database.connection.get("schema")
    namespace, prefix = {
        "postgresql": (f"postgres://{server}", f"{name}.public"),
        "mysql": (f"mysql://{server}", name),
        "sqlite": (f"sqlite://{database.connection['host']}", "main"),
    }[database.kind]
    rows = SqlRows("warehouse", f"SELECT d.id FROM documents d WHERE title = {database.mark}", ["it's"])  # noqa: S608
    table = SqlTable("warehouse", "documents", key="id", columns={"id": "id"})

    (read,) = _read(rows).inputs
    written = _written(table, 7)
    assert (read.namespace, read.name) == (namespace, f"{prefix}.documents")
    assert (written.namespace, written.name) == (read.namespace, read.name)


def test_a_table_with_its_schema(postgres):
    """Names are taken as the catalogue has them."""
    table = SqlTable("warehouse", 'sales."v1.2"', key="id", columns={"id": "id"})

    assert _written(table, None).name == f"{postgres.connection['schema']}.sales.v1.2"


def test_vectors(folder, lineage):
    """Of a batch and of a single task."""
    assert lineage["vectors"].outputs == {f"file {folder}/corpus/results.parquet": 2}
    assert lineage["embed"].outputs == {f"file {folder}/vectors.jsonl": 2}
    assert lineage["embed"].facet["rows"] == 2


def test_shards(folder, lineage):
    """They write into one directory, out of which the merge makes the results."""
    rows = lineage["night.shards"].inputs

    assert lineage["night.shards"].outputs == {f"file {folder}/night-results": None}
    assert lineage["night.merge"].inputs == [*rows, f"file {folder}/night-results"]
    assert lineage["night.merge"].outputs == {f"file {folder}/night-results/results.jsonl": 3}


def test_a_batch_that_is_not_complete(folder, lineage):
    """Its rows are those of the input, which are not all in the file of the results, if there is one."""
    assert lineage["left"].kind == "COMPLETE"
    assert lineage["left"].outputs == {f"file {folder}/left-results/results.jsonl": None}
    assert lineage["left"].facet["rows"] == 2


def test_single_answers(folder, lineage):
    """An answer goes to XCom, which is no dataset, and into a file where that is asked for."""
    assert lineage["stream"].outputs == {f"file {folder}/answer.txt": None}
    assert lineage["stream"].facet["tokens"] > 0
    assert len(lineage["stream"].facet["digest"]) == 64


def test_models(folder, lineage):
    """A task that is about a model says which one."""
    assert lineage["pull"].facet["model"] == "llama3.2:latest"
    assert len(lineage["pull"].facet["digest"]) == 64
    assert lineage["create"].inputs == [f"file {folder}/weights.gguf"]
    assert lineage["create"].facet["model"] == "ours:latest"


def test_failed_tasks_give_what_is_known(folder, lineage):
    """Which model and which server; and what a batch has done until then."""
    failed = lineage["unknown_model"]
    assert (failed.kind, failed.facet["model"]) == ("FAIL", "nowhere")
    assert failed.facet["server"].startswith("http://127.0.0.1:")

    rows = lineage["failed_rows"]
    assert rows.kind == "FAIL"
    assert rows.outputs == {f"file {folder}/failed-results/results.jsonl": 2}
    assert (rows.facet["ok"], rows.facet["failed"]) == (1, 1)

    assert lineage["no_file"].kind == "FAIL"
    assert lineage["no_file"].inputs == [f"file {folder}/nothing"]


def test_a_task_that_did_not_begin_says_nothing(lineage):
    """Its arguments are templates still."""
    assert (lineage["bad_template"].kind, lineage["bad_template"].facet) == ("FAIL", {})


def test_what_cannot_be_found_out_is_left_out(lineage):
    """The rest is there."""
    assert (lineage["no_database"].kind, lineage["no_database"].inputs) == ("FAIL", [])
    assert lineage["no_database"].facet["model"] == "llama3.2"


def test_no_prompt_no_answer_and_no_secret_is_in_an_event(events):
    """Not in those of failed tasks either, which have the error and its traceback."""
    assert any("errorMessage" in event["run"]["facets"] for event in events)
    for event in events:
        assert found_in(json.dumps(event, ensure_ascii=False)) == [], event["job"]["name"]


def test_the_page_shows_the_event_of_the_nightly_dag(events, airflow_home):
    """But for what is different in each run."""
    (shown,) = (json.loads(block.text) for block in blocks() if block.page == PAGE and block.text.startswith("{"))
    (event,) = (
        event
        for event in events
        if event["job"]["name"] == "ollama_nightly_summaries.summaries" and event["eventType"] == "COMPLETE"
    )
    facet = {name: value for name, value in event["run"]["facets"]["ollama_run"].items() if name[0] != "_"}
    page = shown["run"]["facets"]["ollama_run"]
    assert {name: type(value) for name, value in facet.items()} == {name: type(value) for name, value in page.items()}
    assert {**facet, **{name: page[name] for name in ("server", "seconds", "promptTokens", "tokens")}} == page

    def plain(datasets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        name = {"name": datasets[0]["name"].replace(str(airflow_home), "/opt/airflow")}
        statistics = datasets[0].get("outputFacets", {}).get("outputStatistics", {})
        rows = {"outputFacets": {"outputStatistics": {"rowCount": statistics["rowCount"]}}} if statistics else {}
        return [{"namespace": datasets[0]["namespace"], **name, **rows}]

    assert shown["inputs"] == plain(event["inputs"])
    assert shown["outputs"] == plain(event["outputs"])
    assert shown["job"] == {name: event["job"][name] for name in shown["job"]}


def test_what_is_kept_for_it_hides_no_error():
    """Of a task that has no hook yet, as when Airflow's timeout comes while that is made."""

    class WithoutHook(OllamaOperator):
        hook_overrides = ("nowhere",)

    with pytest.raises(AttributeError, match="nowhere"):
        WithoutHook(task_id="task").execute({})


def test_what_is_kept_for_it_fails_no_task(ollama, ollama_conn):
    """Whatever a subclass returns of a server."""

    class Odd(OllamaOperator):
        def perform(self, context):
            return self.on_servers(lambda hook, log: {"model": {"of": "ours"}, "digest": ["a", "b"]})

    assert Odd(task_id="task").execute({}) == {"model": {"of": "ours"}, "digest": ["a", "b"]}


with_google = pytest.mark.skipif(
    airflow_version.startswith("2."), reason="Airflow 2 makes no path in a store whose provider is not installed"
)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("s3://aws_default@bucket/a/b.jsonl", ("s3://bucket", "a/b.jsonl")),
        ("s3a://bucket/a.jsonl", ("s3://bucket", "a.jsonl")),
        pytest.param("gs://bucket/a.jsonl", ("gs://bucket", "a.jsonl"), marks=with_google),
        pytest.param("gcs://bucket/a.jsonl", ("gs://bucket", "a.jsonl"), marks=with_google),
        ("file:///data/a.jsonl", ("file", "/data/a.jsonl")),
    ],
)
def test_names_of_objects(path, named):
    """As OpenLineage has them: without the connection, and alike for all drivers of a store."""
    assert _name_of_file(ObjectStoragePath(path)) == named
