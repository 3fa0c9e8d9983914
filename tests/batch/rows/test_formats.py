"""Files as they lie there: compressed, with other separators and encodings, and one list of JSON."""

import bz2
import gzip
import itertools
import json
import lzma
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows import text_files
from ollama_provider.batch.rows.sources import count_rows, read_rows

DATA = Path(__file__).parents[2] / "data/inputs"
ROWS = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
#: The files that need options.
OPTIONS = {
    "semicolons-latin-1.csv": InputOptions(delimiter=";", encoding="latin-1"),
    "utf-16.tsv": InputOptions(encoding="UTF-16"),
    "latin-1.json.gz": InputOptions(encoding="iso-8859-1"),
}
FILES = sorted(path.name for path in DATA.glob("[rslu]*.*"))
COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def columns(rows, options=InputOptions()):  # noqa: B008
    found = list(read_rows(rows, options))
    assert not [row.fault for row in found if row.fault]
    return [row.columns for row in found]


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_in_every_form(name):
    """Three rows with quotes, umlauts, line breaks and all separators."""
    assert columns(DATA / name, OPTIONS.get(name, InputOptions())) == ROWS


def test_files_in_an_object_store():
    """They are decompressed and decoded as they are read from it."""
    for name in ("rows.csv.gz", "rows.jsonl.zst", "latin-1.json.gz"):
        (path := UPath(f"memory://inputs/{name}")).write_bytes((DATA / name).read_bytes())

        assert columns(path, OPTIONS.get(name, InputOptions())) == ROWS


@pytest.mark.parametrize("name", FILES)
def test_files_as_airflow_2_opens_them(name):
    """It wraps a file of a store in an object that hands on every attribute, and cannot be iterated."""

    class Wrapped:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    class Path2(type(DATA)):
        def open(self, *arguments):
            return Wrapped(super().open(*arguments))

    assert columns(Path2(DATA / name), OPTIONS.get(name, InputOptions())) == ROWS


def test_texts_that_end_in_such_suffixes_are_files():
    """As those of the other suffixes."""
    assert columns([str(DATA / "rows.json"), str(DATA / "rows.csv.gz")]) == ROWS * 2


