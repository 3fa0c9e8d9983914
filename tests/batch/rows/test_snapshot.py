"""A query is asked once, and its rows are kept."""

import threading

import pytest

from ollama_provider.batch.errors import DatabaseGoneError
from ollama_provider.batch.rows.sources import read_rows


class MemoryQuery:
    """A query in memory."""

    def __init__(self, rows, text="SELECT", occasion="night 1"):
        self.rows = rows
        self.question = {"sql": text}
        self.occasion = occasion
        self.asked = 0

    def fetch(self):
        self.asked += 1
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            yield [row]


def texts(*names):
    return [{"text": name} for name in names]


def test_a_retry_sees_the_same_rows(batch):
    """Whatever has changed meanwhile: it is asked once for an occasion."""
    first = batch.run(MemoryQuery(texts("a", "b")))
    again = MemoryQuery(texts("c"))

    summary = batch.run(again)

    assert again.asked == 0
    assert (first.rows, summary.rows, summary.reused) == (2, 2, 2)
    assert batch.asked == ["a", "b"]


def test_the_next_night_asks_anew(batch):
    """And what was answered is not asked again."""
    batch.run(MemoryQuery(texts("a", "b")))

    summary = batch.run(MemoryQuery(texts("b", "c"), occasion="night 2"))

    assert (summary.ok, summary.reused) == (2, 1)
    assert batch.asked == ["a", "b", "c"]
    assert len(list((batch.directory / "rows").glob("*.jsonl"))) == 1


def test_other_files_beside_a_snapshot_are_kept(batch):
    """Only files that are named like a snapshot are one: a new snapshot removes no others."""
    folder = batch.directory / "rows"
    folder.mkdir(parents=True)
    others = [folder / name for name in ("mine.jsonl", "0123456789abcdeg.jsonl", "0123456789abcdef.jsonl.bak")]
    for other in others:
        other.write_text('{"text": "mine"}\n')

    batch.run(MemoryQuery(texts("a")))
    batch.run(MemoryQuery(texts("b"), occasion="night 2"))

    assert all(other.exists() for other in others)
    assert len(list(folder.iterdir())) == len(others) + 2  # the snapshot and its lock


def test_a_query_that_changes_between_two_tries(batch):
    """It gets rows of its own; what both have is not asked again."""
    batch.run(MemoryQuery(texts("a", "b")))

    summary = batch.run(MemoryQuery(texts("b", "c"), text="SELECT more"))

    assert (summary.rows, summary.ok, summary.reused) == (2, 2, 1)
    assert batch.asked == ["a", "b", "c"]


def test_an_answer_that_breaks_off(batch):
    """Half an answer is none: nothing is asked of the model, and the next try begins anew."""
    with pytest.raises(DatabaseGoneError):
        batch.run(MemoryQuery([*texts("a"), DatabaseGoneError("gone")]))
    assert batch.asked == []
    assert not list((batch.directory / "rows").glob("*.jsonl"))

    assert batch.run(MemoryQuery(texts("a", "b"))).ok == 2


def test_no_rows(batch):
    """A complete, empty result."""
    summary = batch.run(MemoryQuery([]))

    assert (summary.complete, summary.rows) == (True, 0)
    assert batch.results == []


def test_shards_ask_once(batch):
    """Those that begin later read what the first one fetched."""
    queries = [MemoryQuery(texts(*"abcdefgh")) for _ in range(3)]
    threads = [
        threading.Thread(target=batch.run, args=(query,), kwargs={"shard": (number, 3)})
        for number, query in enumerate(queries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    summary = batch.run(MemoryQuery([]), mode="merge")

    assert sum(query.asked for query in queries) == 1
    assert (summary.complete, summary.rows) == (True, 8)
    assert sorted(batch.asked) == list("abcdefgh")


def test_what_was_asked_is_in_batch_json(batch):
    """So that a person sees where the rows came from."""
    batch.run(MemoryQuery(texts("a")))

    assert '"sql": "SELECT"' in (batch.directory / "batch.json").read_text()


def test_read_here_and_now():
    """Without a directory a query is an iterable of rows."""
    assert [row.columns for row in read_rows(MemoryQuery(texts("a", "b")))] == texts("a", "b")
