"""What databases do to a row if they are let: cut it, join it with another one, or give it another id."""

import re

import pytest

from ollama_provider.batch import DatabaseError, Vectors
from ollama_provider.sql import SqlRows, SqlTable
from ollama_provider.sql.dialects import Destination, Dialect, dialect_for
from ollama_provider.sql.dialects.standard import Oracle
from tests.airflow.sql.test_table import COLUMNS, EXAMPLES, result


@pytest.fixture
def open_table():
    """Return a function that opens a table."""
    opened = []

    def open_it(table="summaries", key="doc", columns=COLUMNS, examples=EXAMPLES, **more):
        opened.append(SqlTable("warehouse", table, key, columns, **more))
        opened[-1].open(examples, "id")
        return opened[-1]

    yield open_it
    for table in opened:
        table.close()


class Hook:
    """A hook of which a dialect needs no more than this."""

    conn_type = "odbc"
    placeholder = "?"

    def __init__(self, **more):
        vars(self).update(more)


# MySQL and MariaDB.


def test_nothing_is_cut(mysql, open_table):
    """The server of this test cuts what is too long, unless a session says otherwise."""
    mysql.run("CREATE TABLE summaries (doc TINYINT PRIMARY KEY, summary VARCHAR(5) NOT NULL)")

    refused = open_table().write([result(1, "too long"), result(2), result(300), result(4, None)])

    assert set(refused) == {0, 2, 3}
    assert all(refused.values())
    assert mysql.summaries() == [(2, "fine")]


def test_zero_is_zero(mysql, open_table):
    """A column with AUTO_INCREMENT would give the row another number, each time that it is written."""
    mysql.run("CREATE TABLE summaries (doc INTEGER AUTO_INCREMENT PRIMARY KEY, summary TEXT)")

    for _ in range(2):
        open_table().write([result(0), result(1)])

    assert mysql.summaries() == [(0, "fine"), (1, "fine")]


@pytest.mark.parametrize("text", ["👩🏽‍🔬 𝔘nicode", "a\0b", "back\\slash 'quote' %s", "Grüße\r\n"], ids=ascii)
def test_characters(mysql, open_table, text):
    """As they were, in a table whose other columns are in latin1, and back into rows."""
    mysql.run(
        "CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT CHARACTER SET utf8mb4) CHARACTER SET latin1"
    )

    assert open_table().write([result(1, text)]) == {}

    assert mysql.summaries() == [(1, text)]
    assert [row for rows in SqlRows("warehouse", "SELECT * FROM summaries").fetch() for row in rows] == [
        {"doc": 1, "summary": text}
    ]


def test_values_that_mysql_cannot_take(mysql, open_table):
    """Half a surrogate pair, characters that the column has not, a number that is none: their rows alone."""
    mysql.run("CREATE TABLE summaries (doc BIGINT PRIMARY KEY, summary TEXT CHARACTER SET latin1)")

    refused = open_table().write(
        [result(1, "\ud800"), result(2), result(3, "語"), result(4) | {"id": 10**30}, result(5) | {"id": "five"}]
    )

    assert set(refused) == {0, 2, 3, 4}
    assert all(refused.values())
    assert mysql.summaries() == [(2, "fine")]


@pytest.mark.parametrize("collation", ["utf8mb4_general_ci", "utf8mb4_bin", "latin1_swedish_ci"])
def test_a_key_that_joins_two_ids(mysql, open_table, collation):
    """The first two are what tables have by default, or are advised to have. The text has what changes it."""
    charset = collation.partition("_")[0]
    kind = f"VARCHAR(20) CHARACTER SET {charset} COLLATE {collation}"
    mysql.run(f"CREATE TABLE summaries (doc {kind} PRIMARY KEY, summary TEXT)")
    other = "'a '" if collation == "utf8mb4_bin" else "'A'"
    with pytest.raises(DatabaseError, match=f"{collation}, takes 'a' for the same as {other}") as caught:
        open_table()

    mysql.run(re.search("ALTER TABLE.*", str(caught.value))[0])
    open_table().write([result(number) | {"id": name} for number, name in enumerate(["a", "A", "a ", "ä"])])

    assert sorted(doc for doc, _ in mysql.summaries()) == ["A", "a", "a ", "ä"]


