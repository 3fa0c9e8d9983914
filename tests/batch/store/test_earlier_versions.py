"""Directories that earlier versions of this package have written, and today's code goes on with.

``tests/data/README.md`` says where they come from, and how those of the next version are added.
"""

import json
import shutil

import pytest
from pyarrow import parquet

from ollama_provider.batch.arguments import Embedding
from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.store.manifest import _FORMAT
from ollama_provider.testing import Fail, Model, Respond
from tests.batch.results.test_table import MemoryTable
from tests.docs.pages import ROOT

VERSIONS = sorted((ROOT / "tests/data").glob("written-by-*"))
ROWS = [{"id": f"r{number}", "text": f"text {number}", "title": f"title {number}"} for number in range(6)]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

pytestmark = pytest.mark.ollama(models=["llama3.2", Model("emb", ("embedding",), embedding_length=8)])


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request, ollama):
    """What a version has written, and a server with the models of then."""
    digests = json.loads((request.param / "digests.json").read_text())
    models = [{"name": f"{name}:latest", "model": f"{name}:latest", "digest": digests[name]} for name in digests]
    ollama.stand_in.script(Respond(200, {"models": models}), path="tags", always=True)
    ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") == "text 2", always=True)
    return request.param


@pytest.fixture
def go_on(batch, version):
    """Run a batch again in a copy of a directory."""

    def run(name, **spec):
        if not batch.directory.exists():
            shutil.copytree(version / name, batch.directory)
        return batch.run(ROWS, id_column="id", **spec)

    return run


def lines(folder, name="results.jsonl"):
    return {json.loads(line)["id"]: line for line in (folder / name).read_text().splitlines()}


def test_a_finished_directory_has_the_same_results(batch, version, go_on):
    """To the letter; and only the row that had failed is requested again, since this is another pass."""
    summary = go_on("finished")

    assert (summary.complete, summary.ok, summary.reused, summary.failed) == (True, 5, 5, 1)
    assert set(batch.asked) == {"text 2"}
    before, after = lines(version / "finished"), lines(batch.directory)
    assert after.keys() == before.keys()
    assert [row for row in before if after[row] != before[row]] in ([], ["r2"])  # seconds and server are others
    assert json.loads(after["r2"])["error"]["class"] == json.loads(before["r2"])["error"]["class"]


def test_a_directory_of_a_killed_run_is_continued(batch, version, go_on):
    """What was kept is there to the letter, and not requested again, a failed row neither."""
    kept = {
        json.loads(line)["key"]: json.loads(line)
        for part in version.glob("killed/parts/*.jsonl")
        for line in part.read_text().splitlines()
    }

    summary = go_on("killed")

    assert (summary.complete, summary.ok, summary.failed, summary.requests) == (True, 5, 1, 2)
    assert sorted(batch.asked) == ["text 4", "text 5"]
    results = [row for row in batch.results if row["key"] in kept]
    assert len(results) == len(kept) == 4
    for row in results:
        known = {name: value for name, value in kept[row["key"]].items() if name != "crc32"}
        assert {name: value for name, value in row.items() if name not in {"index", "id"}} == known


def test_shards_are_merged(batch, version, go_on, ollama):
    """Without a server."""
    ollama.stop()

    summary = go_on("shards", mode="merge")

    assert (summary.complete, summary.ok, summary.failed, summary.requests) == (True, 5, 1, 0)
    assert [row["id"] for row in batch.results] == [row["id"] for row in ROWS]


def test_a_table_is_not_written_again(batch, version, go_on):
    """The notes say which rows it has."""
    table = MemoryTable()
    table.rows = {row: tuple(given) for row, given in json.loads((version / "table/table.json").read_text()).items()}
    before = dict(table.rows)

    summary = go_on("table", into=table)

    assert (summary.ok, summary.written, table.writes) == (5, 0, 0)
    assert table.rows == before


def test_answers_in_a_schema_and_their_replies(batch, version, go_on):
    """The same schema needs no request, and another one that the replies fit needs none either."""
    assert go_on("schema", output_type=SCHEMA).requests == 0
    assert lines(batch.directory) == lines(version / "schema")
    narrower = SCHEMA | {"properties": {"n": {"type": "integer", "maximum": 9}}}

    summary = go_on("schema", output_type=narrower)

    assert (summary.ok, summary.revalidated, summary.requests) == (6, 6, 0)


def test_vectors(batch, version, go_on, ollama):
    """To the last bit. What versions after it have measured, it has not."""
    summary = go_on("vectors", model="emb", embedding=Embedding())

    assert (summary.ok, summary.reused) == (6, 6)
    assert not [request for request in ollama.stand_in.requests if (request.json or {}).get("input")]
    before, after = (
        parquet.read_table(folder / "results.parquet") for folder in (version / "vectors", batch.directory)
    )
    assert before.equals(after.select(before.column_names))
    assert set(after.column_names) - set(before.column_names) <= {"queue_seconds"}


def test_a_directory_of_a_later_version_is_refused(batch, version, go_on):
    """Before a request, with what to do, and nothing is changed."""
    shutil.copytree(version / "killed", batch.directory)
    manifest = batch.directory / "batch.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": _FORMAT + 1}))
    before = {path: path.read_bytes() for path in batch.directory.rglob("*") if path.is_file()}

    with pytest.raises(StorageError, match=r"written by a later version of airflow-provider-ollama\. Update"):
        go_on("killed")

    assert batch.asked == []
    assert {path: path.read_bytes() for path in before} == before


def test_each_format_has_data_of_its_own():
    """Also the one that is written today: the next version will have to read it."""
    formats = {json.loads((version / "finished/batch.json").read_text())["format"] for version in VERSIONS}

    assert formats == set(range(1, _FORMAT + 1))
