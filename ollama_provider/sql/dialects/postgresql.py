"""PostgreSQL (since 9.5), and its types for vectors: those of the extension pgvector, and arrays of numbers."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ollama_provider.sql.database import Cause, cause_of, error_text, row_values
from ollama_provider.sql.dialects.on_conflict import OnConflict
from ollama_provider.sql.dialects.standard import Destination, UnfitTableError, Vector, json_text

#: The type of pgvector, with its schema if that is not searched, or NULL; and whether the server has the extension.
_PGVECTOR = """
    SELECT
        (SELECT CAST(CAST(pg_type.oid AS regtype) AS text)
         FROM pg_type JOIN pg_extension ON extnamespace = typnamespace
         WHERE extname = 'vector' AND typname = 'vector'),
        EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')
"""
_COLUMN_TYPE = """
    SELECT format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = CAST(%s AS regclass) AND attname = %s
"""
#: Types that take vectors of any length, so that those of two models may come into one table.
_ANY_LENGTH = re.compile(r".*\[\]|(.*\.)?(vector|halfvec)")


class Postgresql(OnConflict):
    """PostgreSQL, which keeps the rows of a query until they are fetched."""

    def reading_cursor(self, connection: Any) -> Any:
        """Return a cursor on the server."""
        # That is what a cursor with a name is, in psycopg and in psycopg2.
        return connection.cursor("ollama_rows")

    def vector_type(self, cursor: Any, name: str, length: int) -> str:
        """Return ``vector(n)`` where the database has pgvector, and an array of floats where the server has not.

        Raises:
            UnfitTableError: the server has pgvector, but the database has not.
        """
        cursor.execute(_PGVECTOR)
        kind, available = row_values(cursor.fetchone())
        if kind is not None:
            return f"{kind}({length})"
        if available:
            raise UnfitTableError(
                "It does not exist. The server has pgvector, but this database has not: run CREATE EXTENSION vector in "
                "it, or create the table yourself, with a column of REAL[] for the vectors."
            )
        return f"REAL[] CHECK (cardinality({self.quote(name)}) = {length})"

    def vector_text(self, cursor: Any, to: Destination, name: str, length: int) -> Callable[[Vector], str]:
        """Return the function that makes a text of a vector: of an array or, for any other type, JSON.

        Raises:
            UnfitTableError: the column is for vectors of another length, or for something else.
        """
        cursor.execute(_COLUMN_TYPE, (self.table(to), name))
        (kind,) = row_values(cursor.fetchone())
        text = _array_text if kind.endswith("[]") else json_text
        try:
            # The name of the type is in quotes where it needs them.
            cursor.execute(f"SELECT CAST(%s AS {kind})", (text([0.5] * length),))
        except Exception as error:
            if cause_of(error) is not Cause.DATA:
                raise
            raise UnfitTableError(
                f"Its column {name!r} is {kind}, and the vectors of the model have {length} numbers "
                f"({error_text(error)}). Use the model or the dimensions that the table is for, or another table."
            ) from None
        if _ANY_LENGTH.fullmatch(kind):
            column = self.quote(name)
            cursor.execute(
                f"SELECT cardinality(CAST({column} AS real[])) FROM {self.table(to)} WHERE {column} IS NOT NULL LIMIT 1"  # noqa: S608  # quoted
            )
            there = cursor.fetchone()
            if there is not None and (found := row_values(there)[0]) != length:
                raise UnfitTableError(
                    f"It has vectors of {found} numbers in {name!r}, and those of the model have {length}. Use the "
                    "model or the dimensions that the table is for, or another table."
                )
        return text

    def write(self, cursor: Any, to: Destination, rows: Sequence[Sequence[Any]]) -> None:
        """Insert or update the rows."""
        super().write(cursor, to, [[_unrounded(value) for value in row] for row in rows])


def _unrounded(value: Any) -> Any:
    # A column of whole numbers rounds a number with a fraction, but refuses its digits; any other takes these.
    return repr(value) if isinstance(value, float) and not value.is_integer() else value


def _array_text(vector: Vector) -> str:
    return "{" + json_text(vector)[1:-1] + "}"
