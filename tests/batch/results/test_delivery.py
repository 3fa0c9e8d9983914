"""Sealed results go on to a table: neither gap nor double, wherever it breaks off."""

import contextlib
import itertools
import json

import pytest

from ollama_provider.batch.errors import DatabaseError, DatabaseGoneError, StorageError, TooManyFailedError
from ollama_provider.batch.spec import Limits
from ollama_provider.batch.store.storage import Disk, open_storage

ROWS = [{"id": f"r{number}", "text": f"text {number % 7}", "title": f"title {number}"} for number in range(12)]


class Shelf:
    """A table in memory. It may refuse rows, or be gone for some calls."""

    row_columns = ("title",)

    def __init__(self, *, refuse=(), gone=0):
        self.target = {"shelf": 1}
        self.rows = {}
        self.writes = 0
        self.refuse = refuse
        self.gone = gone

    def open(self, examples, id_column):
        assert id_column == "id"

    def of_row(self, own):
        return own["id"], [own["id"], own["row"]]

    def write(self, results):
        if self.gone:
            self.gone -= 1
            raise DatabaseGoneError("the shelf is being painted")
        refused = {place: "no room" for place, result in enumerate(results) if result["id"] in self.refuse}
        for place, result in enumerate(results):
            if place not in refused:
                self.writes += 1
                self.rows[result["id"]] = (result["output"], result["row"]["title"])
        return refused

    def close(self):
        pass


def expected(batch):
    return {row["id"]: (row["output"], ROWS[row["index"]]["title"]) for row in batch.results if row["status"] == "ok"}


def test_every_good_result_is_written_once(batch):
    """Rows that share an answer, too, each with its own columns."""
    shelf = Shelf()

    summary = batch.run(ROWS, id_column="id", into=shelf, checkpoint_every=0.01)

    assert (summary.ok, summary.written, shelf.writes) == (12, 12, 12)
    assert len(batch.asked) == 7
    assert shelf.rows == expected(batch)


def test_the_next_run_writes_only_what_is_new(batch):
    """The ledger knows what the table has."""
    shelf = Shelf()
    batch.run(ROWS[:8], id_column="id", into=shelf)

    summary = batch.run(ROWS, id_column="id", into=shelf)

    assert (summary.written, shelf.writes) == (4, 12)
    assert shelf.rows == expected(batch)


def test_a_row_that_changes_and_changes_back(batch):
    """The table has what the input says now, though the answer is an old one."""
    shelf = Shelf()
    for text in ("first", "second", "first"):
        batch.run([{"id": "r0", "text": text, "title": "title 0"}], id_column="id", into=shelf)

    assert len(batch.asked) == 2
    assert shelf.writes == 3
    assert shelf.rows == expected(batch)


def test_a_column_of_the_input_that_changes(batch):
    """It is no part of the request, but of what the table has."""
    shelf = Shelf()
    for title in ("old", "new"):
        batch.run([{"id": "r0", "text": "x", "title": title}], id_column="id", into=shelf)

    assert len(batch.asked) == 1
    assert [title for _, title in shelf.rows.values()] == ["new"]


def test_another_table_gets_everything(batch):
    """What was written elsewhere does not count."""
    batch.run(ROWS, id_column="id", into=Shelf())
    other = Shelf()
    other.target = {"shelf": 2}

    summary = batch.run(ROWS, id_column="id", into=other)

    assert (summary.written, len(batch.asked)) == (12, 7)


def test_refused_rows_are_dead_letters(batch):
    """With the table's words, and the answer as raw reply; they count as failed, and the next run offers them again."""
    shelf = Shelf(refuse={"r2", "r9"})

    with pytest.raises(TooManyFailedError, match=r"2 of 12 rows failed .RefusedByTable 2 times") as caught:
        batch.run(ROWS, id_column="id", into=shelf, limits=Limits())

    summary = caught.value.summary
    assert (summary.failed, summary.written, summary.errors) == (2, 10, {"RefusedByTable": 2})
    assert (summary.ok, summary.left) == (10, 0)
    assert [row["id"] for row in batch.failed] == ["r2", "r9"]
    assert {row["error"]["text"] for row in batch.failed} == {"no room"}
    assert all(row["reply"] and row["output"] is None for row in batch.failed)
    assert len(batch.results) == 12

    asked = len(batch.asked)
    shelf.refuse = ()
    assert batch.run(ROWS, id_column="id", into=shelf, limits=Limits()).written == 2
    assert len(batch.asked) == asked
    assert batch.failed == []
    assert shelf.rows == expected(batch)


