"""Rows from a query, through Airflow's hooks."""

import json
import time

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from ollama_provider.batch import DatabaseError, DatabaseGoneError
from ollama_provider.batch.rows.snapshot import json_line
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.sql import SqlRows


def test_rows_come_in_order_and_in_chunks(database):
    """Never more than a chunk at a time, and each row by the names of its columns."""
    database.documents(7)

    chunks = list(SqlRows("warehouse", "SELECT id, text FROM documents ORDER BY id DESC", chunk_size=3).fetch())

    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    assert chunks[0][0] == {"id": 6, "text": "text 6"}
    assert [row["id"] for chunk in chunks for row in chunk] == [6, 5, 4, 3, 2, 1, 0]


def test_values_are_given_apart_from_the_statement(database):
    """So that a quote in a value is a quote in a value."""
    database.documents(3)
    database.run(f"INSERT INTO documents VALUES ({', '.join([database.mark] * 3)})", (9, "it's", "x"))  # noqa: S608  # marks of parameters

    rows = SqlRows("warehouse", f"SELECT id FROM documents WHERE title = {database.mark}", ("it's",))  # noqa: S608  # a mark of a parameter

    assert [row.columns for row in read_rows(rows)] == [{"id": 9}]


def test_a_percent_sign_needs_no_doubling_without_values(database):
    """``LIKE 'title%'`` is just that."""
    database.documents(3)

    assert sum(map(len, SqlRows("warehouse", "SELECT id FROM documents WHERE title LIKE 'title%'").fetch())) == 3


def test_no_rows(database):
    """Nothing is a good answer."""
    database.documents(1)

    assert list(SqlRows("warehouse", "SELECT id FROM documents WHERE id > 5").fetch()) == []


def test_postgresql_answers_through_a_cursor_on_the_server(postgres):
    """The first chunk of ten billion rows is there at once."""
    began = time.monotonic()

    fetched = SqlRows("warehouse", "SELECT generate_series(1, 10000000000) AS n", chunk_size=10).fetch()
    first = next(fetched)
    fetched.close()

    assert first[-1] == {"n": 10}
    assert time.monotonic() - began < 60


TYPES = """
    SELECT DATE '2026-11-22' AS day, TIMESTAMP '2026-11-22 06:00' AS local, TIMESTAMPTZ '2026-11-22 06:00+01' AS moment,
        TIME '06:00' AS hour, INTERVAL '1 day 2 hours' AS span, 12.50::numeric AS price, 'NaN'::numeric AS no_price,
        'NaN'::float8 AS nothing, 'infinity'::float8 AS endless, 0.5::float8 AS half, 'ab\\xff'::bytea AS bytes,
        '5f1c0e9e-7f0d-4c57-9b0e-3a1d0a9a6f10'::uuid AS uuid, ARRAY[1, NULL, 3] AS numbers,
        ARRAY['NaN'::float8, 1] AS floats, '{"a": [1, {"b": null}]}'::jsonb AS document, TRUE AS yes, NULL AS null,
        '10.0.0.1'::inet AS address, 9223372036854775807 AS big, E'line\\u2028break' AS text
"""


def test_types_that_json_does_not_know(postgres):
    """Each has one text, the same in every process; NaN and the infinite are null."""
    postgres.run("SELECT 1")
    sql = TYPES.replace("'ab\\xff'::bytea", "'\\x6162ff'::bytea")

    ((row,),) = SqlRows("warehouse", sql).fetch()

    assert json.loads(json_line(row)) == {
        "day": "2026-11-22",
        "local": "2026-11-22T06:00:00",
        "moment": "2026-11-22T05:00:00+00:00",
        "hour": "06:00:00",
        "span": "1 day, 2:00:00",
        "price": "12.50",
        "no_price": None,
        "nothing": None,
        "endless": None,
        "half": 0.5,
        "bytes": "6162ff",
        "uuid": "5f1c0e9e-7f0d-4c57-9b0e-3a1d0a9a6f10",
        "numbers": [1, None, 3],
        "floats": [None, 1.0],
        "document": {"a": [1, {"b": None}]},
        "yes": True,
        "null": None,
        "address": "10.0.0.1",
        "big": 9223372036854775807,
        "text": "line\u2028break",
    }


def test_a_moment_is_the_same_in_every_time_zone_of_a_session(postgres):
    """Else the same row would be other work for a worker with another setting."""
    name = postgres.connection["schema"]
    rows = SqlRows("warehouse", "SELECT TIMESTAMPTZ '2026-11-22 06:00+01' AS moment")
    lines = set()
    for zone in ("Asia/Tokyo", "America/Lima"):
        postgres.run(f"ALTER DATABASE {name} SET timezone TO '{zone}'")
        lines |= {json_line(row) for chunk in rows.fetch() for row in chunk}

    assert lines == {b'{"moment":"2026-11-22T05:00:00+00:00"}\n'}


def test_types_of_sqlite(sqlite):
    """It has five."""
    ((row,),) = SqlRows("warehouse", "SELECT 1 AS i, 0.5 AS r, 'x' AS t, x'6162ff' AS b, NULL AS n, 9e999 AS e").fetch()

    assert json.loads(json_line(row)) == {"i": 1, "r": 0.5, "t": "x", "b": "6162ff", "n": None, "e": None}


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT nothing FROM documents", "nothing"),
        ("SELECT id FROM dokuments", "dokuments"),
        ("SELEKT 1", "SELEKT"),
        ("SELECT id, text AS id FROM documents", "several columns of the name id"),
    ],
)
def test_a_wrong_query(database, sql, words):
    """The database's words, and no retry, which would hear them again."""
    database.documents(1)

    with pytest.raises(DatabaseError, match=words) as caught:
        list(SqlRows("warehouse", sql).fetch())

    assert not caught.value.retryable
    assert "'warehouse'" in str(caught.value)


def test_a_database_that_is_not_there(monkeypatch):
    """It may be there later."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "schema": "x"})
    )

    with pytest.raises(DatabaseGoneError, match="'warehouse'") as caught:
        list(SqlRows("warehouse", "SELECT 1").fetch())

    assert caught.value.retryable


def test_a_connection_that_is_not_there():
    """Airflow's own error."""
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        list(SqlRows("nowhere", "SELECT 1").fetch())


def test_a_connection_to_something_else(add_connection, ollama):
    """The text says what it is."""
    add_connection("ollama_default", host=ollama.host, port=ollama.port)

    with pytest.raises(DatabaseError, match=r"'ollama_default' is not to an SQL database.*OllamaHook"):
        list(SqlRows("ollama_default", "SELECT 1").fetch())
