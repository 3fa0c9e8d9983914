"""`SqlTable`: a table that takes the good results of a batch."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

from ollama_provider.batch import DatabaseError, Outcome, Provenance, plain
from ollama_provider.sql.database import (
    Cause,
    cause_of,
    database_errors,
    database_hook,
    error_text,
    is_missing_table,
    is_missing_unique,
)
from ollama_provider.sql.dialects import Destination, Dialect, UnfitTableError, dialect_for

#: Sources of columns that are known before the model is asked.
_OWN = ("id", "index", "key", "row")
_FIELDS = {*_OWN, *(each.name for kind in (Outcome, Provenance) for each in fields(kind))} - {
    "status",
    "error",
    "reply",
}
#: What has other values than text.
_TYPES: dict[str, type] = dict.fromkeys(("index", "tokens", "prompt_tokens", "attempts", "seed", "num_ctx"), int)
_TYPES |= dict.fromkeys(("seconds", "queue_seconds", "tokens_per_second"), float)
_TYPES |= dict.fromkeys(("prompt_cut", "answer_cut"), bool)
#: How often a transaction is tried again at once that met another writer.
_CONFLICTS = 5


class _MissingValueError(ValueError):
    """A result has no value for a column."""


@dataclass
class SqlTable:
    """A table that the good results of a batch are written into, for ``OllamaBatchOperator(into=…)``.

    A row is inserted, or updated if there is one with the same key, as soon as its result is in a checkpoint of the
    batch. The batch's directory notes what was written. So after a crash the next try writes the missing rows, each
    once, without asking the model again. Failed rows are not written. A row that the table refuses, because of a
    constraint or a type, is in ``failed.jsonl`` with the text of the database, and all others are written. While the
    database is unavailable the batch goes on and results wait, for at most *max_outage* of the batch.

    Names are taken literally, as the database's catalogue has them: a table that was made in PostgreSQL by ``CREATE
    TABLE Summaries`` has the name ``summaries``.

    Args:
        conn_id: Airflow connection whose hook is a ``DbApiHook``; a template.
        table: name, with its schema in front if it is not the connection's own (``reports.summaries``); a template.
        key: the column, or columns, that identify a row; the table must have a unique index on exactly these. They
            take ``id``, ``index``, ``key`` or ``row.…``.
        columns: for each column of the table what goes into it: ``id`` (the value of the batch's *id_column*),
            ``index``, ``key``, ``output``, ``output.field.in.it`` of structured output, ``row.name`` (a column of the
            input), ``model``, ``digest``, ``tokens``, ``seconds`` or another name of ``results.jsonl``. What is not one
            value becomes JSON text, which fits ``jsonb``, ``json`` and ``text``.
        create: create the table if it does not exist.

    Raises:
        DatabaseError: from `open`, before the first request: the table, a column, the unique index or the right to
            write is missing. The text has the statement that creates a missing table or index.
        DatabaseGoneError: from `open` and `write`: the database is unavailable.
    """

    template_fields: ClassVar[Sequence[str]] = ("conn_id", "table")

    conn_id: str
    table: str
    key: str | Sequence[str]
    columns: Mapping[str, str]
    create: bool = False
    _connection: Any = field(default=None, init=False, repr=False, compare=False)

    @property
    def row_columns(self) -> Sequence[str]:
        """Columns of the input that the table takes."""
        return [source.partition(".")[2] for source in self.columns.values() if source.startswith("row.")]

    @property
    def target(self) -> Mapping[str, Any]:
        """Which table, and what goes into it."""
        return {"conn_id": self.conn_id, "table": self.table, "key": self._key, "columns": dict(self.columns)}

    @property
    def _key(self) -> list[str]:
        return [self.key] if isinstance(self.key, str) else list(self.key)

    @property
    def _destination(self) -> Destination:
        return Destination(self.table, list(self.columns), self._key)

    @cached_property
    def _dialect(self) -> Dialect:
        return dialect_for(database_hook(self.conn_id))

    def open(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> None:
        """Check, before the first request, that results can be written; see `ollama_provider.batch.records.Table`."""
        self._check(examples, id_column)
        with database_errors(self.conn_id, f"preparing to write into {self.table}"):
            if self.create and not self._dialect.types:
                raise self._error(
                    "create=True is for PostgreSQL, MySQL, MariaDB and SQLite. Leave it out, and create the table "
                    "yourself."
                )
            try:
                self._check_table()
            except UnfitTableError as error:
                raise self._error(str(error)) from None
            except Exception as error:
                if is_missing_unique(error):
                    index = self._dialect.create_unique_index(self._destination)
                    raise self._error(f"It has no unique index on its key. This creates one: {index}") from None
                if not self._dialect.types or not is_missing_table(error):
                    raise
                create = self._dialect.create_table(self._destination, self._types(examples, id_column))
                if not self.create:
                    advice = f"It does not exist. This creates it, as create=True of SqlTable would: {create}"
                    raise self._error(advice) from None
                self._create_table(create)

    def _check_table(self) -> None:
        self._run(lambda cursor: self._dialect.check(cursor, self._destination))

    def _create_table(self, statement: str) -> None:
        try:
            self._run(lambda cursor: cursor.execute(statement))
        except Exception:
            # In PostgreSQL this may fail because another shard makes the table at the same time.
            with suppress(Exception):
                self._check_table()
                return
            raise

    def _error(self, text: str) -> DatabaseError:
        return DatabaseError(f"Connection {self.conn_id!r}, table {self.table}: {text}")

    def _check(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> None:
        for name, source in self.columns.items():
            head, _, rest = source.partition(".")
            if head not in _FIELDS or ((head == "row") != bool(rest) and head != "output"):
                raise DatabaseError(
                    f"SqlTable: column {name!r} cannot take {source!r}; known are {', '.join(sorted(_FIELDS))}, with "
                    "row.NAME and output.NAME."
                )
            if head == "id" and id_column is None:
                raise DatabaseError(
                    f"SqlTable: column {name!r} takes the row's id, but no id_column says which that is."
                )
            if head == "row" and examples and not any(rest in row for row in examples):
                known = ", ".join(sorted({repr(column) for row in examples for column in row}))
                raise DatabaseError(f"SqlTable: column {name!r} takes {source!r}, but the rows have only {known}.")
        for name in self._key:
            if self.columns.get(name, "").partition(".")[0] not in _OWN:
                raise DatabaseError(
                    f"SqlTable: the key {name!r} must be among the columns and take id, index, key or row.NAME: what "
                    "a model says cannot tell rows apart."
                )

    def _types(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> dict[str, type]:
        types = {}
        for name, source in self.columns.items():
            head, _, rest = source.partition(".")
            column = {"id": id_column, "row": rest}.get(head)
            seen = {type(row[column]) for row in examples if row.get(column) is not None} if column else set()
            own = seen.pop() if len(seen) == 1 else None
            types[name] = own or (None if rest else _TYPES.get(head)) or str
        return types

    def of_row(self, own: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return what does not come from the model: the values of the key, and those of all such columns."""
        values = {
            name: plain(_take(own, source)) for name, source in self.columns.items() if source.partition(".")[0] in _OWN
        }
        return [values[name] for name in self._key], values

    def write(self, results: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        """Insert or update a row for each result, and commit. Return the refused ones with the database's text."""
        refused: dict[int, str] = {}
        rows: list[tuple[int, list[Any]]] = []
        for place, result in enumerate(results):
            try:
                rows.append((place, [_parameter(_take(result, source)) for source in self.columns.values()]))
            except _MissingValueError as error:
                refused[place] = str(error)
        if rows:
            # Two writers that lock the same rows in another order would wait for each other.
            key = [list(self.columns).index(name) for name in self._key]
            rows.sort(key=lambda row: [repr(row[1][place]) for place in key])
            self._write(rows, refused)
        return refused

    def _write(self, rows: Sequence[tuple[int, list[Any]]], refused: dict[int, str], conflicts: int = 0) -> None:
        """Write the rows in one transaction. If one is refused, try each half, until every bad row is alone."""
        values = [row for _, row in rows]
        try:
            self._run(lambda cursor: self._dialect.write(cursor, self._destination, values))
        except Exception as error:
            cause = cause_of(error)
            if cause is Cause.CONFLICT and conflicts < _CONFLICTS:
                self._write(rows, refused, conflicts + 1)
                return
            if cause is not Cause.DATA:
                with database_errors(self.conn_id, f"writing into {self.table}"):
                    raise
            if len(rows) == 1:
                refused[rows[0][0]] = error_text(error, detail=True)
                return
        else:
            return
        half = len(rows) // 2
        self._write(rows[:half], refused)
        self._write(rows[half:], refused)

    def _run(self, work: Callable[[Any], None]) -> None:
        """Do something with a cursor, and commit."""
        try:
            if self._connection is None:
                self._connection = self._dialect.connect()
            with closing(self._connection.cursor()) as cursor:
                work(cursor)
            self._connection.commit()
        except BaseException as error:
            if cause_of(error) is Cause.DOWN:
                self.close()
            elif self._connection is not None:
                with suppress(Exception):  # the error before is the one to raise
                    self._connection.rollback()
            raise

    def close(self) -> None:
        """Close the connection; twice does no harm."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is closed because it is broken
                connection.close()


def _take(result: Mapping[str, Any], source: str) -> Any:
    head, _, rest = source.partition(".")
    value = result.get(head)
    if head == "row":
        return value and value.get(rest)
    for name in rest.split(".") if rest else ():
        if not isinstance(value, Mapping) or name not in value:
            raise _MissingValueError(f"the output has no {source.partition('.')[2]!r}")
        value = value[name]
    return value


def _parameter(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
