"""Results in a checkpoint are written into the table once each, wherever the run is killed."""

import contextlib
import itertools
import json

import pytest
from pyarrow import parquet

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.arguments import Embedding, FailurePolicy
from ollama_provider.batch.errors import DatabaseError, DatabaseGoneError, StorageError, TooManyFailedError
from ollama_provider.batch.records import Vectors
from ollama_provider.batch.results.table import WrittenKeys
from ollama_provider.batch.spec import Shard
from ollama_provider.batch.store.storage import Disk, open_storage
from ollama_provider.testing import Answer, Model

ROWS = [{"id": f"r{number}", "text": f"text {number % 7}", "title": f"title {number}"} for number in range(12)]


class MemoryTable:
    """A table in memory. It may refuse rows, or be down for some calls."""

    row_columns = ("title",)

    def __init__(self, *, refuse=(), down=0):
        self.target = {"table": 1}
        self.rows = {}
        self.places = {}
        self.writes = 0
        self.refuse = refuse
        self.down = down

    def open(self, examples, id_column, vectors):
        assert id_column == "id"
        self.vectors = vectors

    def of_row(self, own):
        return own["id"], [own["id"], own["row"]]

    def write(self, results):
        if self.down:
            self.down -= 1
            raise DatabaseGoneError("the database restarts")
        refused = {place: "constraint violated" for place, result in enumerate(results) if result["id"] in self.refuse}
        for place, result in enumerate(results):
            if place not in refused:
                self.writes += 1
                self.places[result["id"]] = result["index"]
                self.rows[result["id"]] = (result["output"], result["row"]["title"])
        return refused

    def close(self):
        pass


def expected(batch):
    return {row["id"]: (row["output"], ROWS[row["index"]]["title"]) for row in batch.results if row["status"] == "ok"}


def test_every_good_result_is_written_once(batch):
    """Rows that share an answer, too, each with its own columns."""
    table = MemoryTable()

    summary = batch.run(ROWS, id_column="id", into=table, checkpoint_every=0.01)

    assert (summary.ok, summary.written, table.writes) == (12, 12, 12)
    assert len(batch.asked) == 7
    assert table.rows == expected(batch)


def test_the_next_run_writes_only_what_is_new(batch):
    """The directory notes what the table has."""
    table = MemoryTable()
    batch.run(ROWS[:8], id_column="id", into=table)

    summary = batch.run(ROWS, id_column="id", into=table)

    assert (summary.written, table.writes) == (4, 12)
    assert table.rows == expected(batch)


def test_a_row_that_changes_and_changes_back(batch):
    """The table has what the input says now, though the answer is an old one."""
    table = MemoryTable()
    for text in ("first", "second", "first"):
        batch.run([{"id": "r0", "text": text, "title": "title 0"}], id_column="id", into=table)

    assert len(batch.asked) == 2
    assert table.writes == 3
    assert table.rows == expected(batch)


def test_a_column_of_the_input_that_changes(batch):
    """It is no part of the request, but of what the table has."""
    table = MemoryTable()
    for title in ("old", "new"):
        batch.run([{"id": "r0", "text": "x", "title": title}], id_column="id", into=table)

    assert len(batch.asked) == 1
    assert [title for _, title in table.rows.values()] == ["new"]


def test_another_table_gets_everything(batch):
    """What was written elsewhere does not count."""
    batch.run(ROWS, id_column="id", into=MemoryTable())
    other = MemoryTable()
    other.target = {"table": 2}

    summary = batch.run(ROWS, id_column="id", into=other)

    assert (summary.written, len(batch.asked)) == (12, 7)