def test_a_table_that_is_made_for_texts_as_keys(mysql, open_table):
    """It tells all ids apart, and takes long and odd ones."""
    ids = ["a", "A", "a ", "😀" * 255, "x" * 256]
    table = open_table(create=True, examples=[{"id": "a"}])

    refused = table.write([result(number) | {"id": each} for number, each in enumerate(ids)])

    assert list(refused) == [4]
    assert sorted(doc for doc, _ in mysql.summaries()) == sorted(ids[:4])


def test_another_unique_index(mysql, open_table):
    """A row with the same title would be updated, under the key of another one."""
    mysql.run("CREATE TABLE summaries (doc INTEGER UNIQUE, summary VARCHAR(20) UNIQUE)")

    with pytest.raises(DatabaseError, match="another unique index beside that on its key, 'summary'"):
        open_table()


def test_a_number_of_the_tables_own(mysql, open_table):
    """The batch does not write that column, so its index is none of its business."""
    mysql.run("CREATE TABLE summaries (doc INTEGER UNIQUE, summary TEXT, number INTEGER AUTO_INCREMENT PRIMARY KEY)")

    for words in ("first", "second"):
        open_table().write([result(7, words)])

    assert mysql.run("SELECT doc, summary FROM summaries") == [(7, "second")]


def test_an_index_on_the_beginning_of_the_key(mysql, open_table):
    """Two ids that begin alike would be one."""
    mysql.run("CREATE TABLE summaries (doc VARCHAR(20) COLLATE utf8mb4_nopad_bin, summary TEXT, UNIQUE (doc(3)))")

    with pytest.raises(DatabaseError, match="no unique index on its key"):
        open_table()


