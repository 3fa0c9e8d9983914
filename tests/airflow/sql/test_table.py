"""Results into a table: upserts, quoting, refusals, and what is said when the table is not as it must be."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from ollama_provider.batch import DatabaseError, DatabaseGoneError
from ollama_provider.sql import SqlTable

COLUMNS = {"doc": "id", "summary": "output"}
EXAMPLES = [{"id": 1, "text": "a", "score": 0.5}]


def result(number, output="fine", **more):
    return {"key": f"{number:032x}", "index": number, "id": number, "output": output, "row": {}, **more}


@pytest.fixture
def open_table(database):
    """Return a function that opens a table."""
    opened = []

    def open_it(table="summaries", key="doc", columns=COLUMNS, id_column="id", **more):
        opened.append(SqlTable("warehouse", table, key, columns, **more))
        opened[-1].open(EXAMPLES, id_column)
        return opened[-1]

    yield open_it
    for table in opened:
        table.close()


@pytest.fixture
def summaries(database):
    """A table as a user would make it."""
    database.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT NOT NULL)")


@pytest.mark.usefixtures("summaries")
def test_rows_are_inserted_or_updated(database, open_table):
    """Writing twice changes nothing, and what was there before under the same key is replaced."""
    database.run("INSERT INTO summaries VALUES (2, 'old'), (9, 'mine')")
    table = open_table()

    for _ in range(2):
        assert table.write([result(1), result(2, "new")]) == {}

    assert database.summaries() == [(1, "fine"), (2, "new"), (9, "mine")]


@pytest.mark.usefixtures("summaries")
def test_the_same_key_twice_in_one_chunk(database, open_table):
    """The last one stands."""
    open_table().write([result(1, "first"), result(1, "second")])

    assert database.summaries() == [(1, "second")]


def test_names_are_quoted(database, open_table):
    """Capitals, blanks, reserved words, dots and quotes are nothing special."""
    schema = "main" if database.kind == "sqlite" else "Night Shift"
    if database.kind != "sqlite":
        database.run('CREATE SCHEMA "Night Shift"')
    database.run(
        f'CREATE TABLE "{schema}"."v1.2 ""x""" ("Order" INTEGER, "select" TEXT, "a""b" TEXT, UNIQUE ("Order"))'
    )
    columns = {"Order": "id", "select": "output", 'a"b': "model"}
    table = open_table(f'{schema}."v1.2 ""x"""', "Order", columns)

    table.write([result(1, "'; DROP TABLE x; --", model="llama3.2")])

    assert database.run(f'SELECT * FROM "{schema}"."v1.2 ""x"""') == [(1, "'; DROP TABLE x; --", "llama3.2")]  # noqa: S608  # the schema of this test


@pytest.mark.parametrize("name", ["", ".x", "x.", 'a"b', "a b.", '"open'])
def test_a_name_that_is_none(open_table, name):
    """It never becomes part of a statement."""
    with pytest.raises(DatabaseError, match="not a table name"):
        open_table(name)


@pytest.mark.parametrize("columns", [{"doc": "id", "rated %": "output"}, {"%s": "id"}])
def test_a_percent_sign_in_a_name(database, open_table, columns):
    """Drivers that mark values with %s would take it for such a mark; it is refused before the first request."""
    key, *rest = columns
    fields = [f'"{key}" INTEGER PRIMARY KEY', *(f'"{name}" TEXT' for name in rest)]
    database.run(f"CREATE TABLE summaries ({', '.join(fields)})")
    if database.kind != "sqlite":
        with pytest.raises(DatabaseError, match=f"the name {re.escape(repr([*columns][-1]))} cannot be in a statement"):
            open_table(key=key, columns=columns)
        return

    assert open_table(key=key, columns=columns).write([result(1)]) == {}

    assert database.summaries() == [(1, "fine")[: len(columns)]]


def test_a_missing_table(database, open_table):
    """The text has a statement that makes one, typed by the rows, and it does."""
    columns = {"doc": "id", "summary": "output", "score": "row.score", "seconds": "seconds", "tokens": "tokens"}
    with pytest.raises(DatabaseError, match="CREATE TABLE") as caught:
        open_table(columns=columns)
    statement = re.search("CREATE TABLE.*", str(caught.value))[0]
    quote, text, number = '"', "TEXT", "DOUBLE PRECISION"
    if database.kind == "mysql":
        quote, text, number = "`", "LONGTEXT CHARACTER SET utf8mb4", "DOUBLE"
    assert statement.replace(quote, "") == (
        f"CREATE TABLE IF NOT EXISTS summaries (doc BIGINT, summary {text}, score {number}, seconds {number}, "
        "tokens BIGINT, PRIMARY KEY (doc))"
    )
    assert not caught.value.retryable

    database.run(statement)
    open_table(columns=columns).write([result(1, row={"score": 0.5}, seconds=1.5, tokens=7)])

    assert database.summaries() == [(1, "fine", 0.5, 1.5, 7)]


