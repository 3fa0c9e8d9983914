"""`SqlTable`: a table that takes the good results of a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from ollama_provider.batch import DatabaseError, Vectors
from ollama_provider.sql.columns import Columns, UnfitValueError
from ollama_provider.sql.database import (
    Cause,
    cause_of,
    database_errors,
    database_hook,
    error_text,
    is_missing_table,
    is_missing_unique,
)
from ollama_provider.sql.dialects import Destination, Dialect, UnfitTableError, Vector, dialect_for

T = TypeVar("T")

#: How often a transaction is tried again at once that met another writer.
_CONFLICTS = 5


@dataclass
class SqlTable:
    """A table that the good results of a batch are written into, for ``OllamaBatchOperator(into=…)``.

    A row is inserted, or updated if there is one with the same key, as soon as its result is in a checkpoint of the
    batch. The batch's directory notes what was written. So after a crash the next try writes the missing rows, each
    once, without asking the model again. Failed rows are not written. A row that the table refuses, because of a
    constraint or a type, is in ``failed.jsonl`` with the text of the database, and all others are written. While the
    database is unavailable the batch goes on and results wait, for at most *max_outage* of the batch.

    Names are taken literally, as the database's catalogue has them: a table that was made in PostgreSQL by ``CREATE
    TABLE Summaries`` has the name ``summaries``. Where the driver marks values with ``%s``, as those of PostgreSQL and
    MySQL do, no name may have a percent sign.

    Args:
        conn_id: Airflow connection whose hook is a ``DbApiHook``; a template.
        table: name, with its schema in front if it is not the connection's own (``reports.summaries``); a template.
        key: the column, or columns, that identify a row; the table must have a unique index on exactly these. They
            take ``id``, ``index``, ``key`` or ``row.…``, and one of them ``chunk`` where long texts are split.
        columns: for each column of the table what goes into it: ``id`` (the value of the batch's *id_column*),
            ``index``, ``key``, ``output``, ``output.field.in.it`` of structured output, ``row.name`` (a column of the
            input), ``model``, ``digest``, ``tokens``, ``seconds`` or another name of ``results.jsonl``. What is not one
            value becomes JSON text, which fits ``jsonb``, ``json`` and ``text``. With `Embedding`, ``output`` is the
            vector, for a column of pgvector (``vector(768)``, ``halfvec(768)``), an array of floats, or JSON text; with
            ``on_long_text="split"`` each piece of a text is a row, ``chunk`` its number from 0, ``start`` and ``end``
            its place in the text.
        create: create the table if it does not exist; for PostgreSQL, MySQL, MariaDB and SQLite.

    Raises:
        DatabaseError: from `open`, before the first request: the table, a column, the unique index or the right to
            write is missing. The text has the statement that creates a missing table or index. Of a database other than
            those for which *create* is, the unique index is not looked for.
        DatabaseGoneError: from `open` and `write`: the database is unavailable.
    """

    template_fields: ClassVar[Sequence[str]] = ("conn_id", "table")

    conn_id: str
    table: str
    key: str | Sequence[str]
    columns: Mapping[str, str]
    create: bool = False
    _connection: Any = field(default=None, init=False, repr=False, compare=False)
    _vectors: Vectors | None = field(default=None, init=False, repr=False, compare=False)
    #: Numbers in a vector, once that is known, and what makes a text of it for each column that takes it.
    _length: int | None = field(default=None, init=False, repr=False, compare=False)
    _texts: dict[str, Callable[[Vector], str]] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    @property
    def _columns(self) -> Columns:
        return Columns(self.columns, self._key, self._vectors)

    @cached_property
    def _dialect(self) -> Dialect:
        return dialect_for(database_hook(self.conn_id))

    def open(
        self, examples: Sequence[Mapping[str, Any]], id_column: str | None, vectors: Vectors | None = None
    ) -> None:
        """Check, before the first row is asked, that results can be written; see `batch.records.Table`."""
        self._vectors, self._length = vectors, None
        self._columns.check(examples, id_column)
        with self._preparing():
            self._dialect.check_names(self._destination)
            if self.create and not self._dialect.types:
                raise self._error(
                    "create=True is for PostgreSQL, MySQL, MariaDB and SQLite. Leave it out, and create the table "
                    "yourself, with a unique index on its key: in other databases nobody looks whether there is one."
                )
            try:
                self._check_table()
            except Exception as error:
                if is_missing_unique(error):
                    index = self._dialect.create_unique_index(self._destination)
                    raise self._error(f"It has no unique index on its key. This creates one: {index}") from None
                if not self._dialect.types or not is_missing_table(error):
                    raise
                create = self._create_statement(examples, id_column)
                if not self.create:
                    advice = f"It does not exist. This creates it, as create=True of SqlTable would: {create}"
                    raise self._error(advice) from None
                self._create_table(create)
            if vectors is not None and vectors.length is not None:
                self._expect_vectors(vectors.length)

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        with database_errors(self.conn_id, f"preparing to write into {self.table}"):
            try:
                yield
            except UnfitTableError as error:
                raise self._error(str(error)) from None

    def _check_table(self) -> None:
        self._run(lambda cursor: self._dialect.check(cursor, self._destination))
        if (chunk := self._columns.of_chunk) is not None:
            # No row has a key of nulls, but the right to delete is looked for.
            nulls = [None] * len(self._key)
            self._run(lambda cursor: self._dialect.delete_from(cursor, self._destination, chunk, [nulls]))

    def _create_statement(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> str:
        types: dict[str, type | str] = {**self._columns.types(examples, id_column)}
        if self._vectors is not None:
            if (length := self._vectors.length) is None:
                raise self._error("It does not exist, and there is no vector yet that says how long a column must be.")
            for name in self._columns.of_vectors:
                types[name] = self._run(partial(self._dialect.vector_type, name=name, length=length))
        return self._dialect.create_table(self._destination, types)

    def _expect_vectors(self, length: int) -> None:
        """Look whether, and how, the table takes vectors of that length.

        Raises:
            UnfitTableError: it does not.
        """
        for name in self._columns.of_vectors:
            text_of = partial(self._dialect.vector_text, to=self._destination, name=name, length=length)
            self._texts[name] = self._run(text_of)
        self._length = length

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

    def of_row(self, own: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return what does not come from the model: the values of the key, and those of all such columns."""
        return self._columns.own_values(own)

    def write(self, results: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        """Insert or update a row for each result, and commit. Return the refused ones with the database's text."""
        refused: dict[int, str] = {}
        rows: list[tuple[int, list[list[Any]]]] = []
        columns = self._columns
        for place, result in enumerate(results):
            try:
                rows.append((place, columns.rows(result, self._vector_text)))
            except UnfitValueError as error:
                refused[place] = str(error)
        if rows:
            # Two writers that lock the same rows in another order would wait for each other.
            key = [list(self.columns).index(name) for name in self._key]
            rows.sort(key=lambda row: [repr(row[1][0][place]) for place in key])
            self._write(rows, refused)
        return refused

    def _vector_text(self, name: str, vector: Vector) -> str:
        if self._length is None:  # as in a merge, which asks for no vector beforehand
            with self._preparing():
                self._expect_vectors(len(vector))
        if len(vector) != self._length:
            raise UnfitValueError(f"a vector of {len(vector)} numbers, where the others have {self._length}")
        return self._texts[name](vector)

    def _write(self, rows: Sequence[tuple[int, list[list[Any]]]], refused: dict[int, str], conflicts: int = 0) -> None:
        """Write the results in one transaction. If one is refused, try each half, until every bad one is alone."""
        try:
            self._run(lambda cursor: self._write_rows(cursor, [of_result for _, of_result in rows]))
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

    def _write_rows(self, cursor: Any, results: Sequence[Sequence[Sequence[Any]]]) -> None:
        to = self._destination
        if (chunk := self._columns.of_chunk) is not None:
            # The pieces that a text had more when it was longer.
            others = [to.columns.index(name) for name in to.key if name != chunk]
            # Of two texts with the same key the last one stands, without pieces of the other.
            last = {tuple(pieces[0][place] for place in others): pieces for pieces in results}
            self._dialect.delete_from(cursor, to, chunk, [[*key, len(pieces)] for key, pieces in last.items()])
            results = list(last.values())
        self._dialect.write(cursor, to, [row for pieces in results for row in pieces])

    def _run(self, work: Callable[[Any], T]) -> T:
        """Do something with a cursor, commit, and return what came of it."""
        try:
            if self._connection is None:
                self._connection = self._dialect.connect()
            with closing(self._connection.cursor()) as cursor:
                found = work(cursor)
            self._connection.commit()
        except BaseException as error:
            if cause_of(error) is Cause.DOWN:
                self.close()
            elif self._connection is not None:
                with suppress(Exception):  # the error before is the one to raise
                    self._connection.rollback()
            raise
        return found

    def close(self) -> None:
        """Close the connection; twice does no harm."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is closed because it is broken
                connection.close()
