"""Rows from lists, files and globs."""

import csv
import datetime as dt
import decimal
import gc
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from upath import UPath

from ollama_provider.batch.errors import InputError, StorageError
from ollama_provider.batch.records import canonical_json
from ollama_provider.batch.rows import text_files
from ollama_provider.batch.rows.sources import count_rows, read_rows


def columns(rows):
    found = list(read_rows(rows))
    assert not [row.fault for row in found if row.fault]
    return [row.columns for row in found]


def test_texts_and_mappings():
    """A text is a row with the one column ``text``."""
    assert columns(["a", {"id": 1, "text": "b"}]) == [{"text": "a"}, {"id": 1, "text": "b"}]


def test_an_iterator_is_read_as_rows_are_asked_for():
    """Nothing is read ahead of need."""
    read = []
    rows = read_rows(read.append(number) or f"row {number}" for number in range(10))

    next(rows)
    next(rows)
    assert read == [0, 1]


def test_what_is_no_row_is_a_fault_of_that_row():
    """A number among the texts stops nobody else."""
    first, second = read_rows(["a", 7])

    assert first.fault is None
    assert "not int" in second.fault
    assert second.place == "row 1"


def test_jsonl(tmp_path):
    """Objects and texts, blank lines, a byte order mark, every sort of line break within a text."""
    file = tmp_path / "rows.jsonl"
    texts = ["a", "\u2028\x85\u2029", "ü😀"]
    file.write_bytes(
        b"\xef\xbb\xbf"
        + "\n\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()
        + b'\n"only a text"'
    )

    assert columns(file) == [*({"text": text} for text in texts), {"text": "only a text"}]