def test_a_missing_table_is_made_on_request(database, open_table):
    """Once; the second time it is there."""
    for number in range(2):
        open_table(create=True).write([result(number)])

    assert database.summaries() == [(0, "fine"), (1, "fine")]


@pytest.mark.parametrize("made_by", ["create", "hand"])
def test_a_fraction_for_a_column_of_whole_numbers(database, open_table, made_by):
    """It is not rounded: two ids would be one row. The columns are made for what the first rows have."""
    if made_by == "hand":
        database.run("CREATE TABLE summaries (doc INTEGER UNIQUE, summary INTEGER)")
    table = open_table(columns={"doc": "id", "summary": "tokens"}, create=made_by == "create")

    refused = table.write([result(number, tokens=each) | {"id": each} for number, each in enumerate([2, 2.4, 3.0])])

    assert set(refused) == (set() if database.kind == "sqlite" else {1})
    assert database.summaries() == [(each, each) for each in [2, 2.4, 3] if refused == {} or each != 2.4]


def test_a_table_without_a_unique_index(database, open_table):
    """The text has the statement that makes it."""
    database.run("CREATE TABLE summaries (doc INTEGER, summary TEXT)")
    with pytest.raises(DatabaseError, match="unique index") as caught:
        open_table()

    database.run(re.search("CREATE UNIQUE INDEX.*", str(caught.value))[0])
    open_table().write([result(1)])

    assert database.summaries() == [(1, "fine")]


@pytest.mark.usefixtures("summaries")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"columns": {"doc": "id", "sumary": "output"}}, "sumary"),
        ({"columns": {"doc": "id", "summary": "outptu"}}, "cannot take 'outptu'; known are answer_cut"),
        ({"columns": {"doc": "id", "summary": "row"}}, "cannot take 'row'"),
        ({"columns": {"doc": "id", "summary": "tokens.x"}}, "cannot take 'tokens.x'"),
        ({"columns": {"doc": "id", "summary": "row.titel"}}, "the rows have only 'id', 'score', 'text'"),
        ({"id_column": None}, "no id_column"),
        ({"key": "summary"}, "cannot tell rows apart"),
        ({"key": "other"}, "must be among the columns"),
    ],
)
def test_columns_that_cannot_be(open_table, arguments, words):
    """Said before the first request, with what there is instead."""
    with pytest.raises(DatabaseError, match=words):
        open_table(**arguments)


def test_no_right_to_write(postgres):
    """It is known beforehand, not after the first hour."""
    postgres.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT)")
    postgres.run("CREATE ROLE guest LOGIN")
    postgres.run("GRANT SELECT ON summaries TO guest")
    postgres.run("ALTER DATABASE {} SET role TO guest".format(postgres.connection["schema"]))

    with pytest.raises(DatabaseError, match="permission denied"):
        SqlTable("warehouse", "summaries", "doc", COLUMNS).open(EXAMPLES, "id")


@pytest.mark.parametrize("bad", [{0}, {3}, {9}, {1, 2, 5}, set(range(10))], ids=str)
def test_a_row_that_violates_a_constraint(database, open_table, bad):
    """It is refused with the database's words; all others of its chunk are written."""
    database.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT CHECK (length(summary) < 5))")

    refused = open_table().write([result(number, "too long" if number in bad else "fine") for number in range(10)])

    assert set(refused) == bad
    assert all("constraint" in words.lower() for words in refused.values())
    assert database.summaries() == [(number, "fine") for number in range(10) if number not in bad]


def test_the_words_of_a_trigger(postgres):
    """RAISE is a constraint by other means."""
    postgres.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT)")
    postgres.run("""
        CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.summary = 'bad' THEN RAISE EXCEPTION 'not in this house'; END IF; RETURN NEW; END $$
    """)
    postgres.run("CREATE TRIGGER judge BEFORE INSERT ON summaries FOR EACH ROW EXECUTE FUNCTION judge()")
    table = SqlTable("warehouse", "summaries", "doc", COLUMNS)
    table.open(EXAMPLES, "id")

    refused = table.write([result(1), result(2, "bad"), result(3)])
    table.close()

    assert refused == {1: "not in this house"}
    assert postgres.summaries() == [(1, "fine"), (3, "fine")]


def test_a_constraint_that_is_judged_at_the_end(postgres):
    """A deferred one fails at the commit."""
    postgres.run("CREATE TABLE documents (id INTEGER PRIMARY KEY)")
    postgres.run("INSERT INTO documents VALUES (1), (3)")
    postgres.run("""
        CREATE TABLE summaries (
            doc INTEGER PRIMARY KEY REFERENCES documents DEFERRABLE INITIALLY DEFERRED, summary TEXT
        )
    """)
    table = SqlTable("warehouse", "summaries", "doc", COLUMNS)
    table.open(EXAMPLES, "id")

    refused = table.write([result(1), result(2), result(3)])
    table.close()

    assert list(refused) == [1]
    assert "Key (doc)=(2) is not present" in refused[1]
    assert postgres.summaries() == [(1, "fine"), (3, "fine")]


