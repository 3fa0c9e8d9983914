"""Batches over files as they lie there."""

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ollama_provider.batch import Embedding, FailurePolicy, InputError, InputOptions
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.testing import Model

DATA = Path(__file__).parents[1] / "data/inputs"
#: The same rows in each of them.
FORMS = {
    "rows.jsonl": {},
    "rows.json": {},
    "rows.tsv": {},
    "rows.csv.gz": {},
    "rows.jsonl.zst": {},
    "rows.parquet": {},
    "semicolons-latin-1.csv": {"input_options": InputOptions(delimiter=";", encoding="latin-1")},
}


def test_a_row_has_one_key_in_every_form(batch):
    """So a file may be compressed or converted between two nights, and nothing is asked again."""
    for name, options in FORMS.items():
        summary = batch.run(DATA / name, id_column="id", **options)

        assert (summary.ok, summary.rows) == (3, 3), name
        assert [row["id"] for row in batch.results] == ["1", "2", "3"]
    assert len(batch.asked) == 3


def test_shards_agree_on_the_options(batch):
    """Another delimiter makes other rows of the same file."""
    rows, options = DATA / "semicolons-latin-1.csv", InputOptions(delimiter=";", encoding="latin-1")
    batch.run(rows, input_options=options, shard=(0, 2))

    with pytest.raises(InputError, match=r"other settings \(encoding\)"):
        batch.run(rows, input_options=InputOptions(delimiter=";", encoding="cp1252"), shard=(1, 2))


def test_a_folder_of_documents(batch, tmp_path):
    """Each has its path as id. One that cannot be read fails alone, and a new one alone is asked the next time."""
    for name, text in (("a.txt", "apples"), ("b.md", "bananas"), ("c.pdf", "no PDF")):
        (tmp_path / name).write_text(text)
    failures = FailurePolicy(on_broken_row="dead_letter", max_failed_rows=1)
    given = {"prompt": "Sum up {{ row.name }}: {{ row.text }}", "id_column": "path", "failures": failures}
    batch.run(tmp_path / "*.*", **given)
    (tmp_path / "d.html").write_text("<p>dates")

    summary = batch.run(tmp_path / "*.*", keep_columns=["name", "modified"], **given)

    assert sorted(batch.asked) == ["Sum up a.txt: apples", "Sum up b.md: bananas", "Sum up d.html: dates"]
    assert (summary.ok, summary.failed, summary.reused) == (3, 1, 2)
    found = [row["id"] and Path(row["id"]).name for row in batch.results]
    assert found == ["a.txt", "b.md", None, "d.html"]
    assert batch.results[0]["row"]["modified"].startswith("20")
    assert "c.pdf: it cannot be read as PDF" in batch.failed[0]["error"]["text"]


def test_long_documents_in_pieces(batch, tmp_path):
    """Each piece is a row, with its number and its own answer."""
    (tmp_path / "long.txt").write_text(" ".join(f"word{number}" for number in range(100)))

    batch.run(tmp_path / "*.txt", input_options=InputOptions(split_text=300), keep_columns=["chunk"])

    assert [row["row"]["chunk"] for row in batch.results] == [0, 1, 2]
    assert all(len(prompt) <= 300 for prompt in batch.asked)


ROWS = [
    {"id": 1, "title": "Größe", "text": "a", "tags": ["x", "y"], "price": 1.5, "day": None},
    {"id": 2, "title": "tab\tand\nline", "text": "b", "price": float("nan"), "sold": True},
]