def test_refused_rows_are_dead_letters(batch):
    """They count as failed, with the error text of the database and the raw reply. The next run writes them again."""
    table = MemoryTable(refuse={"r2", "r9"})

    with pytest.raises(TooManyFailedError, match=r"2 of 12 rows failed .RefusedByTable 2 times") as caught:
        batch.run(ROWS, id_column="id", into=table, failures=FailurePolicy())

    summary = caught.value.summary
    assert (summary.failed, summary.written, summary.errors) == (2, 10, {"RefusedByTable": 2})
    assert (summary.ok, summary.left) == (10, 0)
    assert [row["id"] for row in batch.failed] == ["r2", "r9"]
    assert {row["error"]["text"] for row in batch.failed} == {"constraint violated"}
    assert all(row["reply"] and row["output"] is None for row in batch.failed)
    assert len(batch.results) == 12

    asked = len(batch.asked)
    table.refuse = ()
    assert batch.run(ROWS, id_column="id", into=table, failures=FailurePolicy()).written == 2
    assert len(batch.asked) == asked
    assert batch.failed == []
    assert table.rows == expected(batch)


def test_failed_rows_are_not_written(batch):
    """A row without an answer has no place in the table."""
    table = MemoryTable()
    rows = [*ROWS[:2], {"id": "r2", "text": None, "title": "title 2"}]

    summary = batch.run(rows, id_column="id", into=table)

    assert (summary.written, summary.failed) == (2, 1)
    assert "r2" not in table.rows


def test_results_wait_for_a_database_that_is_down(batch, caplog):
    """Requests go on meanwhile."""
    table = MemoryTable(down=1)

    summary = batch.run(ROWS, id_column="id", into=table)

    assert summary.complete
    assert table.rows == expected(batch)
    assert (
        "Database unavailable, writing again in 1 s (requests go on, no result is lost): the database restarts"
        in caplog.text
    )


def test_a_database_that_stays_down(batch):
    """The task fails, to be tried again; the next run writes without asking the model."""
    table = MemoryTable(down=10)

    with pytest.raises(DatabaseGoneError):
        batch.run(ROWS, id_column="id", into=table, failures=FailurePolicy(max_outage=0))

    asked = len(batch.asked)
    table.down = 0
    assert batch.run(ROWS, id_column="id", into=table).written == 12
    assert len(batch.asked) == asked == 7


def test_a_table_that_cannot_be_written_is_known_before_the_first_request(batch):
    """Nothing is asked for a table that cannot take the answers."""
    table = MemoryTable()
    table.open = lambda *_: (_ for _ in ()).throw(DatabaseError("no such table"))

    with pytest.raises(DatabaseError, match="no such table"):
        batch.run(ROWS, id_column="id", into=table)

    assert batch.asked == []


def test_two_rows_with_one_key_of_the_table(batch, caplog):
    """A warning says that only one of them is in the table."""
    rows = [{"id": "r0", "text": text, "title": "t"} for text in ("one", "two", "three")]

    batch.run(rows, id_column="id", into=MemoryTable())

    assert "2 rows have the same key of the table as another row" in caplog.text


SHARDS = [(0, 3), (1, 3), (2, 3)]


def test_shards_write_their_rows(batch):
    """Each with its place in the whole input; the merge has nothing left to write."""
    table = MemoryTable()
    summaries = [batch.run(ROWS, id_column="id", into=table, shard=shard) for shard in SHARDS]
    assert sum(summary.written for summary in summaries) == table.writes == 12
    assert table.places == {row["id"]: place for place, row in enumerate(ROWS)}

    summary = batch.run(ROWS, id_column="id", into=table, mode="merge")

    assert (summary.complete, summary.written, table.writes) == (True, 0, 12)
    assert table.rows == expected(batch)
    assert batch.run(ROWS, id_column="id", into=table).written == 0


def test_the_merge_writes_what_shards_could_not(batch):
    """The database was down until the end of one of them."""
    table = MemoryTable(down=1)
    with pytest.raises(DatabaseGoneError):
        batch.run(ROWS, id_column="id", into=table, shard=SHARDS[0], failures=FailurePolicy(max_outage=0))
    for shard in SHARDS[1:]:
        batch.run(ROWS, id_column="id", into=table, shard=shard)
    assert 0 < (before := len(table.rows)) < 12

    assert batch.run(ROWS, id_column="id", into=table, mode="merge").written == 12 - before
    assert table.rows == expected(batch)


