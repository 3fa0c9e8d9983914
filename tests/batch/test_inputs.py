"""Batches over files as they lie there."""

from pathlib import Path

import pytest

from ollama_provider.batch import InputError, InputOptions

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
