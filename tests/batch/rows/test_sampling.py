"""A sample of rows: where it comes from, that it is fair, and how little is read for it."""

import gzip
import json
from pathlib import Path
from random import Random
from statistics import mean

import pyarrow as pa
import pytest
from pyarrow import parquet
from upath import UPath

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import paths_of
from ollama_provider.batch.rows import sampling
from ollama_provider.batch.rows.sampling import sample_rows
from ollama_provider.batch.rows.sources import read_rows


def length(row):
    return None if row.fault else len(row.columns["text"])


def sampled(rows, count=20, **options):
    return sample_rows(rows, InputOptions(**options), count, length)


def numbers(sample):
    return [each.row.columns["n"] for each in sample.rows]


def records(count):
    """Rows of lengths as different as those of real texts, with the shortest and the longest somewhere inside."""
    random = Random(7)
    rows = [{"n": n, "text": "x" * (20 + int(random.lognormvariate(4, 0.8)))} for n in range(count)]
    rows[count // 3]["text"], rows[count // 2]["text"] = "y", "z" * 5000
    return rows


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Counting:
    """A file on the disk that counts the bytes that are read of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.read_bytes = 0

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def is_file(self):
        return True

    def iterdir(self):
        raise NotADirectoryError

    def stat(self):
        return self.path.stat()

    def open(self, mode):
        assert mode == "rb"
        counting = self

        class File(type(self.path.open(mode).raw)):
            def readinto(self, buffer):
                got = super().readinto(buffer)
                counting.read_bytes += got
                return got

        import io

        return io.BufferedReader(File(self.path))


@pytest.fixture
def no_small_files(monkeypatch):
    """Files count as large from the first byte on, and blocks are a kilobyte, so that tests need no large files."""
    monkeypatch.setattr(sampling, "_SMALL", 0)
    monkeypatch.setattr(sampling, "_BLOCK", 1 << 10)


class Unsized(Counting):
    """A file of a store that tells no sizes."""

    def stat(self):
        raise KeyError("size")


class TestSelection:
    def test_first_last_shortest_longest_and_random_ones(self):
        """In the order of the input, each once."""
        rows = records(300)
        sample = sampled(rows)

        why = {each.why: each.row.columns["n"] for each in sample.rows}
        assert numbers(sample) == sorted(set(numbers(sample)))
        assert len(sample.rows) == 20
        assert (why["first"], why["shortest"], why["longest"], why["last"]) == (0, 100, 150, 299)
        assert (sample.total, sample.exact, sample.looked_at) == (300, True, 300)
        assert sorted(sample.lengths) == sorted(len(row["text"]) for row in rows)

    def test_the_same_input_gives_the_same_sample(self):
        """So that a second rehearsal finds the answers of the first."""
        assert numbers(sampled(records(300))) == numbers(sampled(records(300)))
        assert set(numbers(sampled(records(300)))) < set(range(300))

    @pytest.mark.parametrize("count", [0, 1, 3, 5])
    def test_an_input_of_fewer_rows_is_taken_as_it_is(self, count):
        """Also where one row is first, last, shortest and longest."""
        sample = sampled([{"n": n, "text": "same"} for n in range(count)], count=5)

        assert numbers(sample) == list(range(count))
        assert (sample.total, sample.exact) == (count, True)

    def test_fewer_rows_than_there_are_reasons(self):
        """The first ones count."""
        assert [each.why for each in sampled(records(30), count=1).rows] == ["first"]
        assert [each.why for each in sampled(records(30), count=2).rows] == ["first", "last"]

    def test_every_row_has_the_same_chance(self):
        """To be measured, that is: over a thousand of ten thousand rows the mean of their numbers is in the middle."""
        sample = sample_rows(
            [{"n": n, "text": "x"} for n in range(10_000)], InputOptions(), 20, lambda r: r.columns["n"]
        )

        assert len(sample.lengths) == 1000
        assert len(set(sample.lengths)) == 1000
        assert abs(mean(sample.lengths) - 5000) < 300  # three standard errors

    def test_broken_rows_are_rows(self):
        """They are not measured, and come into the sample like others."""
        sample = sampled([{"n": 0, "text": "a"}, 7, {"n": 2, "text": "b"}])

        assert [each.row.fault is None for each in sample.rows] == [True, False, True]
        assert len(sample.lengths) == 2

    def test_who_gives_up(self):
        """May raise at any row."""
        with pytest.raises(ZeroDivisionError):
            sample_rows(["a"], InputOptions(), 5, length, lambda: 1 / 0)


class TestLargeFiles:
    def test_json_lines_are_read_in_blocks(self, tmp_path):
        """Of 30 MB a seventh at most; and the number of rows is right within a few percent."""
        rows = records(150_000)
        file = Counting(write_lines(tmp_path / "rows.jsonl", rows))

        sample = sampled(file)

        size = file.path.stat().st_size
        assert size > 16 << 20
        assert 0 < file.read_bytes < size / 3
        assert not sample.exact
        assert sample.total == pytest.approx(150_000, rel=0.05)
        assert {each.why: each.row.columns["n"] for each in sample.rows}["last"] == 149_999
        assert numbers(sample) == sorted(numbers(sample))
        assert mean(sample.lengths) == pytest.approx(mean(len(row["text"]) for row in rows), rel=0.15)

    def test_rows_are_those_of_the_file(self, tmp_path, no_small_files):
        """Wherever a block begins, and whatever line breaks a text has within JSON."""
        rows = [{"n": n, "text": f"a\u2028b\x85c\n{n}" * (n % 50)} for n in range(2000)]
        path = write_lines(tmp_path / "rows.jsonl", rows)

        sample = sampled(path, count=200)

        assert len(sample.rows) == 200
        assert all(each.row.columns == rows[each.row.columns["n"]] for each in sample.rows)
        assert sample.total == pytest.approx(2000, rel=0.1)

    def test_lines_that_are_longer_than_a_block(self, tmp_path, no_small_files):
        """Are read whole."""
        rows = [{"n": n, "text": "x" * 5000} for n in range(200)]

        sample = sampled(write_lines(tmp_path / "rows.jsonl", rows))

        assert len(sample.rows) == 20
        assert sample.total == pytest.approx(200, rel=0.02)

    @pytest.mark.parametrize("end", ["\n", ""])
    @pytest.mark.parametrize("length", [1000, 1024, 1100, 3000, 5000, 9000])
    def test_a_last_line_that_is_longer_than_a_block(self, tmp_path, no_small_files, length, end):
        """It is found from farther before it, and the others are counted as without it."""
        rows = [*({"n": n, "text": "x" * (n % 50)} for n in range(3000)), {"n": 3000, "text": "z" * length}]
        path = write_lines(tmp_path / "rows.jsonl", rows)
        path.write_text(path.read_text().removesuffix("\n") + end)

        sample = sampled(path)

        last = sample.rows[-1]
        assert (last.row.columns, last.why) == (rows[-1], "last")
        assert numbers(sample) == sorted(set(numbers(sample)))
        assert sample.total == pytest.approx(3001, rel=0.1)

    def test_one_line_that_is_longer_than_a_block(self, tmp_path, no_small_files):
        """It is first and last."""
        sample = sampled(write_lines(tmp_path / "rows.jsonl", [{"n": 0, "text": "x" * 9000}]))

        assert (numbers(sample), sample.total) == ([0], 1)

    def test_a_store_that_tells_no_sizes(self, tmp_path):
        """Its files are read to the end; none is taken for empty."""
        file = Unsized(write_lines(tmp_path / "rows.jsonl", records(500)))

        sample = sampled(file)

        assert (sample.total, sample.exact, len(sample.rows)) == (500, True, 20)

    def test_a_file_in_an_object_store(self, no_small_files):
        """The same."""
        path = UPath("memory://sampling/rows.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(json.dumps(row) + "\n" for row in records(2000)).encode())

        sample = sampled(path)

        assert not sample.exact
        assert sample.looked_at < 2000
        assert sample.total == pytest.approx(2000, rel=0.2)
        assert (numbers(sample)[0], numbers(sample)[-1]) == (0, 1999)

    def test_parquet_is_read_in_groups_of_rows(self, tmp_path, no_small_files):
        """And counted by what its footer says."""
        rows = records(5000)
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=500)

        sample = sampled(tmp_path / "rows.parquet")

        assert (sample.total, sample.exact) == (5000, True)
        assert len(sample.rows) == 20
        assert all(each.row.columns == rows[each.row.columns["n"]] for each in sample.rows)
        assert all(each.row.place.endswith(f"row {each.row.columns['n']}") for each in sample.rows)
        why = {each.why: each.row.columns["n"] for each in sample.rows}
        assert (why["first"], why["last"]) == (0, 4999)

    def test_an_empty_parquet_file(self, tmp_path, no_small_files):
        """Has no rows."""
        parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")

        assert (sampled(tmp_path / "rows.parquet").rows, sampled(tmp_path / "rows.parquet").total) == ((), 0)

    @pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl.gz", "rows.json"])
    def test_others_are_read_whole(self, name, tmp_path, no_small_files):
        """CSV because a line break may be a part of a field: here each row has some, and quotes and commas."""
        rows = [{"n": str(n), "text": f'a "{n}"\n,\n' * (1 + n % 9)} for n in range(500)]
        path = tmp_path / name
        if name == "rows.csv":
            fields = (",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows)
            path.write_text("n,text\n" + "".join(f"{line}\n" for line in fields))
        elif name == "rows.json":
            path.write_text(json.dumps(rows))
        else:
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

        sample = sampled(path)

        assert (sample.total, sample.exact, sample.looked_at) == (500, True, 500)
        assert all(each.row.columns == rows[int(each.row.columns["n"])] for each in sample.rows)

    def test_json_lines_in_another_encoding_are_read_whole(self, tmp_path, no_small_files):
        """A place in bytes is no place in such a text."""
        lines = "".join(json.dumps({"n": n, "text": "Größe"}, ensure_ascii=False) + "\n" for n in range(50))
        (tmp_path / "rows.jsonl").write_bytes(lines.encode("utf-16"))

        sample = sampled(tmp_path / "rows.jsonl", encoding="utf-16")

        assert (sample.total, sample.exact) == (50, True)
        assert sample.rows[-1].row.columns["text"] == "Größe"

    def test_a_damaged_line_is_a_broken_row(self, tmp_path, no_small_files):
        """As when the file is read whole; it says where about it is."""
        path = tmp_path / "rows.jsonl"
        path.write_text('{"n": 0, "text": "a"}\nnonsense\n')

        sample = sampled(path)

        assert [each.row.fault is None for each in sample.rows] == [True, False]
        assert sample.rows[1].row.place == f"{path}, after byte 0"


class TestManyFiles:
    def test_a_glob_of_json_lines(self, tmp_path, no_small_files):
        """Rows come from all over the files, and of the files only some are opened."""
        for number in range(300):
            write_lines(tmp_path / f"{number:03}.jsonl", [{"n": 10 * number + n, "text": "x" * 90} for n in range(10)])

        sample = sampled(str(tmp_path / "*.jsonl"))

        assert sample.total == pytest.approx(3000, rel=0.02)
        assert (numbers(sample)[0], numbers(sample)[-1]) == (0, 2999)
        assert len({number // 1000 for number in numbers(sample)}) == 3

    def test_documents_are_chosen_by_their_sizes(self, tmp_path, no_small_files):
        """The smallest and the largest are in the sample, though few are opened."""
        for number in range(400):
            (tmp_path / f"{number:03}.txt").write_text("word " * (20 + number % 30))
        (tmp_path / "123.txt").write_text("w")
        (tmp_path / "234.txt").write_text("word " * 500)

        sample = sampled(str(tmp_path / "*.txt"), count=10)

        why = {each.why: each.row.columns["name"] for each in sample.rows}
        assert (why["first"], why["last"], why["shortest"], why["longest"]) == (
            "000.txt", "399.txt", "123.txt", "234.txt",
        )  # fmt: skip
        assert (sample.total, sample.exact) == (400, True)
        assert sample.looked_at <= 24

    def test_documents_in_pieces_are_an_estimate(self, tmp_path, no_small_files):
        """From the pieces of those that were opened."""
        for number in range(200):
            (tmp_path / f"{number:03}.txt").write_text("word " * 100)

        sample = sampled(str(tmp_path / "*.txt"), split_text=100)

        pieces = sum(1 for _ in read_rows(str(tmp_path / "*.txt"), InputOptions(split_text=100)))
        assert not sample.exact
        assert sample.total == pytest.approx(pieces, rel=0.01)

    def test_files_of_several_formats(self, tmp_path, no_small_files):
        """Each as it can be read."""
        paths = [write_lines(tmp_path / "a.jsonl", records(500)), tmp_path / "b.parquet", tmp_path / "c.json"]
        parquet.write_table(pa.Table.from_pylist(records(500)), paths[1])
        paths[2].write_text(json.dumps(records(500)))

        sample = sampled(paths)

        assert paths_of(paths) == paths
        assert sample.total == pytest.approx(1500, rel=0.05)
        assert {each.row.place.split(",")[0].rpartition(".")[2] for each in sample.rows} == {"jsonl", "parquet", "json"}


def test_a_file_that_is_not_there(tmp_path):
    """Is said as by a batch."""
    with pytest.raises(InputError, match="There is no file"):
        sampled(str(tmp_path / "rows.jsonl"))


def test_a_file_that_is_no_json_lines(tmp_path, no_small_files):
    """UTF-16 is seen at its beginning."""
    (tmp_path / "rows.jsonl").write_bytes('{"n": 1}\n'.encode("utf-16"))

    with pytest.raises(InputError, match="is UTF-16"):
        sampled(tmp_path / "rows.jsonl")