def test_failed_rows_are_not_written(batch):
    """A row without an answer has no place in the table."""
    shelf = Shelf()
    rows = [*ROWS[:2], {"id": "r2", "text": None, "title": "title 2"}]

    summary = batch.run(rows, id_column="id", into=shelf)

    assert (summary.written, summary.failed) == (2, 1)
    assert "r2" not in shelf.rows


def test_a_table_that_is_gone_for_a_while(batch, caplog):
    """Results wait; requests go on."""
    shelf = Shelf(gone=1)

    summary = batch.run(ROWS, id_column="id", into=shelf)

    assert summary.complete
    assert shelf.rows == expected(batch)
    assert "Results wait 1 s for their table, none is lost: the shelf is being painted" in caplog.text


def test_a_table_that_stays_away(batch):
    """The task fails, to be tried again; the next run writes without asking the model."""
    shelf = Shelf(gone=10)

    with pytest.raises(DatabaseGoneError):
        batch.run(ROWS, id_column="id", into=shelf, limits=Limits(max_outage=0))

    asked = len(batch.asked)
    shelf.gone = 0
    assert batch.run(ROWS, id_column="id", into=shelf).written == 12
    assert len(batch.asked) == asked == 7


def test_a_table_that_cannot_be_written_is_known_before_the_first_request(batch):
    """No hour of a GPU for nothing."""
    shelf = Shelf()
    shelf.open = lambda *_: (_ for _ in ()).throw(DatabaseError("no such shelf"))

    with pytest.raises(DatabaseError, match="no such shelf"):
        batch.run(ROWS, id_column="id", into=shelf)

    assert batch.asked == []


def test_two_rows_with_one_key_of_the_table(batch, caplog):
    """One of them is lost in the table, and that is said."""
    rows = [{"id": "r0", "text": text, "title": "t"} for text in ("one", "two", "three")]

    batch.run(rows, id_column="id", into=Shelf())

    assert "2 rows have the same key of the table as another row" in caplog.text


def test_the_merge_of_shards_writes_their_rows(batch):
    """It alone knows the place of each row; the shards leave the table alone."""
    shelf = Shelf()
    for number in range(3):
        batch.run(ROWS, id_column="id", into=shelf, shard=(number, 3))
    assert shelf.writes == 0

    summary = batch.run(ROWS, id_column="id", into=shelf, mode="merge")

    assert (summary.complete, summary.written, shelf.writes) == (True, 12, 12)
    assert shelf.rows == expected(batch)


class DiedError(OSError):
    """The process is gone."""


class DyingDisk(Disk):
    """Does k things, and nothing afterwards."""

    def __init__(self, deadline):
        self.count = 0
        self._deadline = deadline

    def _live(self, action, *arguments):
        self.count += 1
        if self.count > self._deadline:
            raise DiedError
        action(*arguments)

    def write(self, file, data):
        self._live(super().write, file, data)

    def sync(self, file):
        self._live(super().sync, file)

    def rename(self, source, target):
        self._live(super().rename, source, target)

    def delete(self, target):
        self._live(super().delete, target)


def test_every_crash_point(batch, tmp_path):
    """After each, the next run makes the table exactly right and asks nothing that was sealed."""
    for deadline in itertools.count():
        batch.directory = tmp_path / f"out{deadline}"
        shelf, disk = Shelf(), DyingDisk(deadline)
        before = len(batch.asked)
        with contextlib.suppress(StorageError, DiedError):
            batch.run(ROWS, directory=open_storage(batch.directory, disk), id_column="id", into=shelf, concurrency=1)
        sealed = {json.loads(line)["key"] for part in batch.parts for line in part.read_bytes().splitlines()}
        tried = len(batch.asked)

        batch.run(ROWS, id_column="id", into=shelf, concurrency=1)

        assert shelf.rows == expected(batch)
        assert len(batch.asked) - tried == 7 - len(sealed)
        assert batch.run(ROWS, id_column="id", into=shelf).written == 0
        if disk.count <= deadline:
            assert tried - before == 7
            break