@pytest.mark.parametrize("suffix", COMPRESS)
class TestCompressed:
    """Files that are decompressed while they are read."""

    def test_several_streams_in_one_file(self, tmp_path, suffix):
        """As `cat` and parallel compressors make them."""
        part = COMPRESS[suffix](b'"a"\n"b"\n')
        (tmp_path / f"a.jsonl{suffix}").write_bytes(part + part)

        assert [row["text"] for row in columns(tmp_path / f"a.jsonl{suffix}")] == ["a", "b", "a", "b"]

    def test_a_file_that_breaks_off(self, tmp_path, suffix):
        """Its rows are not taken for all there are."""
        lines = "".join(f'"{number} {number * 7919 % 10007}"\n' for number in range(50_000)).encode()
        whole = COMPRESS[suffix](lines)
        (tmp_path / f"a.jsonl{suffix}").write_bytes(whole[: len(whole) // 2])

        with pytest.raises(InputError, match="damaged or not complete"):
            list(read_rows(tmp_path / f"a.jsonl{suffix}"))

    def test_a_file_that_is_not_compressed(self, tmp_path, suffix):
        (tmp_path / f"a.csv{suffix}").write_text("id,text\n" + "1,a\n" * 100)

        with pytest.raises(InputError, match="cannot be decompressed"):
            list(read_rows(tmp_path / f"a.csv{suffix}"))

    def test_memory(self, tmp_path, suffix, monkeypatch):
        """A line that decompresses to more than any row is one broken row."""
        monkeypatch.setattr(text_files, "MAX_LINE", 1 << 20)
        (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](bytes(1 << 25)))

        tracemalloc.start()
        (row,) = read_rows(tmp_path / f"a.jsonl{suffix}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert "longer" in row.fault
        assert peak < 16_000_000  # of these, 8 MB are the dictionary of xz

    def test_rows_are_not_counted(self, tmp_path, suffix):
        """That would decompress the whole file."""
        (tmp_path / f"a.csv{suffix}").write_bytes(COMPRESS[suffix](b"id\n1\n"))

        assert count_rows(tmp_path / f"a.csv{suffix}") is None


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python itself reads Zstandard since 3.14")
def test_the_package_that_zstandard_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(InputError, match=r"pip install 'airflow-provider-ollama\[parquet\]'"):
        list(read_rows(DATA / "rows.jsonl.zst"))


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.parquet.gz", "compressed inside"), ("a.gz", "suffix must be"), ("a.csv.zip", "suffix must be")],
)
def test_what_cannot_be_decompressed_is_told(tmp_path, name, told):
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(InputError, match=told):
        read_rows(tmp_path / name)


class TestSeparators:
    """Of CSV, and what is said about a wrong one."""

    @pytest.mark.parametrize(
        ("name", "first", "told"),
        [
            ("a.csv", "id;text", '{"delimiter": ";"}'),
            ("a.csv", "id\ttext", '{"delimiter": "\\t"}'),
            ("a.csv", "id|text", '{"delimiter": "|"}'),
            ("a.tsv", "id,text", '{"delimiter": ","}'),
        ],
    )
    def test_the_error_says_what_to_do(self, tmp_path, name, first, told):
        (tmp_path / name).write_text(f"{first}\n")

        with pytest.raises(InputError) as error:
            list(read_rows(tmp_path / name))

        assert f"input_options={told}" in str(error.value)

    def test_a_named_delimiter_is_believed(self, tmp_path):
        """So a file of one column may have a semicolon in its name."""
        (tmp_path / "a.csv").write_text("a;b\n1\n")

        assert columns(tmp_path / "a.csv", InputOptions(delimiter=",")) == [{"a;b": "1"}]

    def test_the_line_of_excel(self, tmp_path):
        """It tells Excel the separator, and names no column."""
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\nid;text\r\n1;a\r\n")

        (row,) = read_rows(tmp_path / "a.csv", InputOptions(delimiter=";"))

        assert row.columns == {"id": "1", "text": "a"}
        assert row.place.endswith("line 3")

    def test_other_quotes_and_none(self, tmp_path):
        (tmp_path / "a.tsv").write_text('id\ttext\n1\t"Stranger", 27" wide\n')
        (tmp_path / "b.csv").write_text("id,text\n1,'a,b'\n")

        assert columns(tmp_path / "a.tsv", InputOptions(quote=""))[0]["text"] == '"Stranger", 27" wide'
        assert columns(tmp_path / "b.csv", InputOptions(quote="'"))[0]["text"] == "a,b"
        with pytest.raises(InputError, match="both as delimiter and as quote"):
            list(read_rows(tmp_path / "b.csv", InputOptions(quote=",")))

    @pytest.mark.parametrize("wrong", [";;", "", "\n", 5])
    def test_what_is_no_delimiter(self, wrong):
        with pytest.raises(InvalidRequestError, match=r"input_options\.delimiter: .* is not one character"):
            InputOptions(delimiter=wrong)

    def test_a_tab_on_a_command_line(self):
        assert InputOptions(delimiter=r"\t") == InputOptions(delimiter="\t")


class TestEncodings:
    """Of text, whatever the format."""

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis", "utf-8-sig"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
    def test_each_is_read(self, tmp_path, encoding, name):
        text = {"a.jsonl": '"größe"\n', "a.json": '["größe"]', "a.csv": "text\ngröße\n"}[name]
        text = text.replace("größe", "カナ") if encoding == "shift_jis" else text
        (tmp_path / name).write_text(text, encoding=encoding)

        assert columns(tmp_path / name, InputOptions(encoding=encoding))[0]["text"] in {"größe", "カナ"}

    def test_a_byte_that_the_encoding_lacks_fails_its_row(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(b"text\na\n\x81\nb\n")

        first, bad, last = read_rows(tmp_path / "a.csv", InputOptions(encoding="cp1252"))

        assert (first.columns["text"], last.columns["text"]) == ("a", "b")
        assert "not UTF-8" in bad.fault

    @pytest.mark.parametrize("wrong", ["latin1000", "rot13", "", "a\0b", 8.5])
    def test_what_is_no_encoding(self, wrong):
        with pytest.raises(InvalidRequestError, match=r"input_options\.encoding"):
            InputOptions(encoding=wrong)


class TestJsonList:
    """A file that is one list, of which one row at a time is in memory."""

    @staticmethod
    def read(path, text):
        (path / "a.json").write_text(text)
        return read_rows(path / "a.json")

    def test_objects_texts_and_others(self, tmp_path):
        first, second, *others = self.read(tmp_path, ' [{"a": [1]}, "b", 7, null, [1], true]\n')

        assert (first.columns, second.columns) == ({"a": [1]}, {"text": "b"})
        assert [row.fault.rpartition(" is ")[2] for row in others] == ["a number", "null", "a list", "a truth value"]
        assert others[0].place.endswith("a.json, row 2")

    @pytest.mark.parametrize("text", ["", " \n", "[]", "[ ]"])
    def test_no_rows(self, tmp_path, text):
        assert list(self.read(tmp_path, text)) == []

    @pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1}\n{"a": 2}\n', "7"])
    def test_what_is_no_list(self, tmp_path, text):
        with pytest.raises(InputError, match=r"does not begin with a list.*\.jsonl"):
            list(self.read(tmp_path, text))

    @pytest.mark.parametrize("rest", ["", ",", ",]", " {}]", ', {"b": }]', "]]", ', "c', ", 12", f", {'[' * 100_000}"])
    def test_a_list_that_is_wrong_from_some_place_on(self, tmp_path, rest):
        """The rows after that place are unknown, so the file is refused and not cut."""
        rows = self.read(tmp_path, f'["a"{rest}')

        assert next(rows).columns == {"text": "a"}
        with pytest.raises(InputError, match=r"a\.json"):
            list(rows)

    def test_a_row_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(text_files, "MAX_LINE", 1 << 21)

        with pytest.raises(InputError, match="row 0: it is not JSON, or longer than 2 MB"):
            list(self.read(tmp_path, f'["{"x" * 5_000_000}"]'))

    def test_another_encoding_is_told(self, tmp_path):
        (tmp_path / "a.json").write_bytes('["größe"]'.encode("latin-1"))

        with pytest.raises(InputError, match=r'is not UTF-8.*\{"encoding": "latin-1"\}'):
            list(read_rows(tmp_path / "a.json"))

    def test_memory(self, tmp_path):
        with (tmp_path / "a.json").open("w") as file:
            file.write("[" + ",".join(json.dumps({"text": "ä" * 1000}) for _ in range(5000)) + "]")

        tracemalloc.start()
        assert sum(1 for _ in read_rows(tmp_path / "a.json")) == 5000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (tmp_path / "a.json").stat().st_size / 3

    @given(
        st.lists(
            st.text() | st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.none()),
        ),
        st.sampled_from([None, 1, "\t"]),
        st.booleans(),
    )
    def test_it_is_read_as_it_was_written(self, tmp_path_factory, rows, indent, ensure_ascii):
        file = tmp_path_factory.getbasetemp() / "list.json"
        written = json.dumps(rows, indent=indent, ensure_ascii=ensure_ascii)
        file.write_bytes(written.encode("utf-8", "replace"))

        expected = json.loads(written.encode("utf-8", "replace"))
        assert columns(file) == [{"text": row} if isinstance(row, str) else row for row in expected]

    def test_the_pieces_of_a_file_may_end_anywhere(self, tmp_path):
        """A number, a text or a letter may be split between two reads."""
        expected = [{"n": 10**12 + number, "text": "aä€😀" * (number % 7)} for number in range(200)]
        (tmp_path / "a.json").write_text(json.dumps(expected, ensure_ascii=False), encoding="utf-8")
        sizes = itertools.cycle([1, 2, 3, 5, 7])

        class Slow:
            suffix, name = ".json", "a.json"

            def is_file(self):
                return True

            def iterdir(self):
                raise NotImplementedError

            def open(self, mode):
                file = (tmp_path / "a.json").open(mode)
                read = file.raw.read

                class Raw:
                    def __enter__(self):
                        return self

                    def __exit__(self, *_):
                        file.close()

                    def read(self, _):
                        return read(next(sizes))

                return Raw()

        assert columns(Slow()) == expected