def test_values_that_postgresql_cannot_take(postgres):
    """NUL in a text, half a surrogate pair, a number that is none: their rows alone."""
    postgres.run("CREATE TABLE summaries (doc BIGINT PRIMARY KEY, summary TEXT)")
    table = SqlTable("warehouse", "summaries", "doc", COLUMNS)
    table.open(EXAMPLES, "id")

    refused = table.write(
        [result(1, "a\0b"), result(2), result(3, "\ud800"), result(4) | {"id": 10**30}, result(5) | {"id": "five"}]
    )
    table.close()

    assert set(refused) == {0, 2, 3, 4}
    assert all(refused.values())
    assert postgres.summaries() == [(2, "fine")]


def test_structured_output(database, open_table):
    """A place in it, or all of it as JSON; an output without the place is refused."""
    kind = "JSONB" if database.kind == "postgresql" else "TEXT"
    database.run(f"CREATE TABLE summaries (doc INTEGER PRIMARY KEY, stars INTEGER, city TEXT, whole {kind})")
    columns = {"doc": "id", "stars": "output.stars", "city": "output.where.city", "whole": "output"}
    table = open_table(columns=columns)
    output = {"stars": 4, "where": {"city": "Köln"}}

    refused = table.write([result(1, output), result(2, {"stars": 5}), result(3, "prose")])

    assert refused == {1: "the output has no 'where.city'", 2: "the output has no 'stars'"}
    whole = output if database.kind == "postgresql" else '{"stars": 4, "where": {"city": "Köln"}}'
    assert database.summaries() == [(1, 4, "Köln", whole)]


def test_a_key_of_several_columns(database, open_table):
    """A tenant and a number, from the columns of the input."""
    columns = f"tenant {database.key_text}, number INTEGER, summary TEXT"
    database.run(f"CREATE TABLE summaries ({columns}, PRIMARY KEY (tenant, number))")
    columns = {"tenant": "row.tenant", "number": "id", "summary": "output"}
    table = SqlTable("warehouse", "summaries", ["tenant", "number"], columns)
    table.open([{"tenant": "a", "id": 1}], "id")

    for words in ("first", "second"):
        table.write([result(1, words, row={"tenant": tenant}) for tenant in "ab"])
    table.close()

    assert database.summaries() == [("a", 1, "second"), ("b", 1, "second")]
    assert table.of_row({"id": 1, "index": 0, "key": "k", "row": {"tenant": "a"}})[0] == ["a", 1]


def test_a_table_with_nothing_but_its_key(database, open_table):
    """There is nothing to update then."""
    database.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY)")
    table = open_table(columns={"doc": "id"})

    for _ in range(2):
        assert table.write([result(1)]) == {}

    assert database.summaries() == [(1,)]


@pytest.mark.parametrize("server", ["postgres", "mysql"])
def test_writers_that_meet(server, request):
    """Two of them, the same rows in another order, again and again: they wait for each other, or are tried again."""
    database = request.getfixturevalue(server)
    database.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT)")
    rows = [result(number) for number in range(200)]

    def write(order):
        table = SqlTable("warehouse", "summaries", "doc", COLUMNS)
        table.open(EXAMPLES, "id")
        try:
            return [table.write(rows[::order]) for _ in range(20)]
        finally:
            table.close()

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(write, (1, -1, 1, -1))] == [[{}] * 20] * 4

    assert database.summaries() == [(number, "fine") for number in range(200)]


def test_two_writers_that_make_the_table(database):
    """As shards do: whoever comes second finds it there."""

    def write(number):
        table = SqlTable("warehouse", "summaries", "doc", COLUMNS, create=True)
        try:
            table.open(EXAMPLES, "id")
            return table.write([result(number)])
        finally:
            table.close()

    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(write, range(8))] == [{}] * 8

    assert database.summaries() == [(number, "fine") for number in range(8)]


def test_a_deadlock_that_goes_on(postgres):
    """It is the database's fault, and may be over later; the rows are not refused."""
    postgres.run("CREATE TABLE summaries (doc INTEGER PRIMARY KEY, summary TEXT)")
    postgres.run("""
        CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$
    """)
    postgres.run("CREATE TRIGGER meet BEFORE INSERT ON summaries FOR EACH ROW EXECUTE FUNCTION meet()")
    table = SqlTable("warehouse", "summaries", "doc", COLUMNS)
    table.open(EXAMPLES, "id")

    with pytest.raises(DatabaseGoneError, match="deadlock detected"):
        table.write([result(1)])
    postgres.run("DROP TRIGGER meet ON summaries")
    assert table.write([result(1)]) == {}
    table.close()

    assert postgres.summaries() == [(1, "fine")]
