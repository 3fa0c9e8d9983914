"""The SQL statements that write results into a table, as text.

PostgreSQL (since 9.5) and SQLite (since 3.24) have the same syntax for an upsert.
"""

import re
from collections.abc import Mapping, Sequence

from ollama_provider.batch import DatabaseError

DIALECTS = ("postgresql", "sqlite")

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def quote(name: str) -> str:
    """Return a name in double quotes, so that SQL takes case, blanks, reserved words and quotes literally."""
    return '"' + name.replace('"', '""') + '"'


def quote_table(table: str) -> str:
    """Return the name of a table, with or without its schema, each part in double quotes.

    A dot separates schema and table, unless it is inside double quotes, as in ``sales."v1.2"``.

    Raises:
        DatabaseError: it is not a table name.
    """
    parts, place = [], 0
    while match := _PART.match(table, place):
        parts.append(quote(match[1].replace('""', '"') if match[1] else match[2]))
        place = match.end()
        if place == len(table):
            return ".".join(parts)
        if table[place] != ".":
            break
        place += 1
    raise DatabaseError(f"{table!r} is not a table name: write table or schema.table, odd names in double quotes.")


def upsert(table: str, columns: Sequence[str], key: Sequence[str], values: Sequence[str]) -> str:
    """Return the statement that inserts a row or updates the one with the same key."""
    rest = [column for column in columns if column not in key]
    update = ", ".join(f"{quote(column)} = excluded.{quote(column)}" for column in rest)
    insert = f"INSERT INTO {quote_table(table)} ({_names(columns)}) VALUES ({', '.join(values)})"  # noqa: S608  # quoted
    return f"{insert} ON CONFLICT ({_names(key)}) DO {f'UPDATE SET {update}' if update else 'NOTHING'}"


def create_table(table: str, types: Mapping[str, str], key: Sequence[str]) -> str:
    """Return the statement that creates the table if it does not exist."""
    columns = ", ".join(f"{quote(column)} {kind}" for column, kind in types.items())
    return f"CREATE TABLE IF NOT EXISTS {quote_table(table)} ({columns}, PRIMARY KEY ({_names(key)}))"


def create_unique_index(table: str, key: Sequence[str]) -> str:
    """Return the statement that creates the unique index which an upsert needs."""
    return f"CREATE UNIQUE INDEX {quote('_'.join(['key', *key]))} ON {quote_table(table)} ({_names(key)})"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(map(quote, columns))
