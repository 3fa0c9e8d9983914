"""`SqlRows`: a query whose rows are the input of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

from ollama_provider.batch import DatabaseError
from ollama_provider.sql.database import database_errors, database_hook, row_values
from ollama_provider.sql.dialects import dialect_for


@dataclass
class SqlRows:
    """The rows of a query, for ``OllamaBatchOperator(rows=…)``: each a row of the batch, its columns by their names.

    The query runs once in a DAG run. Its rows are written into the batch's directory, as JSON lines, before the first
    request; retries and a cleared task read them there. Values that have no JSON form become text, see
    `ollama_provider.batch.records.plain`: dates in ISO 8601, times with a zone in UTC, decimals and UUIDs as they are
    written, bytes in hex, NaN as null. Without ``ORDER BY`` the rows keep the order in which they came.

    PostgreSQL answers through a cursor on the server, so no more than *chunk_size* rows are in memory. With other
    databases the driver decides how many it holds.

    Args:
        conn_id: Airflow connection whose hook is a ``DbApiHook``; a template.
        sql: one statement that returns rows; a template (a file: ``{% include "rows.sql" %}``).
        parameters: values for the placeholders of the statement, in the style of the driver (``%s`` and ``%(name)s`` in
            PostgreSQL, ``?`` and ``:name`` in SQLite); a template.
        chunk_size: rows fetched at a time.
        occasion: the query runs again when this changes; `OllamaBatchOperator` puts the id of the DAG run here.

    Raises:
        DatabaseError: from `fetch`: the statement is wrong, or two of its columns have the same name.
        DatabaseGoneError: from `fetch`: the database is unavailable.
    """

    template_fields: ClassVar[Sequence[str]] = ("conn_id", "sql", "parameters")

    conn_id: str
    sql: str
    parameters: Mapping[str, Any] | Sequence[Any] | None = None
    chunk_size: int = 1000
    occasion: str = ""

    @property
    def question(self) -> Mapping[str, Any]:
        """The query, as plain data."""
        return {"conn_id": self.conn_id, "sql": self.sql, "parameters": self.parameters}

    def fetch(self) -> Iterator[list[dict[str, Any]]]:
        """Run the query, and return its rows, *chunk_size* at a time."""
        arguments = (self.sql,) if self.parameters is None else (self.sql, self.parameters)
        dialect = dialect_for(database_hook(self.conn_id))
        with (
            database_errors(self.conn_id, "reading the rows"),
            closing(dialect.connect()) as connection,
            closing(dialect.reading_cursor(connection)) as cursor,
        ):
            cursor.execute(*arguments)
            names: list[str] = []
            while rows := cursor.fetchmany(self.chunk_size):
                names = names or self._names(cursor.description)
                yield [dict(zip(names, row_values(row), strict=True)) for row in rows]

    def _names(self, description: Sequence[Sequence[Any]]) -> list[str]:
        names = [str(column[0]) for column in description]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DatabaseError(
                f"Connection {self.conn_id!r}: the query returns several columns of the name {', '.join(twice)}. "
                "Rename them with AS."
            )
        return names
