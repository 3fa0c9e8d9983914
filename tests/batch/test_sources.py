"""Rows from lists, files and globs."""

import datetime as dt
import decimal
import gc
import json

import pyarrow as pa
import pytest
from pyarrow import parquet
from upath import UPath

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.sources import canonical, count_rows, read_rows


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


def test_one_mapping_instead_of_a_list():
    """The commonest slip is named."""
    with pytest.raises(InputError, match="one mapping"):
        read_rows({"text": "a"})


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
    (tmp_path / "rows.txt").write_text("a")

    with pytest.raises(InputError, match=r"no file .*missing\.jsonl"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match=r"No file matches .*\*\.jsonl"):
        read_rows(tmp_path / "*.jsonl")
    with pytest.raises(InputError, match=r"\.jsonl, \.ndjson, \.csv, \.parquet"):
        read_rows(tmp_path / "rows.txt")


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

    assert canonical(first) == canonical(dict(reversed(first.items())))
    assert canonical(first) != canonical(first | {"d": decimal.Decimal("1.00")})