@pytest.mark.parametrize("line", ['{"text": "a"', "[1, 2]", "7", '{"text": "a"}}', '{"text": "\\ud800"}'])
def test_a_broken_line_is_named_by_file_and_line(tmp_path, line):
    """What is no row says where it stands, and the rows around it are read."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "before"}\n' + line + '\n{"text": "after"}\n')

    before, broken, after = read_rows(str(file))

    assert before.columns == {"text": "before"}
    assert after.columns == {"text": "after"}
    assert broken.place == f"{file}, line 2"
    assert broken.fault
    assert "text" not in broken.fault or "a text" in broken.fault


def test_csv(tmp_path):
    """Quoted fields with commas, quotes and line breaks; the place is the line where the row begins."""
    file = tmp_path / "rows.csv"
    file.write_bytes(b'\xef\xbb\xbfid,text\n1,"a, ""b""\nc"\n\n2,' + "ü".encode() + b"x" * 200_000 + b"\n")

    first, second = read_rows(file)

    assert first.columns == {"id": "1", "text": 'a, "b"\nc'}
    assert second.columns == {"id": "2", "text": "ü" + "x" * 200_000}
    assert second.place == f"{file}, line 5"


@pytest.mark.parametrize(
    ("line", "fault"), [(b"1", "1 fields"), (b"1,2,3", "3 fields"), (b"1,\xff", "UTF-8"), (b'1,"a"b', "not CSV")]
)
def test_a_broken_line_of_csv(tmp_path, line, fault):
    """A line with too few or too many fields, or bytes that are no text, is a fault of that line."""
    file = tmp_path / "rows.csv"
    file.write_bytes(b"id,text\n1,a\n" + line + b"\n2,b\n")

    before, broken, after = read_rows(file)

    assert fault in broken.fault
    assert broken.place == f"{file}, line 3"
    assert (before.columns["text"], after.columns["text"]) == ("a", "b")


def test_a_column_named_twice(tmp_path):
    """Which of the two would be meant?"""
    (tmp_path / "rows.csv").write_text("id,id\n1,2\n")

    with pytest.raises(InputError, match="twice"):
        list(read_rows(tmp_path / "rows.csv"))


def test_parquet(tmp_path):
    """Types stay what they are: the template may use them."""
    file = tmp_path / "rows.parquet"
    rows = [
        {
            "day": dt.date(2026, 11, 22),
            "price": decimal.Decimal("1.10"),
            "raw": b"\x00",
            "x": float("inf"),
            "n": None,
        },
        {"day": None, "price": None, "raw": None, "x": None, "n": 7},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), file)

    assert columns(file) == rows


def test_a_file_that_is_no_parquet(tmp_path):
    """It is named, with the reader's own words."""
    (tmp_path / "rows.parquet").write_bytes(b"no")

    with pytest.raises(InputError, match=r"rows\.parquet cannot be read as Parquet"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_a_glob_is_read_in_the_order_of_names(tmp_path):
    """Folders and files may have wildcards; formats may be mixed."""
    for name, text in (("b/2.jsonl", '"b2"'), ("a/1.csv", "text\na1"), ("b/1.jsonl", '"b1"'), ("c.txt", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert [row["text"] for row in columns(f"{tmp_path}/*/*.*")] == ["a1", "b1", "b2"]
    assert [row["text"] for row in columns(f"file://{tmp_path}/b/[2].jsonl")] == ["b2"]


def test_object_storage_paths(tmp_path):
    """A path object of an object store is read through its own methods."""
    folder = UPath("memory://rows-of-test")
    (folder / "1.jsonl").write_text('"one"\n')
    (folder / "2.jsonl").write_text('"two"\n')

    assert columns(folder / "1.jsonl") == [{"text": "one"}]
    assert columns(folder / "*.jsonl") == [{"text": "one"}, {"text": "two"}]
    assert columns("memory://rows-of-test/*.jsonl") == [{"text": "one"}, {"text": "two"}]
    assert count_rows(folder / "1.jsonl") is None


def test_no_such_file_no_match_no_format(tmp_path):
    """Each is refused at once, naming what was looked for."""
    (tmp_path / "rows.xls").write_text("a")

    with pytest.raises(InputError, match=r"no file .*missing\.jsonl"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match=r"No file matches .*\*\.jsonl"):
        read_rows(tmp_path / "*.jsonl")
    with pytest.raises(InputError, match=r"\.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet"):
        read_rows(tmp_path / "rows.xls")


def test_a_file_is_closed_when_its_reader_is_left(tmp_path, recwarn):
    """A batch that stops early leaves no file open."""
    (tmp_path / "rows.jsonl").write_text('"a"\n"b"\n')
    gc.collect()
    recwarn.clear()
    rows = read_rows(tmp_path / "rows.jsonl")
    next(rows)
    del rows
    gc.collect()

    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_counting(tmp_path):
    """The number of rows is told where it is cheap to know."""
    (tmp_path / "a.jsonl").write_text('"a"\n"b"')
    (tmp_path / "b.csv").write_text("text\na\nb\nc\n")
    parquet.write_table(pa.table({"text": ["a"] * 5}), tmp_path / "c.parquet")

    assert count_rows(tmp_path / "*.*") == 10
    assert count_rows(["a", "b"]) == 2
    assert count_rows(iter(["a"])) is None
    assert count_rows(tmp_path / "missing.jsonl") is None


def test_counting_can_be_given_up(tmp_path):
    """The end of a batch does not wait for a large file to be counted."""
    (tmp_path / "a.jsonl").write_text('"a"')

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_rows(tmp_path / "a.jsonl", stop)


def test_the_content_of_a_row_is_one_text():
    """It does not depend on the order of columns, and knows the types that JSON does not."""
    first = {"a": dt.date(2026, 1, 2), "b": float("nan"), "c": b"x", "d": decimal.Decimal("1.0")}

    assert canonical_json(first) == canonical_json(dict(reversed(first.items())))
    assert canonical_json(first) != canonical_json(first | {"d": decimal.Decimal("1.00")})


class TestSeveralFiles:
    """A list whose texts all end like file names is a list of files: as texts the model would be asked about names."""

    @pytest.fixture
    def files(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / f"{name}.jsonl").write_text(f'"{name}"\n')
        return [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]

    @pytest.mark.parametrize("make", [list, tuple, iter], ids=["list", "tuple", "iterator"])
    @pytest.mark.parametrize("kind", [lambda path: path, str, UPath], ids=["Path", "str", "UPath"])
    def test_they_are_read_in_the_order_given(self, files, make, kind):
        assert columns(make([kind(file) for file in files])) == [{"text": "b"}, {"text": "a"}]

    def test_globs_among_them(self, tmp_path, files):
        assert columns([str(tmp_path / "a*.jsonl"), str(tmp_path / "*.jsonl")]) == [
            {"text": "a"}, {"text": "a"}, {"text": "b"},
        ]  # fmt: skip
        assert count_rows([str(tmp_path / "*.jsonl")] * 2) == 4

    def test_a_missing_one_is_named_before_the_first_is_read(self, files):
        with pytest.raises(InputError, match=r"no file .*c\.jsonl.*\"text\""):
            read_rows([str(files[0]), str(files[0].with_name("c.jsonl"))])

    def test_one_text_that_is_no_file_name_makes_all_of_them_texts(self):
        assert columns(["a.jsonl", "what is in a.jsonl?"]) == [{"text": "a.jsonl"}, {"text": "what is in a.jsonl?"}]
        assert columns(iter(["a.jsonl", "b"])) == [{"text": "a.jsonl"}, {"text": "b"}]
        assert columns([{"text": "a.jsonl"}]) == [{"text": "a.jsonl"}]


class Table:
    """As a DataFrame: iterated, it gives its columns."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (None, "they are None"),
        (7, "not 7"),
        (True, "not True"),
        (b"a", "not b'a'"),
        ({"text": "a"}, "one mapping"),
        (Table(), "to_dict"),
        (io.StringIO("a\n"), "Give its path"),
    ],
)
def test_what_is_no_rows_is_refused(rows, told):
    """With the argument's name, before anything is sent."""
    with pytest.raises(InputError, match=f"^rows: .*{told}"):
        read_rows(rows)


def test_names_of_columns_that_are_no_texts():
    """Nothing can name such a column, and sorting them with others would fail."""
    good, bad = read_rows([{"a": 1}, {1: "a", "b": 2}])

    assert good.fault is None
    assert "names of columns" in bad.fault


@pytest.mark.parametrize("name", ["a[1].jsonl", "what?.jsonl", "*.jsonl", "[a-z].jsonl"])
def test_a_file_that_is_called_like_a_pattern(tmp_path, name):
    """Locally and in a store, a file by exactly that name is meant before what matches."""
    for folder in (tmp_path, UPath(f"memory://patterns-{tmp_path.name}-{len(name)}")):
        (folder / name).write_text('"meant"\n')
        (folder / "other.jsonl").write_text('"other"\n')

        assert columns(str(folder / name)) == [{"text": "meant"}]


def test_a_folder_that_is_called_like_a_pattern(tmp_path):
    """The wildcards of the file count, those of a folder that is there do not."""
    folder = tmp_path / "run [1]"
    folder.mkdir()
    (folder / "a.jsonl").write_text('"a"\n')

    assert columns(folder / "*.jsonl") == [{"text": "a"}]


class TestWhatCannotBeOpened:
    """An `InputError` that says what is wrong, whatever the system or the store's library raises."""

    def told(self, rows) -> str:
        with pytest.raises(InputError) as raised:
            list(read_rows(rows))
        return str(raised.value)

    def test_a_folder(self, tmp_path):
        assert self.told(str(tmp_path)) == f"{tmp_path} is a folder. Name the files in it, such as {tmp_path}/*.jsonl."
        (tmp_path / "a.jsonl").mkdir()
        assert "is a folder" in self.told(tmp_path / "a.jsonl")

    def test_a_pipe_and_a_device(self, tmp_path):
        os.mkfifo(tmp_path / "a.jsonl")
        assert "not a regular file" in self.told(tmp_path / "a.jsonl")
        assert "not a regular file" in self.told("/dev/zero")

    @pytest.mark.parametrize(
        "text", ["a" * 5000, "a\0b.jsonl", "Summarise this.\n" * 300], ids=["long", "NUL", "lines"]
    )
    def test_a_text_that_is_no_path(self, text):
        assert self.told(text)

    @pytest.mark.parametrize("text", ["abfs://container/a.jsonl", "nowhere://bucket/a.jsonl", "gs://bucket/*.jsonl"])
    def test_a_protocol_without_its_driver(self, text):
        assert text in self.told(text)

    def test_a_pattern_that_is_none(self, tmp_path):
        assert self.told(f"{tmp_path}/a**/[.jsonl")

    def test_a_file_that_vanishes(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('"a"\n')
        (tmp_path / "b.jsonl").write_text('"b"\n')
        rows = read_rows(tmp_path / "*.jsonl")
        next(rows)
        (tmp_path / "b.jsonl").unlink()
        with pytest.raises(InputError, match=r"no file .*b\.jsonl"):
            next(rows)

    def test_a_store_that_fails_may_come_back(self, tmp_path):
        """It is no fault of the input, so a retry has a point; the library's own words may hold a signed address."""

        class Broken(type(tmp_path)):
            failure: Exception

            def open(self, *_, **__):
                raise self.failure

        (tmp_path / "a.jsonl").write_text('"a"\n')
        for failure in (RuntimeError("https://store/a?signature=secret"), TimeoutError(110, "timed out")):
            path = Broken(tmp_path / "a.jsonl")
            path.failure = failure
            with pytest.raises(StorageError, match=r"RuntimeError|timed out") as raised:
                list(read_rows(path))
            assert "secret" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".CSV", ".Ndjson"])
def test_an_empty_file_has_no_rows(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)

    assert columns(tmp_path / f"a{suffix}") == []


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tmp_path, suffix, encoding):
    """With what to do, instead of one broken row after the other."""
    (tmp_path / f"a{suffix}").write_text('{"text": "a"}\n', encoding=encoding)

    with pytest.raises(InputError, match=r"UTF-16.*iconv"):
        list(read_rows(tmp_path / f"a{suffix}"))


def test_the_first_column_of_a_file_of_excel(tmp_path):
    """A byte order mark before a quoted name does not make the quotes a part of it."""
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"text","id"\r\n"a","1"\r\n')

    assert columns(tmp_path / "a.csv") == [{"text": "a", "id": "1"}]


@pytest.mark.parametrize(
    ("first", "found"),
    [
        ("id;text", "semicolons"),
        ('"id";"text"', "semicolons"),
        ("id\ttext", "tabs"),
        ("id|text", "bars"),
        ("sep=;", "semi"),
    ],
)
def test_other_separators_are_named(tmp_path, first, found):
    (tmp_path / "a.csv").write_text(f"{first}\n1{first[-1]}2\n")

    with pytest.raises(InputError, match=f"separates the names with .*{found}"):
        list(read_rows(tmp_path / "a.csv"))


def test_a_separator_within_a_name_is_none(tmp_path):
    (tmp_path / "a.csv").write_text('"a;b"\n1\n')
    (tmp_path / "b.csv").write_text("a;b,c\n1,2\n")

    assert columns(tmp_path / "a.csv") == [{"a;b": "1"}]
    assert columns(tmp_path / "b.csv") == [{"a;b": "1", "c": "2"}]


def test_names_of_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_text("größe,text\n1,a\n", encoding="latin-1")

    with pytest.raises(InputError, match="not UTF-8"):
        list(read_rows(tmp_path / "a.csv"))


def test_a_quote_that_is_never_closed(tmp_path):
    """What follows is a part of that field, and the text says so."""
    (tmp_path / "a.csv").write_text('text\na\n"b\nc\nd\n')

    good, bad = read_rows(tmp_path / "a.csv")

    assert good.columns == {"text": "a"}
    assert (bad.place.endswith("line 3"), bad.fault) == (
        True,
        "this is not CSV: a quote that opens here is never closed",
    )


class TestLongLines:
    """A line that is longer than any row costs a bounded amount of memory, and only its own row."""

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        monkeypatch.setattr(text_files, "MAX_LINE", 1000)

    @pytest.mark.parametrize("size", [1001, 5000])
    def test_of_json(self, tmp_path, size):
        long = json.dumps({"text": "x" * (size - 12)})
        (tmp_path / "a.jsonl").write_text(f'"a"\n{long}\n"b"\n{long}')

        first, bad, last, end = read_rows(tmp_path / "a.jsonl")

        assert (first.columns["text"], last.columns["text"]) == ("a", "b")
        assert "longer" in bad.fault
        assert len(bad.columns["raw"]) <= 1000
        assert "longer" in end.fault

    def test_of_csv(self, tmp_path):
        long = "x" * 3000
        (tmp_path / "a.csv").write_text(f"text,n\na,1\n{long},2\nb,3\n")

        first, bad, last = read_rows(tmp_path / "a.csv")

        assert (first.columns["text"], last.columns["text"]) == ("a", "b")
        assert "longer" in bad.fault
        assert (bad.place[-6:], last.place[-6:]) == ("line 3", "line 4")

    @pytest.mark.parametrize("field", ["y,1\n" * 3000, "y\n" + "y" * 3000 + "\ny,1\n"], ids=["lines", "line"])
    def test_a_field_of_csv_that_does_not_end(self, tmp_path, field):
        """What follows is a part of it, and must not be taken for rows."""
        (tmp_path / "a.csv").write_text(f'text,n\na,1\n"{field}",2\nb,3\n')
        rows = read_rows(tmp_path / "a.csv")

        assert next(rows).columns["text"] == "a"
        with pytest.raises(InputError, match="line 3: a field that begins here"):
            next(rows)

    def test_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(text_files, "MAX_LINE", 1 << 20)
        with (tmp_path / "a.jsonl").open("wb") as file:
            file.truncate(1 << 27)

        tracemalloc.start()
        (row,) = read_rows(tmp_path / "a.jsonl")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert "longer" in row.fault
        assert peak < 10_000_000


@pytest.mark.parametrize(
    "line", ['{"text": "a\0"}', "\0" * 20, '{"text": 1e400}x', "[" * 100_000, '{"n": ' + "9" * 10_000 + "}"]
)
def test_odd_json_is_a_fault_of_its_line(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'"a"\n{line}\n"b"\n')

    first, bad, last = read_rows(tmp_path / "a.jsonl")

    assert (first.columns["text"], last.columns["text"]) == ("a", "b")
    assert "not JSON" in bad.fault


@pytest.mark.parametrize(
    ("content", "told"), [('[\n{"a": 1}\n]', "a list begins here"), ('[{"a": 1}]', "this is a list")]
)
def test_a_file_that_is_one_list_is_told(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_text(content)

    assert told in next(read_rows(tmp_path / "a.jsonl")).fault


def test_the_place_of_a_row_can_be_written(tmp_path):
    """The name of a file need not be UTF-8; the results must be."""
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    try:
        file.write_text("no\n")
    except OSError:
        pytest.skip("this file system wants names in UTF-8")

    (row,) = read_rows(file)

    assert row.place.encode().endswith(b"/\\udcff.jsonl, line 1")


class TestParquetTypes:
    """Values that Python has no type for."""

    MOMENT = 1_700_000_000_123_456_789

    def read(self, tmp_path, **columns):
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        return list(read_rows(tmp_path / "a.parquet"))

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (pa.timestamp("ns"), dt.datetime(2023, 11, 14, 22, 13, 20, 123456)),  # noqa: DTZ001  # it has no zone
            (pa.timestamp("ns", "UTC"), dt.datetime(2023, 11, 14, 22, 13, 20, 123456, dt.UTC)),
            (pa.duration("ns"), dt.timedelta(seconds=1_700_000_000, microseconds=123456)),
        ],
        ids=str,
    )
    def test_nanoseconds_are_read_to_the_microsecond(self, tmp_path, kind, value):
        (row,) = self.read(
            tmp_path,
            plain=pa.array([self.MOMENT], kind),
            list=pa.array([[self.MOMENT]], pa.list_(kind)),
            struct=pa.array([{"a": {"b": self.MOMENT}}], pa.struct({"a": pa.struct({"b": kind})})),
            map=pa.array([[("a", self.MOMENT)]], pa.map_(pa.string(), kind)),
        )

        assert row.columns == {"plain": value, "list": [value], "struct": {"a": {"b": value}}, "map": [("a", value)]}

    def test_a_time_of_day(self, tmp_path):
        (row,) = self.read(tmp_path, t=pa.array([3_600_000_000_001], pa.time64("ns")))

        assert row.columns == {"t": dt.time(1)}

    def test_the_far_future_of_spark(self, tmp_path):
        """Its old times would wrap around in nanoseconds."""
        moment = dt.datetime(9999, 12, 31)  # noqa: DTZ001  # it has no zone
        table = pa.table({"t": pa.array([moment], pa.timestamp("us"))})
        parquet.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)

        assert columns(tmp_path / "a.parquet") == [{"t": moment}]

    @pytest.mark.parametrize(
        ("good", "bad", "kind"),
        [(0, 10**15, pa.date64()), (0, 10**18, pa.timestamp("us")), (0, 10**15, pa.timestamp("ms", "UTC"))],
        ids=str,
    )
    def test_a_value_beyond_python_is_a_fault_of_its_row(self, tmp_path, good, bad, kind):
        first, second, third = self.read(tmp_path, n=[1, 2, 3], t=pa.array([good, bad, good], kind))

        assert (first.fault, third.fault, third.columns["n"]) == (None, None, 3)
        assert "column 't'" in second.fault
        assert second.place.endswith("row 1")

    def test_text_that_is_not_utf_8(self, tmp_path):
        buffers = [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")]
        first, second = self.read(tmp_path, t=pa.Array.from_buffers(pa.string(), 2, buffers))

        assert first.columns == {"t": "a"}
        assert "UnicodeDecodeError" in second.fault

    def test_a_column_named_twice(self, tmp_path):
        parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")

        with pytest.raises(InputError, match="twice"):
            list(read_rows(tmp_path / "a.parquet"))

    def test_counting_a_file_that_is_none(self, tmp_path):
        """The reader says what is wrong with it; the count only does without."""
        (tmp_path / "a.parquet").write_bytes(b"no")

        assert count_rows(tmp_path / "a.parquet") is None


_CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=6)
_NAMES = st.lists(_CELLS.filter(bool), min_size=1, max_size=3, unique=True)


@given(st.data())
def test_csv_is_read_as_it_was_written(tmp_path_factory, data):
    """Whatever stands in its fields: quotes, commas, line breaks, separators of Unicode."""
    names = data.draw(_NAMES)
    rows = data.draw(st.lists(st.lists(_CELLS, min_size=len(names), max_size=len(names)), max_size=4))
    file = tmp_path_factory.mktemp("csv") / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        # A row of one empty field is a blank line if it is not quoted.
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([names, *rows])

    assert columns(file) == [dict(zip(names, row, strict=True)) for row in rows]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_CELLS, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(_CELLS, _VALUES, max_size=3) | _CELLS, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_jsonl_is_read_as_it_was_written(tmp_path_factory, rows, ensure_ascii, end):
    """Every row, in its order; a text is a row with one column."""
    file = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    text = end.join(json.dumps(row, ensure_ascii=ensure_ascii) for row in rows)
    file.write_bytes(text.encode())

    assert columns(file) == [row if isinstance(row, dict) else {"text": row} for row in rows]
