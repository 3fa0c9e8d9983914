"""Results as Parquet: its columns, and answers that a column cannot hold. These fail alone."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.results.files import json_lines_format, write_results
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.parquet import arrow_type, parquet_format
from ollama_provider.batch.store.journal import Journal, State
from ollama_provider.batch.store.keys import Keys
from ollama_provider.batch.store.lines import encode_vector, shared_fields
from ollama_provider.batch.store.storage import open_storage
from ollama_provider.testing import Fail

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "object", "properties": {"deep": {"type": "integer"}}}},
    },
    "required": ["n"],
}


class Directory:
    """Outcomes in a directory, and the results that are made of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storage = open_storage(path)
        self.keys = Keys("digest", {})

    def write(self, results, outcomes, ids=None):
        journal = Journal(self.storage, 1)
        order = RowOrder(with_fields=ids is not None)
        for number, given in enumerate(outcomes):
            key = self.keys.key(str(number))
            found, state = journal.find(key)
            if state is State.NEW:
                journal.add(found, Outcome(**({"key": key.hex(), "status": "ok"} | given)), shared_fields({"seed": 1}))
            order.add(found, None if ids is None else ids[number])
        if journal.end_part():
            journal.seal_parts()
        written = write_results(self.storage, journal, order, results)
        order.close()
        return written

    @property
    def table(self):
        return parquet.read_table(self.path / "results.parquet")

    def failed(self):
        return [json.loads(line) for line in (self.path / "failed.jsonl").read_text().splitlines()]


@pytest.fixture
def directory(tmp_path):
    return Directory(tmp_path / "out")


UNFIT = {
    "an integer over 64 bits": ({"n": 10**30}, "output.n: an integer over 64 bits"),
    "one over": ({"n": 1 << 63}, "output.n: an integer"),
    "one under": ({"n": -(1 << 63) - 1}, "output.n: an integer"),
    "a whole number in exponents": ({"n": 1e30}, "output.n: an integer"),
    "half a number": ({"n": 7.5}, "output.n: not an integer"),
    "a word": ({"n": "seven"}, "output.n: not an integer"),
    "a flag": ({"n": True}, "output.n: not an integer"),
    "a number of 400 digits": ({"n": 1, "x": 10**400}, "output.x: a number over 64 bits"),
    "not an object": ([1], "output: not an object"),
    "deep inside": ({"n": 1, "tags": [{"deep": 10**30}]}, "output.tags.deep: an integer"),
    "not a list": ({"n": 1, "tags": "a"}, "output.tags: not a list"),
}


