"""The statements that put results into a table. Text only: no database.

PostgreSQL (9.5) and SQLite (3.24) say an upsert in the same words.
"""

import re
from collections.abc import Mapping, Sequence

from ollama_provider.batch import DatabaseError

DIALECTS = ("postgresql", "sqlite")

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def quote(name: str) -> str:
    """Return a name as SQL takes it literally: case, blanks, reserved words and quotes included."""
    return '"' + name.replace('"', '""') + '"'


def quote_table(table: str) -> str:
    """Return a table's name, which may have its schema in front, quoted part by part.

    A dot parts schema and table, unless it stands in double quotes: ``sales."v1.2"``.

    Raises:
        DatabaseError: it is no such name.
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
    raise DatabaseError(f"{table!r} is no name of a table: write table or schema.table, odd names in double quotes.")


def upsert(table: str, columns: Sequence[str], key: Sequence[str], values: Sequence[str]) -> str:
    """Return the statement that inserts a row, or updates the one with the same key."""
    rest = [column for column in columns if column not in key]
    update = ", ".join(f"{quote(column)} = excluded.{quote(column)}" for column in rest)
    insert = f"INSERT INTO {quote_table(table)} ({_names(columns)}) VALUES ({', '.join(values)})"  # noqa: S608  # quoted
    return f"{insert} ON CONFLICT ({_names(key)}) DO {f'UPDATE SET {update}' if update else 'NOTHING'}"


def create_table(table: str, types: Mapping[str, str], key: Sequence[str]) -> str:
    """Return the statement that makes the table, if it is not there."""
    columns = ", ".join(f"{quote(column)} {kind}" for column, kind in types.items())
    return f"CREATE TABLE IF NOT EXISTS {quote_table(table)} ({columns}, PRIMARY KEY ({_names(key)}))"


def create_unique_index(table: str, key: Sequence[str]) -> str:
    """Return the statement that lets the key be one."""
    return f"CREATE UNIQUE INDEX {quote('_'.join(['key', *key]))} ON {quote_table(table)} ({_names(key)})"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(map(quote, columns))
