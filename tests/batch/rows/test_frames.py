"""Tables of pandas, polars and DuckDB as rows: real ones, with the types that people have in them."""

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import duckdb
import pandas as pd
import polars as pl
import pytest

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows.sources import count_rows, read_rows
from ollama_provider.testing import Model

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
COLUMNS = {
    "id": [1, 2],
    "text": ["Größe 🎉", None],
    "at": [AT, None],
    "day": [date(2026, 1, 2), None],
    "tags": [["a", "b"], []],
    "price": [Decimal("1.10"), None],
    "kind": ["x", "y"],
    "good": [True, None],
}
ROWS = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]


def of_pandas():
    return pd.DataFrame(COLUMNS).astype({"kind": "category"})


def of_polars():
    return pl.DataFrame(COLUMNS).with_columns(pl.col("kind").cast(pl.Categorical))


def of_duckdb():
    frame = pl.DataFrame(COLUMNS)  # noqa: F841  # which the query takes by its name
    return duckdb.sql("SELECT * REPLACE (kind::ENUM('x', 'y') AS kind) FROM frame ORDER BY id")


@pytest.fixture(params=[of_pandas, of_polars, of_duckdb], ids=["pandas", "polars", "duckdb"])
def table(request):
    return request.param()


def columns(rows):
    return [row.columns for row in read_rows(rows)]


def test_each_gives_the_same_rows(table):
    """As Python has them: what is missing is None, also where the library says NaN or NaT."""
    assert columns(table) == ROWS


def test_each_is_counted(table):
    """Before it is read."""
    assert count_rows(table) == 2


def test_each_can_be_read_again(table):
    """A first look at the rows, or a rehearsal, takes none of them away."""
    assert columns(table) == columns(table)


def test_numbers_of_pandas_that_are_missing():
    """In a column of whole numbers with a mask, and in one of fractions, where pandas has NaN."""
    frame = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "f": [1.5, float("nan")]})

    assert columns(frame) == [{"n": 1, "f": 1.5}, {"n": None, "f": None}]


def test_an_index_of_pandas():
    """A named one is a column, one without a name is none, also where a filter has left holes in it."""
    unnamed = pd.DataFrame({"text": ["a", "b", "c", "d"]}).iloc[[0, 1, 3]]
    named = pd.DataFrame({"text": ["a"]}, index=pd.Index(["k"], name="key"))

    assert columns(unnamed) == [{"text": "a"}, {"text": "b"}, {"text": "d"}]
    assert columns(unnamed.reset_index())[2] == {"index": 3, "text": "d"}
    assert columns(named) == [{"text": "a", "key": "k"}]


def test_a_part_of_a_table():
    """What a filter leaves, with the rest of its table behind it in memory."""
    frame = pd.DataFrame({"id": range(100), "text": [f"text {number}" for number in range(100)]})
    lines = pl.DataFrame({"id": range(100), "text": [f"text {number}" for number in range(100)]})

    expected = [{"id": 97, "text": "text 97"}, {"id": 98, "text": "text 98"}]
    assert columns(frame[(frame.id > 96) & (frame.id < 99)]) == expected
    assert columns(lines.filter((pl.col("id") > 96) & (pl.col("id") < 99))) == expected


def test_what_duckdb_has_besides():
    """Numbers of 128 bits, structures, ids and intervals."""
    query = "SELECT 12345678901234567890123::HUGEINT h, {'x': 1} s, uuid() u, INTERVAL 90 MINUTE i, NULL n"

    (row,) = columns(duckdb.sql(query))

    assert (row["h"], row["s"], row["n"]) == (12345678901234567890123, {"x": 1}, None)
    assert len(row["u"]) == 36
    assert timedelta(microseconds=row["i"].nanoseconds / 1000) == timedelta(minutes=90)


def test_no_rows():
    """A table without rows has none; it is no error here."""
    assert columns(pd.DataFrame({"text": []})) == columns(pl.DataFrame({"text": []})) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pd.DataFrame({"a": ["secret", 1]}),
        lambda: pd.DataFrame([["secret", "b"]], columns=["a", "a"]),
        lambda: pl.Series("a", ["secret"]),
    ],
    ids=["mixed types of pandas", "two columns of pandas with one name", "a single column of polars"],
)
def test_what_is_no_table(wrong):
    """The error says what it may be, and quotes nothing."""
    with pytest.raises(InputError, match="mix types, does it name one twice, or is it a single column") as error:
        list(read_rows(wrong()))
    assert "secret" not in str(error.value)


@pytest.mark.filterwarnings("ignore::polars.exceptions.PerformanceWarning")
def test_a_lazy_table_is_no_table_yet():
    """Whoever gives it is told what to do."""
    with pytest.raises(InputError, match=r"of a lazy one, what its collect\(\) returns"):
        list(read_rows(pl.DataFrame(COLUMNS).lazy()))


@pytest.mark.ollama(models=[Model("emb", ("embedding",), embedding_length=8)])
def test_tables_need_no_numpy(ollama, tmp_path):
    """The tests have it because of pandas. pyarrow does without, and so do we, for rows and for vectors in Parquet."""
    source = """
import sys
sys.modules["numpy"] = None
import pyarrow as pa
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Embedding, run_batch
spec = BatchSpec(model="emb", rows=pa.table({"text": ["a", "b"]}), embedding=Embedding())
print(run_batch(spec, Settings(base_url=sys.argv[1]), sys.argv[2]).ok)
"""
    command = [sys.executable, "-c", source, ollama.url, str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout == "2\n", done.stderr
    assert (tmp_path / "results.parquet").exists()