def test_rows_that_the_table_of_a_shard_refuses(batch):
    """They are failed rows of the shard, and of the merge, which tries them again and lists them."""
    table = MemoryTable(refuse={"r2", "r9"})  # the same text, and so the same shard
    summaries = [batch.run(ROWS, id_column="id", into=table, shard=shard) for shard in SHARDS]

    assert sorted((summary.failed, summary.errors) for summary in summaries if summary.failed) == [
        (2, {"RefusedByTable": 2})
    ]
    assert sum(summary.ok for summary in summaries) == 10
    merged = batch.run(ROWS, id_column="id", into=table, mode="merge")
    assert (merged.ok, merged.failed, merged.written) == (10, 2, 0)
    assert [row["id"] for row in batch.failed] == ["r2", "r9"]
    assert table.rows == expected(batch)


@pytest.mark.parametrize("last", [0, 1])
def test_shards_that_disagree_about_a_row(tmp_path, last):
    """Nobody knows which of them came last, so neither counts, until a whole run has written the row."""
    storage = open_storage(tmp_path)
    runs = [WrittenKeys(storage, {}, Shard(number, 2)) for number in (0, 1)]
    row, contents = runs[0].row_hash("r0"), [WrittenKeys.content_hash(key, []) for key in ("first", "second")]
    for number in (1 - last, last):
        runs[number].add(row, contents[number])
        runs[number].save()

    assert not any(WrittenKeys(storage, {}).has(row, content) for content in contents)
    again = WrittenKeys(storage, {}, Shard(1, 2))
    assert not again.has(row, contents[1])
    again.add(row, contents[1])
    again.save()
    assert not WrittenKeys(storage, {}).has(row, contents[1])
    merge = WrittenKeys(storage, {})
    merge.add(row, contents[0])
    merge.save()
    assert WrittenKeys(storage, {}).has(row, contents[0])
    tomorrow = WrittenKeys(storage, {}, Shard(1, 2))
    tomorrow.add(row, contents[1])
    tomorrow.save()
    assert WrittenKeys(storage, {}).has(row, contents[1])


def test_shards_that_agree_about_a_row(tmp_path):
    """As when the number of shards has changed."""
    storage = open_storage(tmp_path)
    row, content = WrittenKeys(storage, {}).row_hash("r0"), WrittenKeys.content_hash("key", [])
    for shard in (Shard(0, 2), Shard(3, 4)):
        keys = WrittenKeys(storage, {}, shard)
        keys.add(row, content)
        keys.save()

    assert WrittenKeys(storage, {}).has(row, content)


class DiedError(OSError):
    """The process was killed."""


class DyingDisk(Disk):
    """Fails every operation after the first *deadline* ones."""

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

    def append(self, file, data, place):
        self._live(super().append, file, data, place)

    def sync(self, file):
        self._live(super().sync, file)

    def rename(self, source, target):
        self._live(super().rename, source, target)

    def delete(self, target):
        self._live(super().delete, target)


def test_every_crash_point(batch, tmp_path):
    """After each, the next run completes the table and asks no row again that is in a checkpoint."""
    for deadline in itertools.count():
        batch.directory = tmp_path / f"out{deadline}"
        table, disk = MemoryTable(), DyingDisk(deadline)
        before = len(batch.asked)
        with contextlib.suppress(StorageError, DiedError):
            batch.run(ROWS, directory=open_storage(batch.directory, disk), id_column="id", into=table, concurrency=1)
        stored = {json.loads(line)["key"] for part in batch.parts for line in part.read_bytes().splitlines()}
        tried = len(batch.asked)

        batch.run(ROWS, id_column="id", into=table, concurrency=1)

        assert table.rows == expected(batch)
        assert len(batch.asked) - tried == 7 - len(stored)
        assert batch.run(ROWS, id_column="id", into=table).written == 0
        if disk.count <= deadline:
            assert tried - before == 7
            break


