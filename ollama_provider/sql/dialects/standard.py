"""Standard SQL: what any database understands, and the names of tables and columns in quotes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic_core import to_json

from ollama_provider.sql.database import row_values

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


#: The numbers of a vector, each a float32.
Vector = Sequence[float]


class UnfitTableError(Exception):
    """The table as it is would not have each result exactly once."""


class KeyClashError(ValueError):
    """The table does not tell the key of a row from another one."""


@dataclass(frozen=True)
class Destination:
    """A table, and which of its columns get values.

    Attributes:
        table: name, with its schema in front if it is not the connection's own.
        columns: names of the columns, in the order of the values.
        key: those of them that identify a row.
    """

    table: str
    columns: Sequence[str]
    key: Sequence[str]

    @property
    def rest(self) -> list[str]:
        """The columns that are not in the key."""
        return [name for name in self.columns if name not in self.key]

    @property
    def parts(self) -> list[str]:
        """The table's own name, and in front of it that of its schema where there is one.

        A dot separates schema and table, unless it is inside double quotes, as in ``sales."v1.2"``.

        Raises:
            ValueError: it is not a table name.
        """
        parts, place = [], 0
        while match := _PART.match(self.table, place):
            parts.append(match[1].replace('""', '"') if match[1] else match[2])
            place = match.end()
            if place == len(self.table):
                return parts
            if self.table[place] != ".":
                break
            place += 1
        raise ValueError(
            f"{self.table!r} is not a table name: write table or schema.table, odd names in double quotes."
        )


class Dialect:
    """A database of which nothing is known but that it understands standard SQL.

    Standard SQL has no "insert or update" that all of them know, so each row is looked up first: two statements a row.

    Args:
        hook: the ``DbApiHook`` of a connection.
    """

    #: Types of columns by the Python type of their values; empty if it is not known how the database calls them.
    types: ClassVar[Mapping[type, str]] = {}

    def __init__(self, hook: Any) -> None:
        self._hook = hook
        form = str(getattr(hook, "escape_word_format", '"{}"'))
        #: What is before and after a name in quotes.
        self.quotes = (form[0], form[-1])

    def connect(self) -> Any:
        """Return a new connection of the hook, set so that the database neither changes a value nor misreads it."""
        return self._hook.get_conn()

    def reading_cursor(self, connection: Any) -> Any:
        """Return a cursor for a query with many rows."""
        return connection.cursor()

    # What statements are made of.

    def quote(self, name: str) -> str:
        """Return a name in quotes, so that SQL takes case, blanks, reserved words and quotes literally."""
        begin, end = self.quotes
        return begin + name.replace(end, 2 * end) + end

    def names(self, columns: Sequence[str]) -> str:
        """Return the names of columns in quotes, with commas between them."""
        return ", ".join(map(self.quote, columns))

    def table(self, to: Destination) -> str:
        """Return the name of a table, each part in quotes."""
        return ".".join(map(self.quote, to.parts))

    def placeholders(self, count: int) -> list[str]:
        """Return what stands for so many values."""
        return [str(self._hook.placeholder)] * count

    def insert(self, to: Destination, values: Sequence[str]) -> str:
        """Return the statement that inserts a row."""
        return f"INSERT INTO {self.table(to)} ({self.names(to.columns)}) VALUES ({', '.join(values)})"  # noqa: S608  # quoted

    # Before the first row.

    def check_names(self, to: Destination) -> None:
        """Look whether the driver takes the names of table and columns in a statement with placeholders.

        Raises:
            UnfitTableError: it takes a part of a name for a placeholder.
        """
        # Some drivers read %% as one percent sign, others as two, and MySQL's either as the place in the statement is.
        if "%" in self.placeholders(1)[0] and (odd := [name for name in (*to.parts, *to.columns) if "%" in name]):
            raise UnfitTableError(
                f"The driver of this database marks values with %, so the name {odd[0]!r} cannot be in a statement. "
                "Rename it, or write into a view that has another name for it."
            )

    def column_type(self, kind: type, *, in_key: bool) -> str:  # noqa: ARG002  # some have other types in keys
        """Return the type of a column for values of a Python type; that of a text if there is no other."""
        return self.types.get(kind, self.types[str])

    def vector_type(self, cursor: Any, name: str, length: int) -> str:  # noqa: ARG002  # few have such a type
        """Return the type of a column for vectors.

        Args:
            cursor: to look at what the database has.
            name: of the column.
            length: numbers in a vector.

        Raises:
            UnfitTableError: the database lacks what it needs.
        """
        return self.column_type(str, in_key=False)

    def vector_text(self, cursor: Any, to: Destination, name: str, length: int) -> Callable[[Vector], str]:  # noqa: ARG002  # few have such a type
        """Return the function that makes a text of a vector, as a column of the table takes it.

        Args:
            cursor: to look at the column.
            to: the table.
            name: of the column.
            length: numbers in a vector.

        Raises:
            UnfitTableError: the column takes no vectors of that length.
        """
        return json_text

    def create_table(self, to: Destination, types: Mapping[str, type | str]) -> str:
        """Return the statement that creates a table if it does not exist; for dialects that know `types`.

        Args:
            to: the table.
            types: the Python types of its values, or the database's own, by the names of the columns.
        """
        own = {
            name: kind if isinstance(kind, str) else self.column_type(kind, in_key=name in to.key)
            for name, kind in types.items()
        }
        columns = ", ".join(f"{self.quote(name)} {own[name]}" for name in to.columns)
        return f"CREATE TABLE IF NOT EXISTS {self.table(to)} ({columns}, PRIMARY KEY ({self.names(to.key)}))"

    def create_unique_index(self, to: Destination) -> str:
        """Return the statement that creates the unique index which an upsert needs."""
        return (
            f"CREATE UNIQUE INDEX {self.quote('_'.join(['key', *to.key]))} ON {self.table(to)} ({self.names(to.key)})"
        )

    def check(self, cursor: Any, to: Destination) -> None:
        """Let the database look for the table, its columns and the right to write, without writing.

        Raises:
            Exception: of the driver: something is missing.
            UnfitTableError: the table would lose rows, or mix them up.
        """
        table, columns = self.table(to), self.names(to.columns)
        same = ", ".join(f"{name} = {name}" for name in map(self.quote, to.rest or to.key))
        cursor.execute(f"UPDATE {table} SET {same} WHERE 1 = 0")  # noqa: S608  # quoted
        cursor.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE 1 = 0")  # noqa: S608  # quoted

    # Rows.

    def write(self, cursor: Any, to: Destination, rows: Sequence[Sequence[Any]]) -> None:
        """Insert each row, or update the one with the same key. A second time it changes nothing.

        Args:
            cursor: of a connection that commits afterwards.
            to: the table.
            rows: values, in the order of the columns.

        Raises:
            Exception: of the driver.
            KeyClashError: the table does not tell a key from another one.
        """
        marks = self.placeholders(len(to.columns))
        of_rest = marks[: len(to.rest)]
        select = f"SELECT {self.names(to.key)} FROM {self.table(to)} WHERE {self._equal(to.key, marks, ' AND ')}"  # noqa: S608  # quoted
        insert = self.insert(to, marks)
        update = (
            f"UPDATE {self.table(to)} SET {self._equal(to.rest, of_rest, ', ')} "  # noqa: S608  # quoted
            f"WHERE {self._equal(to.key, marks[len(of_rest) :], ' AND ')}"
        )
        for row in rows:
            for value in row:
                if isinstance(value, str):
                    value.encode()  # half a surrogate pair is no text, and drivers call that any kind of error
            values = dict(zip(to.columns, row, strict=True))
            key = [values[name] for name in to.key]
            cursor.execute(select, key)
            found = cursor.fetchall()
            _check_same(to.key, key, found)
            if not found:
                cursor.execute(insert, list(row))
            elif to.rest:
                cursor.execute(update, [*(values[name] for name in to.rest), *key])

    def delete_from(self, cursor: Any, to: Destination, column: str, keys: Sequence[Sequence[Any]]) -> None:
        """Delete the rows of each key from a number in one of its columns on.

        Args:
            cursor: of a connection that commits afterwards.
            to: the table.
            column: the one of the key with the number.
            keys: values of the other columns of the key, in their order, and the first number to delete.
        """
        others = [name for name in to.key if name != column]
        *marks, first = self.placeholders(len(to.key))
        where = f"{self._equal(others, marks, ' AND ')} AND {self.quote(column)} >= {first}"
        cursor.executemany(f"DELETE FROM {self.table(to)} WHERE {where}", keys)  # noqa: S608  # quoted

    def _equal(self, names: Sequence[str], values: Sequence[str], between: str) -> str:
        return between.join(f"{self.quote(name)} = {value}" for name, value in zip(names, values, strict=False))


class Oracle(Dialect):
    """Oracle, whose placeholders have numbers."""

    def placeholders(self, count: int) -> list[str]:
        """Return ``:1``, ``:2`` and so on."""
        return [f":{number}" for number in range(1, count + 1)]


def json_text(vector: Vector) -> str:
    """Return a vector as JSON, which is also what pgvector reads.

    The digits are those of float64: half as many would do, but take Python five times as long to find.
    """
    return to_json(list(vector)).decode()


def _check_same(names: Sequence[str], key: Sequence[Any], found: Sequence[Sequence[Any]]) -> None:
    if len(found) > 1:
        raise KeyClashError(f"the table has {len(found)} rows with this key; it needs a unique index on its key")
    for row in found:
        for name, ours, theirs in zip(names, key, row_values(row), strict=True):
            if isinstance(ours, str) and isinstance(theirs, str) and ours != theirs:
                raise KeyClashError(
                    f"the table takes {ours!r} for the same as {theirs!r}; its column {name!r} needs a collation that "
                    "compares every character"
                )