class TestTables:
    """Tables in memory, by the protocol with which their libraries hand them on."""

    class Frame:
        """A table of another library, such as a data frame of pandas."""

        columns = ("id", "text")

        def __init__(self, table):
            self._table = table

        def __len__(self):
            return len(self._table)

        def __arrow_c_stream__(self, requested_schema=None):
            return self._table.__arrow_c_stream__(requested_schema)

    @pytest.mark.parametrize("kind", [lambda table: table, lambda table: table.to_reader(), Frame])
    def test_each_is_read(self, kind):
        table = pa.table({"id": range(200), "text": [f"text {number}" for number in range(200)]})

        rows = list(read_rows(kind(table)))

        assert [row.columns for row in rows] == table.to_pylist()
        assert rows[70].place == "the table, row 70"

    def test_rows_are_counted_without_reading_them(self):
        assert count_rows(self.Frame(pa.table({"text": ["a", "b"]}))) == 2

    def test_times_of_pandas(self):
        """They have nanoseconds, which Python's do not."""
        table = pa.table({"at": pa.array([1_000_001], pa.timestamp("ns", "UTC"))})

        (row,) = columns(table)

        assert row["at"].microsecond == 1000

    def test_a_column_named_twice(self):
        with pytest.raises(InputError, match="names a column twice"):
            list(read_rows(pa.table([[1], [2]], names=["a", "a"])))

    def test_what_arrow_cannot_hold(self):
        """The text of such an error may quote a value, so ours does not have it."""

        class Mixed:
            def __arrow_c_stream__(self, requested_schema=None):
                return pa.array(["secret", 1])

        with pytest.raises(InputError, match=r"cannot be read as Arrow \(Arrow\w+\)") as error:
            list(read_rows(Mixed()))
        assert "secret" not in str(error.value)

    def test_the_package_that_it_needs_is_named(self, monkeypatch):
        table = pa.table({"text": ["a"]})
        monkeypatch.setitem(sys.modules, "pyarrow", None)

        with pytest.raises(InputError, match=r"pip install 'airflow-provider-ollama\[parquet\]'"):
            list(read_rows(table))
