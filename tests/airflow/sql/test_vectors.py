"""Vectors into tables: columns of pgvector and arrays of floats, pieces of long texts, and lengths that must agree."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from array import array
from typing import ClassVar

import pytest
from pyarrow import parquet

from ollama_provider.batch import DatabaseError, Vectors
from ollama_provider.sql import SqlTable
from ollama_provider.testing import Model, Pace
from tests.docs.pages import blocks

EXAMPLES = [{"id": 1, "text": "a"}]
COLUMNS = {"doc": "id", "embedding": "output"}
WHOLE, PIECES = Vectors(3, in_pieces=False), Vectors(3, in_pieces=True)
#: Numbers that float32 holds only nearly.
VECTOR = array("f", [0.1, -2.5e-7, 3.0])


def result(number, vector=VECTOR, **more):
    return {"key": f"{number:032x}", "index": number, "id": number, "output": vector, "row": {}, **more}


def pieces(number, count):
    """The result of a text that was split: the vector of each piece has its number."""
    found = [
        {"output": array("f", [chunk, 0, 1]), "chunk": chunk, "start": 10 * chunk, "end": 10 * chunk + 12}
        for chunk in range(count)
    ]
    return result(number, None, pieces=found)


@pytest.fixture
def open_table():
    """Return a function that opens a table ``v``."""
    opened = []

    def open_it(vectors=WHOLE, conn_id="vectors", key="doc", columns=COLUMNS, **more):
        opened.append(SqlTable(conn_id, "v", key, columns, **more))
        opened[-1].open(EXAMPLES, "id", vectors)
        return opened[-1]

    yield open_it
    for table in opened:
        table.close()


def types(database, table="v"):
    """The types of its columns, as PostgreSQL writes them."""
    return dict(
        database.run(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "  # noqa: S608  # a name of these tests
            f"WHERE attrelid = '{table}'::regclass AND attnum > 0"
        )
    )


@pytest.mark.parametrize("kind", ["vector(3)", "vector", "real[]", "double precision[]", "float[]", "jsonb", "text"])
def test_each_type_takes_every_bit(pgvector, open_table, kind):
    """What comes back is the vector that the model gave; a second writing changes nothing."""
    pgvector.run(f"CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding {kind})")
    table = open_table()

    for _ in range(2):
        assert table.write([result(1), result(2)]) == {}

    rows = pgvector.run("SELECT doc, embedding::text FROM v ORDER BY doc")
    assert [doc for doc, _ in rows] == [1, 2]
    for _, text in rows:
        assert array("f", json.loads(text.replace("{", "[").replace("}", "]"))) == VECTOR


def test_half_precision(pgvector, open_table):
    """``halfvec`` rounds, and a number that is too large for it is refused with its row."""
    pgvector.run("CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding halfvec(3))")

    refused = open_table().write([result(1), result(2, array("f", [1e6, 0, 0]))])

    assert set(refused) == {1}
    assert "out of range" in refused[1]
    ((text,),) = pgvector.run("SELECT embedding::text FROM v")
    assert json.loads(text) == pytest.approx(list(VECTOR), rel=1e-3, abs=1e-7)


def test_a_table_is_made_for_pgvector(pgvector, open_table):
    """Its column is as long as the vectors of the model, and finds neighbours."""
    table = open_table(create=True)
    table.write([result(number, array("f", [number, 1, 0])) for number in range(5)])

    assert types(pgvector) == {"doc": "bigint", "embedding": "vector(3)"}
    nearest = pgvector.run("SELECT doc FROM v ORDER BY embedding <=> '[4,1,0]' LIMIT 2")
    assert nearest == [(4,), (3,)]


def test_rows_as_dicts(pgvector, open_table, monkeypatch):
    """A connection may ask its driver for them: the type of the column is found all the same."""
    monkeypatch.setenv("AIRFLOW_CONN_VECTORS", pgvector.airflow(extra={"cursor": "dictcursor"}))

    assert open_table(create=True).write([result(1)]) == {}

    assert types(pgvector)["embedding"] == "vector(3)"
    pgvector.run("ALTER TABLE v ALTER embedding TYPE vector")
    assert open_table().write([result(2)]) == {}
    with pytest.raises(DatabaseError, match="It has vectors of 3 numbers"):
        open_table(Vectors(4, in_pieces=False))


def test_a_table_is_made_without_pgvector(postgres, open_table):
    """An array of floats, which takes no other length either."""
    table = open_table(conn_id=postgres.conn_id, create=True)
    table.write([result(1)])

    assert types(postgres) == {"doc": "bigint", "embedding": "real[]"}
    with pytest.raises(Exception, match="v_embedding_check"):
        postgres.run("INSERT INTO v VALUES (2, '{1}')")


def test_a_missing_table(pgvector, open_table):
    """The text has the statement that makes it, and it does."""
    with pytest.raises(DatabaseError, match=r"CREATE TABLE") as caught:
        open_table()

    pgvector.run(re.search("CREATE TABLE.*", str(caught.value))[0])
    open_table().write([result(1)])

    assert types(pgvector)["embedding"] == "vector(3)"


def test_an_extension_in_another_schema(pgvector, open_table):
    """Its type is found there, and named with it."""
    pgvector.run("DROP EXTENSION vector")
    pgvector.run('CREATE SCHEMA "My Extensions"')
    pgvector.run('CREATE EXTENSION vector SCHEMA "My Extensions"')

    open_table(create=True).write([result(1)])

    assert types(pgvector)["embedding"] == '"My Extensions".vector(3)'
    with pytest.raises(DatabaseError, match="the vectors of the model have 4 numbers"):
        open_table(Vectors(4, in_pieces=False))


def test_an_extension_that_the_database_lacks(pgvector, open_table):
    """No table of arrays is made where somebody forgot ``CREATE EXTENSION``."""
    pgvector.run("DROP EXTENSION vector")

    with pytest.raises(DatabaseError, match="CREATE EXTENSION vector"):
        open_table(create=True)

    pgvector.run("CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding REAL[])")
    assert open_table().write([result(1)]) == {}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("vector(4)", r"'embedding' is vector\(4\), and the vectors of the model have 3 numbers"),
        ("halfvec(2)", r"'embedding' is halfvec\(2\), and the vectors of the model have 3 numbers"),
        ("integer[]", r"'embedding' is integer\[\], and"),
        ("boolean", "'embedding' is boolean, and"),
    ],
    ids=["vector", "halfvec", "integers", "boolean"],
)
def test_a_column_for_something_else(pgvector, open_table, kind, words):
    """It is told once, before the first row, and not for each row."""
    pgvector.run(f"CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding {kind})")

    with pytest.raises(DatabaseError, match=words) as caught:
        open_table()

    assert "'vectors', table v" in str(caught.value)


@pytest.mark.parametrize("kind", ["vector", "halfvec", "real[]"])
def test_a_column_for_any_length_with_vectors_of_another_model(pgvector, open_table, kind):
    """Distances between both would mean nothing, or fail."""
    pgvector.run(f"CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding {kind})")
    open_table().write([result(1)])

    with pytest.raises(DatabaseError, match="vectors of 3 numbers in 'embedding', and those of the model have 4"):
        open_table(Vectors(4, in_pieces=False))


def test_a_length_that_only_the_first_vector_tells(pgvector, open_table):
    """As in a merge: it is compared before the first row is written."""
    pgvector.run("CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding vector(4))")

    with pytest.raises(DatabaseError, match=r"is vector\(4\)"):
        open_table(Vectors(None, in_pieces=False)).write([result(1)])
    pgvector.run("ALTER TABLE v ALTER embedding TYPE vector(3)")
    assert open_table(Vectors(None, in_pieces=False)).write([result(1)]) == {}
    pgvector.run("DROP TABLE v")
    with pytest.raises(DatabaseError, match="no vector yet that says how long"):
        open_table(Vectors(None, in_pieces=False), create=True)


@pytest.mark.parametrize("kind", ["vector(3)", "real[]"])
def test_a_vector_that_is_none(pgvector, open_table, kind):
    """NaN, infinity and another length: their rows alone are refused."""
    pgvector.run(f"CREATE TABLE v (doc INTEGER PRIMARY KEY, embedding {kind})")
    bad = [array("f", numbers) for numbers in ([1, float("nan"), 2], [float("inf"), 0, 0], [1, 2])]

    refused = open_table().write([result(0), *(result(number, vector) for number, vector in enumerate(bad, 1))])

    assert refused == {
        1: "a vector with NaN or infinity",
        2: "a vector with NaN or infinity",
        3: "a vector of 2 numbers, where the others have 3",
    }
    assert pgvector.run("SELECT doc FROM v") == [(0,)]


def test_any_other_database(database, open_table):
    """There it is JSON, in a text."""
    table = open_table(conn_id=database.conn_id, columns={"doc": "id", "embedding": "output"}, create=True)
    table.write([result(1)])

    ((_, vector),) = database.run("SELECT * FROM v")
    assert array("f", vector if database.kind == "postgresql" else json.loads(vector)) == VECTOR


class TestPieces:
    COLUMNS: ClassVar = {"doc": "id", "part": "chunk", "first": "start", "last": "end", "embedding": "output"}

    @pytest.fixture
    def open_pieces(self, open_table):
        return lambda **more: open_table(PIECES, **{"key": ["doc", "part"], "columns": self.COLUMNS} | more)

    def rows(self, database):
        return database.run("SELECT doc, part, first, last FROM v ORDER BY doc, part")

    def test_each_is_a_row(self, pgvector, open_pieces):
        """A text that was short enough has one, with the number 0 and no place."""
        open_pieces(create=True).write([result(1), pieces(2, 3)])

        assert self.rows(pgvector) == [(1, 0, None, None), (2, 0, 0, 12), (2, 1, 10, 22), (2, 2, 20, 32)]
        assert types(pgvector) | {"part": "bigint", "embedding": "vector(3)"} == types(pgvector)

    def test_a_text_that_became_shorter(self, database, open_pieces):
        """Its pieces from before are gone; those of the other texts are not."""
        table = open_pieces(conn_id=database.conn_id, create=True)
        table.write([pieces(1, 4), pieces(2, 4)])

        table.write([pieces(1, 2)])

        assert [row[:2] for row in self.rows(database)] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]

    @pytest.mark.parametrize("counts", [(4, 2), (2, 4)])
    def test_two_texts_with_the_same_key(self, database, open_pieces, counts):
        """The last one stands, with its own pieces and no others."""
        first, last = counts

        open_pieces(conn_id=database.conn_id, create=True).write([pieces(1, first), pieces(1, last)])

        assert [row[:2] for row in self.rows(database)] == [(1, chunk) for chunk in range(last)]

    def test_a_refused_piece_refuses_its_text(self, pgvector, open_pieces):
        """The table has all of a text or what it had before; the other texts are written."""
        table = open_pieces(create=True)
        table.write([pieces(1, 1), pieces(2, 1)])
        pgvector.run("ALTER TABLE v ADD CHECK (part < 2)")

        refused = table.write([pieces(1, 4), pieces(2, 2), pieces(3, 4)])

        assert set(refused) == {0, 2}
        assert [row[:2] for row in self.rows(pgvector)] == [(1, 0), (2, 0), (2, 1)]

    def test_without_the_right_to_delete(self, pgvector, open_pieces):
        """It is known beforehand."""
        open_pieces(create=True)
        pgvector.run("CREATE ROLE writer LOGIN")
        pgvector.run("GRANT SELECT, INSERT, UPDATE ON v TO writer")
        pgvector.run("ALTER DATABASE {} SET role TO writer".format(pgvector.connection["schema"]))

        try:
            with pytest.raises(DatabaseError, match="permission denied"):
                open_pieces()
        finally:
            pgvector.run("RESET ROLE")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"key": "doc"}, "takes chunk"),
            ({"key": "part"}, "takes chunk"),
            ({"columns": {"doc": "id", "part": "chunk", "embedding": "output.x"}}, "cannot take 'output.x'"),
        ],
        ids=["no chunk", "nothing else", "a part of a vector"],
    )
    def test_columns_that_cannot_be(self, pgvector, open_pieces, arguments, words):
        """Pieces would overwrite each other."""
        with pytest.raises(DatabaseError, match=words):
            open_pieces(**arguments)

    def test_a_piece_without_pieces(self, pgvector, open_table):
        """Where texts are not split, there is no number of a piece."""
        with pytest.raises(DatabaseError, match="cannot take 'chunk'"):
            open_table(key=["doc", "part"], columns=self.COLUMNS)


def test_the_index_of_the_page(pgvector, open_table):
    """It is made as the page says, and answers the query of the DAG."""
    (block,) = (block.text for block in blocks() if block.page == "docs/howto/vectors.md" and block.language == "sql")
    pgvector.run("CREATE TABLE document_vectors (doc INTEGER PRIMARY KEY, embedding vector(3))")

    pgvector.run(block)

    plan = "EXPLAIN SELECT doc FROM document_vectors ORDER BY embedding <=> '[1,2,3]' LIMIT 5"
    assert "Index Scan using document_vectors_embedding_idx" in str(pgvector.run(f"SET enable_seqscan = off; {plan}"))


SCRIPT = """
import sys
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Embedding, Pace, run_batch
from ollama_provider.sql import SqlTable
url, out = sys.argv[1:]
columns = {"doc": "id", "part": "chunk", "embedding": "output"}
summary = run_batch(
    BatchSpec(
        model="emb", id_column="id", embedding=Embedding(on_long_text="split", pack=1),
        rows=[{"id": number, "text": f"word{number} " * (200 if number % 10 == 0 else 5)} for number in range(100)],
        into=SqlTable("vectors", "v", ["doc", "part"], columns, create=True), pace=Pace(checkpoint_every=0.05),
    ),
    Settings(base_url=url), out,
)
assert summary.complete
"""


@pytest.mark.ollama(models=[Model("emb", ("embedding",), context_length=64, embedding_length=3)])
def test_killed_half_way_and_resumed(ollama, pgvector, tmp_path, monkeypatch):
    """kill -9 with some vectors in the table: the next run completes it, with all pieces of each text, once."""
    ollama.stand_in.script(Pace(first_token=0.02), path="embed", always=True, where=lambda body: body.get("input"))
    (script := tmp_path / "script.py").write_text(SCRIPT)
    out = tmp_path / "out"
    arguments = [str(script), ollama.url, str(out)]

    def texts_written():
        there = pgvector.run("SELECT to_regclass('v') IS NOT NULL")[0][0]
        return pgvector.run("SELECT count(DISTINCT doc) FROM v")[0][0] if there else 0

    def expected():
        rows = parquet.read_table(out / "results.parquet").to_pylist()
        return [(row["id"], row["chunk"] or 0, array("f", row["output"])) for row in rows]

    def written():
        rows = pgvector.run("SELECT doc, part, embedding::text FROM v ORDER BY doc, part")
        return [(doc, part, array("f", json.loads(text))) for doc, part, text in rows]

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *arguments], env=dict(os.environ), stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while texts_written() < 50:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert texts_written() < 100
    monkeypatch.setattr(sys, "argv", arguments)

    runpy.run_path(str(script))

    assert len(expected()) > 130
    assert written() == expected()
    # As if it had been killed between a commit and its note.
    shutil.rmtree(out / "written")
    asked = len(ollama.stand_in.requests)
    runpy.run_path(str(script))
    assert written() == expected()
    assert "/api/embed" not in [seen.path for seen in ollama.stand_in.requests[asked:]]