def test_more_than_fits_into_a_statement(mysql, open_table):
    """Rows go in several statements; one that alone is too long is refused, and no other."""
    mysql.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary LONGTEXT)")
    (longest,) = mysql.run("SELECT @@max_allowed_packet")[0]
    table = open_table()

    refused = table.write([*(result(number, "x" * (longest // 8)) for number in range(12)), result(12, "x" * longest)])

    assert list(refused) == [12]
    assert "max_allowed_packet" in refused[12]
    assert mysql.run("SELECT count(*) FROM summaries") == [(12,)]


def test_no_right_to_write_into_mysql(mysql, monkeypatch):
    """It is known beforehand."""
    mysql.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT)")
    mysql.run("CREATE OR REPLACE USER guest@'127.0.0.1'")
    mysql.run("GRANT SELECT ON summaries TO guest@'127.0.0.1'")
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", mysql.airflow(login="guest"))

    with pytest.raises(DatabaseError, match="command denied") as caught:
        SqlTable("warehouse", "summaries", "doc", COLUMNS).open(EXAMPLES, "id")

    assert not caught.value.retryable


# Databases that are not known.


@pytest.fixture
def standard(database, monkeypatch):
    """A database that is met as one of which nothing is known."""
    monkeypatch.setattr("ollama_provider.sql.dialects._KINDS", {})
    if database.kind == "mysql":
        database.run("SET GLOBAL sql_mode = 'STRICT_ALL_TABLES'")
    return database


def test_rows_of_an_unknown_database(standard, open_table):
    """Inserted or updated; what the batch does not know of a row stays."""
    standard.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT, mine INTEGER DEFAULT 5)")
    standard.run("INSERT INTO summaries VALUES (2, 'old', 7), (9, 'mine', 8)")
    table = open_table()

    for _ in range(2):
        assert table.write([result(1), result(2, "new"), result(3, "first"), result(3, "second")]) == {}

    assert standard.summaries() == [(1, "fine", 5), (2, "new", 7), (3, "second", 5), (9, "mine", 8)]


def test_refusals_of_an_unknown_database(standard, open_table):
    """One row each; the others are written."""
    standard.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary VARCHAR(9) CHECK (length(summary) < 5))")

    refused = open_table().write([result(number, "too long" if number % 3 else "fine") for number in range(8)])

    assert set(refused) == {1, 2, 4, 5, 7}
    assert [row[0] for row in standard.summaries()] == [0, 3, 6]


def test_an_unknown_database_that_joins_keys(sqlite, open_table, monkeypatch):
    """It is noticed when the row is looked up."""
    monkeypatch.setattr("ollama_provider.sql.dialects._KINDS", {})
    sqlite.run("CREATE TABLE summaries (doc TEXT PRIMARY KEY COLLATE NOCASE, summary TEXT)")

    refused = open_table().write([result(1) | {"id": "a"}, result(2) | {"id": "A"}])

    # Rows are written in the order of their keys.
    assert list(refused) == [0]
    assert "the table takes 'a' for the same as 'A'" in refused[0]
    assert sqlite.summaries() == [("A", "fine")]


def test_an_unknown_database_with_two_rows_of_one_key(sqlite, open_table, monkeypatch):
    """There was no unique index."""
    monkeypatch.setattr("ollama_provider.sql.dialects._KINDS", {})
    sqlite.run("CREATE TABLE summaries (doc INTEGER, summary TEXT)")
    sqlite.run("INSERT INTO summaries VALUES (1, 'a'), (1, 'b')")

    assert list(open_table().write([result(1), result(2)])) == [0]


@pytest.mark.parametrize("table", ["sumaries", "summaries"])
def test_what_an_unknown_database_does_not_have(standard, open_table, table):
    """Table or column: the database's words."""
    standard.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, sumary TEXT)")

    with pytest.raises(DatabaseError, match="sumaries" if table == "sumaries" else "summary"):
        open_table(table)


def test_a_table_is_not_made_in_an_unknown_database(standard, open_table):
    """Nobody knows how it calls a text."""
    with pytest.raises(DatabaseError, match="create the table yourself"):
        open_table(create=True)
    assert standard.kind


# What a connection may ask of its driver.


class DictCursor:
    """The cursor of a driver, with rows as dicts."""

    def __init__(self, cursor):
        self._cursor = cursor

    def __getattr__(self, name):
        return getattr(self._cursor, name)

    def fetchone(self):
        return self._as_dict(self._cursor.fetchone())

    def fetchall(self):
        return [self._as_dict(row) for row in self._cursor.fetchall()]

    def fetchmany(self, size):
        return [self._as_dict(row) for row in self._cursor.fetchmany(size)]

    def _as_dict(self, row):
        return row and dict(zip([column[0] for column in self._cursor.description], row, strict=True))


class DictConnection:
    """A connection whose cursors give rows as dicts."""

    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def cursor(self, *name):
        return DictCursor(self._connection.cursor(*name))


@pytest.mark.parametrize("standard_sql", [False, True], ids=["own", "standard"])
def test_rows_as_dicts(database, open_table, monkeypatch, standard_sql):
    """The extra of a connection may ask its driver for them: the same is found in them."""
    connect = Dialect.connect
    monkeypatch.setattr(Dialect, "connect", lambda dialect: DictConnection(connect(dialect)))
    if standard_sql:
        monkeypatch.setattr("ollama_provider.sql.dialects._KINDS", {})
    database.run(f"CREATE TABLE summaries (doc {database.key_text} PRIMARY KEY, summary TEXT)")

    for output in ("first", "second"):
        assert open_table().write([result(1, output) | {"id": "one"}]) == {}

    assert database.summaries() == [("one", "second")]
    assert list(SqlRows("warehouse", "SELECT doc FROM summaries").fetch()) == [[{"doc": "one"}]]


# DuckDB, as an example of a database of which no more is known than that it has a hook.


def test_what_standard_sql_does_in_duckdb(duck, open_table):
    """Rows are inserted or updated; what it refuses is refused alone."""
    duck.run("CREATE TABLE summaries (doc BIGINT PRIMARY KEY, summary TEXT CHECK (length(summary) < 9))")
    duck.run("INSERT INTO summaries VALUES (2, 'old'), (9, 'mine')")
    table = open_table()
    rows = [result(1), result(2, "new"), result(3, "much too long"), result(4, "\ud800"), result(5) | {"id": "five"}]

    for _ in range(2):
        refused = table.write([*rows, result(6, "語 %s '")])
        assert set(refused) == {2, 3, 4}
        assert all(refused.values())
    table.close()

    assert duck.summaries() == [(1, "fine"), (2, "new"), (6, "語 %s '"), (9, "mine")]


def test_pieces_in_duckdb(duck, open_table):
    """Those that a text had more when it was longer are deleted."""
    duck.run("CREATE TABLE summaries (doc INTEGER, chunk INTEGER, summary TEXT, UNIQUE (doc, chunk))")
    pieces = [{"chunk": number, "start": 0, "end": 1, "output": [float(number)]} for number in range(3)]
    table = SqlTable("warehouse", "summaries", ["doc", "chunk"], {"doc": "id", "chunk": "chunk", "summary": "output"})
    table.open(EXAMPLES, "id", Vectors(1, in_pieces=True))

    for count in (3, 2):
        assert table.write([result(1) | {"pieces": pieces[:count]}]) == {}
    table.close()

    assert duck.summaries() == [(1, 0, "[0.0]"), (1, 1, "[1.0]")]


def test_what_nobody_knows_of_duckdb(duck, open_table):
    """How its types are called: the table is its user's to make, and its index to see to."""
    duck.run("CREATE TABLE summaries (doc INTEGER, summary TEXT)")
    duck.run("INSERT INTO summaries VALUES (1, 'one'), (1, 'another')")
    with pytest.raises(DatabaseError, match="with a unique index on its key: in other databases nobody looks"):
        open_table(create=True)
    with pytest.raises(DatabaseError, match="nowhere does not exist"):
        open_table("nowhere")

    assert list(open_table().write([result(1, "new"), result(2)])) == [0]


# Statements for databases that are not here.


class Cursor:
    """Remembers statements; finds no row."""

    def __init__(self):
        self.ran = []

    def execute(self, statement, values=()):
        self.ran.append((statement, list(values)))

    def fetchall(self):
        return []


@pytest.mark.parametrize(
    ("hook", "kind", "select", "insert"),
    [
        (Hook(), Dialect, 'SELECT "a" FROM "s"."t" WHERE "a" = ?', 'INSERT INTO "s"."t" ("b", "a") VALUES (?, ?)'),
        (
            Hook(conn_type="mssql", dialect_name="mssql", placeholder="%s", escape_word_format="[{}]"),
            Dialect,
            "SELECT [a] FROM [s].[t] WHERE [a] = %s",
            "INSERT INTO [s].[t] ([b], [a]) VALUES (%s, %s)",
        ),
        (
            Hook(conn_type="oracle", dialect_name="oracle", placeholder="%s"),
            Oracle,
            'SELECT "a" FROM "s"."t" WHERE "a" = :1',
            'INSERT INTO "s"."t" ("b", "a") VALUES (:1, :2)',
        ),
    ],
    ids=["odbc", "mssql", "oracle"],
)
def test_statements(hook, kind, select, insert):
    """With the quotes and placeholders of the hook. None of these databases was asked."""
    dialect, cursor = dialect_for(hook), Cursor()

    dialect.write(cursor, Destination("s.t", ["b", "a"], ["a"]), [[1, 2]])

    assert type(dialect) is kind
    assert cursor.ran == [(select, [2]), (insert, [1, 2])]


def test_a_closing_quote_in_a_name():
    """It ends no name."""
    assert dialect_for(Hook(escape_word_format="[{}]")).quote("a]b") == "[a]]b]"
    assert dialect_for(Hook(conn_type="mysql")).quote("a`b") == "`a``b`"
