"""Databases whose upsert is ``INSERT … ON CONFLICT``: PostgreSQL (since 9.5) and SQLite (since 3.24)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ollama_provider.sql.dialects.standard import Destination, Dialect


class OnConflict(Dialect):
    """An upsert is a clause of the insert, and ``EXPLAIN`` checks a statement without running it."""

    types: ClassVar[Mapping[type, str]] = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE PRECISION", str: "TEXT"}

    def upsert(self, to: Destination, values: Sequence[str]) -> str:
        """Return the statement that inserts a row or updates the one with the same key."""
        update = ", ".join(f"{name} = excluded.{name}" for name in map(self.quote, to.rest))
        action = f"UPDATE SET {update}" if update else "NOTHING"
        return f"{self.insert(to, values)} ON CONFLICT ({self.names(to.key)}) DO {action}"

    def check(self, cursor: Any, to: Destination) -> None:
        """Check table, columns and unique index, and in PostgreSQL the right to write."""
        cursor.execute(f"EXPLAIN {self.upsert(to, ['NULL'] * len(to.columns))}")

    def write(self, cursor: Any, to: Destination, rows: Sequence[Sequence[Any]]) -> None:
        """Insert or update the rows."""
        cursor.executemany(self.upsert(to, self.placeholders(len(to.columns))), rows)


class Sqlite(OnConflict):
    """SQLite."""