@pytest.mark.parametrize(("output", "why"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("place", [0, 1500, 2499])
def test_an_answer_that_its_column_cannot_hold_fails_alone(directory, output, why, place):
    """The columns are those of the schema, and all other rows have their answers, wherever the bad one is."""
    outcomes = [{"output": {"n": number}} for number in range(2500)]
    outcomes[place] = {"output": output}

    written = directory.write(parquet_format(SCHEMA, vectors=False), outcomes)

    assert (written.failed, written.refused, written.refused_fresh) == (1, 1, 1)
    found = directory.table.to_pylist()
    assert [row["index"] for row in found] == list(range(2500))
    bad = found.pop(place)
    assert (bad["status"], bad["output"], bad["error_class"]) == ("failed", None, "RefusedByTable")
    assert bad["error_text"].startswith(f"results.parquet: {why}")
    assert json.loads(bad["reply"]) == output
    assert all(row["status"] == "ok" and row["output"]["n"] == row["index"] for row in found)
    (failed,) = directory.failed()
    assert (failed["index"], failed["error"]["class"]) == (place, "RefusedByTable")


@pytest.mark.parametrize(
    "odd",
    [
        {"tokens": 1 << 63},
        {"prompt_tokens": 10**40},
        {"tokens": "many"},
        {"seconds": [1]},
        {"thinking": 7},
        {"done_reason": {"a": 1}},
        {"prompt_cut": "yes"},
        {"attempts": -(1 << 64)},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", ["ok", "failed"])
def test_a_count_or_a_field_of_another_type_fails_its_row_alone(directory, odd, status):
    """A server may send anything beside an answer. A row that had failed already loses only the odd value."""
    fault = {"error": {"class": "X", "text": "y"}} if status == "failed" else {}
    outcomes = [{"output": "a"}, {"output": None if fault else "b", "status": status} | odd | fault, {"output": "c"}]

    written = directory.write(parquet_format(None, vectors=False), outcomes)

    assert (written.failed, written.refused) == (1, 1 if status == "ok" else 0)
    assert directory.table["output"].to_pylist() == ["a", None, "c"]
    assert directory.table["status"].to_pylist() == ["ok", "failed", "ok"]


@pytest.mark.parametrize("place", [0, 7, 2999])
@pytest.mark.parametrize(
    "odd", ["", [], encode_vector([1.0]), encode_vector([1.0] * 9), encode_vector([float("nan")] * 4), "?", None, {}]
)
def test_one_vector_unlike_the_others_fails_alone(directory, odd, place):
    """It may have another length or be no vector at all, also if it is the first row."""
    outcomes = [{"output": encode_vector([number] * 4)} for number in range(3000)]
    outcomes[place] = {"output": odd}

    written = directory.write(parquet_format(None, vectors=True), outcomes)

    assert directory.table.schema.field("output").type == pa.list_(pa.float32(), 4)
    found = directory.table.to_pylist()
    assert len(found) == 3000
    bad = found.pop(place)
    assert bad["output"] is None
    assert (written.failed, bad["status"], bad["error_class"]) == (1, "failed", "RefusedByTable")
    assert all(row["status"] == "ok" and row["output"] == [row["index"]] * 4 for row in found)


@pytest.mark.parametrize("odd", [[float("inf")] * 4, [float("nan"), 1, 2, 3]])
def test_a_vector_with_nan_cannot_be_a_line_of_json(directory, odd):
    """NaN and Infinity are not JSON."""
    outcomes = [{"output": encode_vector(vector)} for vector in ([1, 2, 3, 4], odd, [5, 6, 7, 8])]

    assert directory.write(json_lines_format(vectors=True), outcomes).refused == 1

    lines = [json.loads(line) for line in (directory.path / "results.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines] == [[1, 2, 3, 4], None, [5, 6, 7, 8]]


def test_pieces_of_a_text_that_fail_are_one_row(directory):
    """Either all pieces are rows of the table or none."""
    pieces = [encode_vector([1, 2]), encode_vector([1, 2, 3])]
    outcomes = [{"output": encode_vector([1, 2])}, {"output": pieces, "spans": ((0, 5), (4, 9))}]

    directory.write(parquet_format(None, vectors=True), outcomes)

    assert directory.table["output"].to_pylist() == [[1, 2], None]


IDS = {
    "integers": ([1, None, -(1 << 63)], pa.int64(), [1, None, -(1 << 63)]),
    "over 64 bits": ([1, 1 << 63], pa.string(), ["1", "9223372036854775808"]),
    "of 31 digits": ([1, None, 10**30], pa.string(), ["1", None, "1" + "0" * 30]),
    "numbers of two kinds": ([1, 2.5], pa.float64(), [1.0, 2.5]),
    "that a float cannot hold": ([(1 << 53) + 1, 2.5], pa.string(), ["9007199254740993", "2.5"]),
    "huge, and a float": ([10**30, 0.5], pa.string(), ["1" + "0" * 30, "0.5"]),
    "flags": ([True, 1], pa.string(), ["true", "1"]),
    "half a surrogate pair": (["a\ud83d", "b"], pa.string(), [r"a\ud83d", "b"]),
    "infinite": ([float("inf"), 1.5], pa.float64(), [None, 1.5]),
    "lists": ([[1], {"a": float("nan")}], pa.string(), ["[1]", "{'a': nan}"]),
}


@pytest.mark.parametrize(("ids", "kind", "wanted"), IDS.values(), ids=IDS)
def test_ids_that_have_no_type_in_common_are_text(directory, ids, kind, wanted):
    """A row never fails because of its id."""
    written = directory.write(parquet_format(None, vectors=False), [{"output": "a"}] * len(ids), ids)

    assert written.failed == 0
    assert directory.table.schema.field("id").type == kind
    assert directory.table["id"].to_pylist() == wanted


def test_fields_that_the_schema_does_not_name_are_kept(directory):
    """The typed column has the named fields. Where there are more, another column has the whole answer."""
    plain, more = {"n": 1, "x": None, "tags": None}, {"n": 2, "more": {"a": [1]}}
    inside = {"n": 3, "tags": [{"deep": 1, "deeper": 2}]}

    directory.write(parquet_format(SCHEMA, vectors=False), [{"output": each} for each in (plain, more, inside)])

    table = directory.table
    assert table["output"].to_pylist()[:2] == [plain, plain | {"n": 2}]
    whole = table["output_json"].to_pylist()
    assert [each and json.loads(each) for each in whole] == [None, more, inside]


def test_a_whole_number_is_a_number_however_it_is_sealed(directory):
    """7.0 is an integer in JSON, and an integer a number."""
    directory.write(parquet_format(SCHEMA, vectors=False), [{"output": {"n": 7.0, "x": (1 << 53) + 1}}])

    assert directory.table["output"].to_pylist() == [{"n": 7, "x": float(1 << 53), "tags": None}]


def test_an_abandoned_file_writes_nothing_more(directory, capfd):
    """The cause is raised, without noise on the terminal, and the older table is still there."""
    directory.write(parquet_format(None, vectors=False), [{"output": "a"}])
    journal, order = Journal(directory.storage, 1), RowOrder(with_fields=False)
    order.add(journal.find(directory.keys.key("0"))[0], None)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(directory.storage, journal, order, parquet_format(None, vectors=False), stop)

    assert directory.table["output"].to_pylist() == ["a"]
    assert capfd.readouterr() == ("", "")


TOO_LARGE = '{"n": 123456789012345678901234567890}'


def test_the_next_run_asks_refused_rows_again(batch, ollama):
    """So a retry can succeed: one answer cannot make every run fail."""
    ollama.stand_in.script({"n": 7}, where=lambda body: body.get("prompt"), always=True)
    ollama.stand_in.script(TOO_LARGE, where=lambda body: body.get("prompt") == "b")
    spec = {"output_type": SCHEMA, "results": "parquet", "failures": FailurePolicy(retry_delay=0)}

    with pytest.raises(TooManyFailedError, match=r"1 of 3 rows failed \(RefusedByTable 1 times\)") as raised:
        batch.run(["a", "b", "c"], **spec)

    summary = raised.value.summary
    assert (summary.ok, summary.failed, summary.reused, summary.left) == (2, 1, 0, 0)
    table = parquet.read_table(batch.directory / "results.parquet")
    assert table["status"].to_pylist() == ["ok", "failed", "ok"]
    assert table["output"].to_pylist()[::2] == [{"n": 7, "x": None, "tags": None}] * 2
    summary = batch.run(["a", "b", "c"], **spec)
    assert (summary.ok, summary.reused, summary.requests) == (3, 2, 1)
    assert batch.failed == []


def test_every_copy_of_a_refused_row_fails(batch, ollama):
    """Rows with the same answer fail together, and are asked once."""
    ollama.stand_in.script(TOO_LARGE, where=lambda body: body.get("prompt"), always=True)

    summary = batch.run(["a", "b", "a"], output_type=SCHEMA, results="parquet")

    assert (summary.ok, summary.failed, summary.requests) == (0, 3, 2)
    assert [row["index"] for row in batch.failed] == [0, 1, 2]
    assert batch.run(["a", "b", "a"], output_type=SCHEMA, results="parquet").requests == 2


def test_an_answer_too_large_for_parquet_is_good_in_json_lines(batch, ollama):
    """JSON has no largest number, so only a table cannot hold the answer."""
    ollama.stand_in.script(TOO_LARGE, where=lambda body: body.get("prompt"), always=True)

    summary = batch.run(["a"], output_type=SCHEMA)

    assert (summary.ok, batch.results[0]["output"]) == (1, json.loads(TOO_LARGE))


def table_of(batch):
    return parquet.read_table(batch.directory / "results.parquet")


class TestColumns:
    def test_text(self, batch, ollama):
        """The table has the same rows as JSON lines, including the failed ones, which are in failed.jsonl as well."""
        ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") == "b")
        rows = [{"id": name, "text": name} for name in "abc"]

        batch.run(rows, id_column="id", results="parquet")

        found = table_of(batch).to_pylist()
        assert [(row["index"], row["id"], row["status"]) for row in found] == [
            (0, "a", "ok"),
            (1, "b", "failed"),
            (2, "c", "ok"),
        ]
        assert (found[1]["output"], found[1]["error_class"]) == (None, "BadRequestError")
        assert [row["index"] for row in batch.failed] == [1]
        again = batch.run(rows[::2], id_column="id")
        assert again.requests == 0
        lines = batch.results
        assert [row["output"] for row in lines] == [found[0]["output"], found[2]["output"]]
        assert not (batch.directory / "results.parquet").exists()

    def test_typed_by_the_schema(self, batch, ollama):
        """A field that may be null is null. A value of a type that Arrow does not have is JSON text."""
        schema = {
            "type": "object",
            "properties": {
                "label": {"$ref": "#/$defs/Label"},
                "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "any": {},
            },
            "$defs": {"Label": {"type": "string", "enum": ["x", "y"]}},
        }
        answer = {"label": "x", "score": None, "tags": ["a"], "any": {"b": 1}}
        ollama.stand_in.script(answer, where=lambda body: body.get("prompt"))

        batch.run(["a"], output_type=schema, results="parquet")

        assert table_of(batch).schema.field("output").type == pa.struct(
            {"label": pa.string(), "score": pa.float64(), "tags": pa.list_(pa.string()), "any": pa.string()}
        )
        assert table_of(batch)["output"].to_pylist() == [answer | {"any": '{"b": 1}'}]

    def test_a_schema_that_refers_to_itself_is_text(self):
        """A recursive type ends at a limited depth, as JSON text."""
        schema = {
            "$ref": "#/$defs/T",
            "$defs": {"T": {"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}, "n": {"type": "integer"}}}},
        }

        found = arrow_type(schema, schema)

        assert str(found).endswith("n: int64>")
        assert "t: string" in str(found)

    def test_ids(self, batch):
        """Integers stay integers. Ids of several types are text."""
        batch.run([{"id": 1, "text": "a"}, {"id": None, "text": "b"}], id_column="id", results="parquet")
        assert table_of(batch)["id"].to_pylist() == [1, None]

        batch.run([{"id": 1, "text": "a"}, {"id": "x", "text": "b"}], id_column="id", results="parquet")
        assert table_of(batch)["id"].to_pylist() == ["1", "x"]

    def test_an_empty_batch_is_an_empty_table(self, batch):
        """It has its columns."""
        batch.run([], results="parquet")

        assert table_of(batch).num_rows == 0
        assert "output" in table_of(batch).column_names