class TestKeptColumns:
    """Columns of the input in the results, so that nobody has to join."""

    def test_some(self, batch):
        batch.run(ROWS, id_column="id", keep_columns=["title", "sold"])

        assert [row["row"] for row in batch.results] == [
            {"title": "Größe", "sold": None},
            {"title": "tab\tand\nline", "sold": True},
        ]
        assert [row["id"] for row in batch.results] == [1, 2]

    def test_all(self, batch):
        """Each row has those that it came with; NaN is null, as for ids."""
        batch.run(ROWS, keep_columns="all")

        assert [row["row"] for row in batch.results] == [ROWS[0], ROWS[1] | {"price": None}]

    def test_a_missing_column(self, batch):
        """Refused before the first request, with those that there are."""
        with pytest.raises(InputError, match="'titel' missing; the rows have the columns 'day', 'id', 'price',"):
            batch.run(ROWS, keep_columns=["titel", "id"])
        assert not batch.asked

    def test_other_columns_the_next_time(self, batch):
        """They come out of the input, so no row is asked again, and rows with equal prompts have each their own."""
        rows = [row | {"text": "same"} for row in ROWS]
        batch.run(rows)
        assert "row" not in batch.results[0]

        summary = batch.run(rows, keep_columns=["title"])

        assert (summary.reused, len(batch.asked)) == (2, 1)
        assert [row["row"]["title"] for row in batch.results] == ["Größe", "tab\tand\nline"]

    def test_failed_and_broken_rows(self, batch, tmp_path):
        """A failed row has its columns in both files. Of one that cannot be read there are none."""
        (tmp_path / "rows.jsonl").write_text('{"text": "a", "n": 1}\n{"text": " ", "n": 2}\n{"text\n')

        batch.run(
            tmp_path / "rows.jsonl",
            keep_columns=["n"],
            failures=FailurePolicy(on_broken_row="dead_letter", max_failed_rows=2),
        )

        assert [row["row"] for row in batch.results] == [{"n": 1}, {"n": 2}, None]
        assert [row["row"] for row in batch.lines("failed.jsonl")] == [{"n": 2}, None]

    def test_shards_and_their_merge(self, batch):
        """The merge reads the input, so it has them, whatever the shards were told."""
        rows = [{"text": f"text {number}", "n": number} for number in range(10)]
        batch.run(rows, shard=(0, 2))
        batch.run(rows, shard=(1, 2), keep_columns="all")

        batch.run(rows, mode="merge", keep_columns=["n"])

        assert [row["row"] for row in batch.results] == [{"n": number} for number in range(10)]

    def test_parquet(self, batch):
        """A column of numbers or truth values has their type, any other is text, or JSON."""
        batch.run(ROWS, keep_columns="all", results="parquet")

        table = parquet.read_table(batch.directory / "results.parquet")
        kinds = {field.name: field.type for field in table.schema.field("row").type}
        assert kinds == {
            "id": pa.int64(),
            "title": pa.string(),
            "text": pa.string(),
            "tags": pa.string(),
            "price": pa.float64(),
            "day": pa.string(),
            "sold": pa.bool_(),
        }
        first, second = table.column("row").to_pylist()
        assert first == ROWS[0] | {"tags": '["x", "y"]', "sold": None}
        assert second == ROWS[1] | {"tags": None, "price": None, "day": None}

    @pytest.mark.ollama(models=[Model("emb", ("embedding",), context_length=64)])
    @pytest.mark.parametrize("results", ["jsonl", "parquet"])
    def test_beside_vectors(self, batch, results):
        """In both formats, and beside every piece of a text."""
        rows = [{"text": "word " * 300, "n": 1}, {"text": "short", "n": 2}]
        batch.run(rows, model="emb", keep_columns=["n"], results=results, embedding=Embedding(on_long_text="split"))

        if results == "jsonl":
            found = batch.results
        else:
            found = parquet.read_table(batch.directory / "results.parquet").to_pylist()
        kept = [row["row"]["n"] for row in found]
        assert kept == [1] * (len(found) - 1) + [2]
        assert len(found) > 2

    def test_memory(self):
        """Columns wait on the disk for the answers."""
        order, kept = RowOrder(with_fields=True), json.dumps({"text": "x" * 10_000}).encode()

        tracemalloc.start()
        for number in range(3000):
            order.add(number, number, kept)
        assert sum(len(fields) for _, _, fields in order.rows()) > 30_000_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        order.close()

        assert peak < 4_000_000
