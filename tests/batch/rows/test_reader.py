"""Rows of which no request can be made: each is a fault of that row alone."""

import pytest

from ollama_provider.api.schemas import Options
from ollama_provider.batch.arguments import Embedding, FailurePolicy
from ollama_provider.batch.requests.tasks import Generate
from ollama_provider.batch.rows.reader import RowReader
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.store.keys import Keys

KEYS = Keys("0" * 64, Generate(model="m", options=Options()).identity())
TURNS = [{"role": "system", "content": "{{ row.text }}"}, {"role": "user", "content": "{{ row.text }}"}]


def prepare(rows, **spec):
    reader = RowReader(BatchSpec(model="m", rows=rows, **spec), read_rows(rows))
    sample = reader.sample()
    chunk = reader.next_chunk(KEYS)
    assert reader.next_chunk(KEYS) == []
    return sample.prompts, chunk


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"], ids=repr)
@pytest.mark.parametrize(
    "spec", [{}, {"embedding": Embedding()}, {"messages": TURNS}], ids=["generate", "embed", "chat"]
)
def test_an_empty_prompt_fails_its_row(text, spec):
    """A server would answer it with nothing, and call that good."""
    sample, (good, empty, last) = prepare(["a", text, "b"], **spec)

    assert len(sample) == 2
    assert (good.fault, last.fault) == (None, None)
    assert empty.fault["class"] == "EmptyText"


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": None}, "RenderError"),
        ({"other": "a"}, "RenderError"),
        ({"text": "a \ud83d b"}, "RenderError"),
        ({"text": float("nan")}, "RenderError"),
        ({"text": None, 1: "a"}, "BrokenRow"),
        ({"text": None, "x": {1: "a", "b": 2}}, "RenderError"),
        ({"text": None, "\ud83d": "\ud83d"}, "RenderError"),
        (7, "BrokenRow"),
        (b"a", "BrokenRow"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "spec", [{}, {"embedding": Embedding()}, {"messages": TURNS}], ids=["generate", "embed", "chat"]
)
def test_a_row_of_which_no_prompt_can_be_made(row, kind, spec):
    """It has a key of its own and fails alone; requests are sent for the rows around it."""
    sample, rows = prepare(["a", row, "b"], failures=FailurePolicy(on_broken_row="dead_letter"), **spec)

    assert len(sample) == 2
    assert [prepared.fault and prepared.fault["class"] for prepared in rows] == [None, kind, None]
    rows[1].fault["text"].encode()
    assert len({prepared.key for prepared in rows}) == 3


def test_a_row_that_holds_itself():
    """It cannot be written as JSON, so its place in the input is its key."""
    row = {"text": None}
    row["row"] = row

    _, (first, second, good) = prepare([row, row, "a"])

    assert first.fault["class"] == second.fault["class"] == "RenderError"
    assert first.key != second.key
    assert good.fault is None


def test_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = [{"text": "a", "path": path} for path in ("a.png", "none.png", "/dev/zero", "a\ud83d.png", "\0", None)]

    _, prepared = prepare(rows, images="{{ row.path }}", images_from=tmp_path)

    assert [row.fault and row.fault["class"] for row in prepared] == [None, *["ImageError"] * 4, "RenderError"]
    for row in prepared[1:]:
        row.fault["text"].encode()