def test_every_crash_point_of_a_shard(batch, tmp_path):
    """The other shard, another try and the merge complete the table, and ask no row again that is in a checkpoint."""

    def run(disk=None, **arguments):
        return batch.run(
            ROWS, directory=open_storage(batch.directory, disk), id_column="id", into=table, concurrency=1, **arguments
        )

    for deadline in itertools.count():
        batch.directory = tmp_path / f"out{deadline}"
        table, disk = MemoryTable(), DyingDisk(deadline)
        before = len(batch.asked)
        with contextlib.suppress(StorageError, DiedError):
            run(disk, shard=(0, 2))
        stored = {json.loads(line)["key"] for part in batch.parts for line in part.read_bytes().splitlines()}
        tried = len(batch.asked)

        for shard in ((1, 2), (0, 2)):
            run(shard=shard)
        writes = table.writes
        assert run(mode="merge").written == 0

        assert table.rows == expected(batch)
        assert table.writes == writes
        assert len(batch.asked) - tried == 7 - len(stored)
        if disk.count <= deadline:
            assert len(batch.asked) - before == 7
            break


@pytest.mark.ollama(models=[Model("emb", ("embedding",), context_length=64, embedding_length=8)])
class TestVectors:
    LONG = " ".join(f"word{number}" for number in range(150))

    class Table(MemoryTable):
        """A table in memory that keeps results as they came."""

        def write(self, results):
            self.rows |= {result["id"]: result for result in results}
            return {}

    @pytest.fixture
    def embed(self, batch):
        def run(rows, table, **spec):
            return batch.run(rows, model="emb", id_column="id", into=table, **({"embedding": Embedding()} | spec))

        return run

    def asked(self, ollama):
        return [seen.json["input"] for seen in ollama.stand_in.requests if seen.path == "/api/embed"]

    def test_the_table_gets_the_numbers(self, batch, embed):
        """They are those of the file, and their length was known before the first of them."""
        table = self.Table()

        summary = embed(ROWS, table)

        found = parquet.read_table(batch.directory / "results.parquet").to_pylist()
        assert summary.written == 12
        assert {row["id"]: row["output"] for row in found} == {
            key: list(row["output"]) for key, row in table.rows.items()
        }
        assert not any("pieces" in row for row in table.rows.values())
        assert table.vectors == Vectors(8, in_pieces=False)

    def test_a_long_text_has_pieces(self, batch, embed):
        """Each has its vector and its place in the text; the text is one result, so all of them are written or none."""
        table = self.Table()

        embed(
            [{"id": 0, "text": "short"}, {"id": 1, "text": self.LONG}], table, embedding=Embedding(on_long_text="split")
        )

        rows = parquet.read_table(batch.directory / "results.parquet").to_pylist()
        names = ("chunk", "start", "end", "output")
        pieces = [{name: piece[name] for name in names} for piece in table.rows[1]["pieces"]]
        assert [piece | {"output": list(piece["output"])} for piece in pieces] == [
            {name: row[name] for name in names} for row in rows if row["id"] == 1
        ]
        assert "pieces" not in table.rows[0]
        assert table.vectors == Vectors(8, in_pieces=True)

    def test_a_night_without_new_texts_loads_no_model(self, ollama, embed):
        """The length is that of a vector that is stored."""
        embed(ROWS, self.Table())
        before, table = len(self.asked(ollama)), self.Table()

        embed(ROWS, table)

        assert len(self.asked(ollama)) == before
        assert table.vectors.length == 8

    def test_another_length_is_asked_for(self, embed):
        """What is stored has the length of an earlier setting."""
        embed(ROWS, self.Table())
        table = self.Table()

        embed(ROWS, table, embedding=Embedding(dimensions=4))

        assert table.vectors.length == 4

    def test_a_merge_asks_nothing(self, ollama, embed):
        """The length is one of the shards' vectors."""
        table = self.Table()
        for number in range(2):
            embed(ROWS, table, shard=(number, 2))
        before, table.vectors = len(self.asked(ollama)), None

        embed(ROWS, table, mode="merge")

        assert len(self.asked(ollama)) == before
        assert table.vectors.length == 8
        assert len(table.rows) == 12

    def test_a_model_without_vectors(self, ollama, embed):
        """It is told before the table is opened."""
        ollama.stand_in.script(Answer(vectors=((),)), path="embed", where=lambda body: body["input"] == ["a"])
        table = self.Table()

        with pytest.raises(RejectedReplyError, match="no vector"):
            embed(ROWS, table)

        assert not hasattr(table, "vectors")
