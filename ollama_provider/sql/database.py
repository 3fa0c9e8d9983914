"""An Airflow connection to a database: its hook, and what the errors of its driver mean for a batch.

Drivers share the names of DB-API's exceptions (PEP 249) and little more. Where a driver gives an SQLSTATE or SQLite's
own code, that is more exact and decides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook

from ollama_provider.batch import DatabaseError, DatabaseGoneError

#: Beginnings of SQLSTATE, first match counts. Data: values, constraints, WITH CHECK OPTION, RAISE in a trigger.
_DATA_STATES = ("22", "23", "44", "P0001")
#: Connection, serialization and deadlock, resources, lock, shutdown and cancelled statements, system.
_DOWN_STATES = ("08", "40", "53", "55P03", "57", "58")
#: The same as names of SQLite's codes.
_DATA_CODES = ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG", "SQLITE_RANGE")
_DOWN_CODES = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN")
#: SQLSTATE, and the text of SQLite.
_NO_TABLE, _NO_UNIQUE = ("42P01", "no such table"), ("42P10", "ON CONFLICT clause does not match")


class Cause(Enum):
    """What is to blame for an error of a database."""

    #: A value of this row, or of one of these rows.
    DATA = auto()
    #: The database is unavailable for a while.
    DOWN = auto()
    #: The statement or the table: every row would fail alike.
    SETUP = auto()


#: By the names of DB-API's exceptions; last, what a driver raises for a value that it cannot even send: NUL in a text,
#: half a surrogate pair, an integer of a hundred digits.
_CAUSES = (
    ({"IntegrityError", "DataError"}, Cause.DATA),
    ({"OperationalError", "InterfaceError", "ConnectionError", "TimeoutError"}, Cause.DOWN),
    ({"DatabaseError", "Error"}, Cause.SETUP),
    ({"ValueError", "OverflowError"}, Cause.DATA),
)


def database_hook(conn_id: str) -> Any:
    """Return the ``DbApiHook`` of a connection.

    Raises:
        DatabaseError: the connection is not to an SQL database, or its provider is not installed.
        AirflowNotFoundException: there is no such connection.
    """
    try:
        hook = BaseHook.get_hook(conn_id)
    except AirflowNotFoundException:
        raise
    except (AirflowException, ImportError) as error:
        raise DatabaseError(
            f"Connection {conn_id!r} has no hook here ({error}). Install the provider of that kind of database, such "
            "as apache-airflow-providers-postgres."
        ) from error
    if not all(hasattr(hook, name) for name in ("get_conn", "placeholder")):
        raise DatabaseError(f"Connection {conn_id!r} is not to an SQL database: its hook is {type(hook).__name__}.")
    return hook


def dialect_of(hook: Any) -> str:
    """Return the kind of database, such as ``postgresql`` or ``sqlite``."""
    return str(getattr(hook, "dialect_name", hook.conn_type))


@contextmanager
def database_errors(conn_id: str, what: str) -> Iterator[None]:
    """Turn a driver's error inside the block into one of the batch, with the text of the database.

    Args:
        conn_id: of the connection.
        what: the block does, for the text of the error.

    Raises:
        DatabaseError: another try would fail alike.
        DatabaseGoneError: the database is unavailable, so another try may succeed.
    """
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if cause is None or isinstance(error, DatabaseError):
            raise
        kind = DatabaseGoneError if cause is Cause.DOWN else DatabaseError
        raise kind(f"Connection {conn_id!r}: {what} failed: {error_text(error)}") from None


def cause_of(error: BaseException) -> Cause | None:
    """Return what is to blame for an error; None if it is not one of a database."""
    if state := _state(error):
        return _first(state, {_DATA_STATES: Cause.DATA, _DOWN_STATES: Cause.DOWN}) or Cause.SETUP
    names = {kind.__name__ for kind in type(error).__mro__}
    if code := getattr(error, "sqlite_errorname", None):
        return _first(code, {_DOWN_CODES: Cause.DOWN, _DATA_CODES: Cause.DATA}) or Cause.SETUP
    return next((cause for known, cause in _CAUSES if names & known), None)


def _first(code: str, table: dict[tuple[str, ...], Cause]) -> Cause | None:
    return next((cause for beginnings, cause in table.items() if code.startswith(beginnings)), None)


def _state(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def error_text(error: BaseException, *, detail: bool = False) -> str:
    """Return the text of the database.

    Args:
        error: of the driver.
        detail: add what may quote values of the row; must not be used in logs and exceptions.
    """
    diagnosis: Any = getattr(error, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    if primary is None:
        # Some drivers quote the statement from the second line on.
        return " ".join((str(error) if detail else str(error).partition("\n")[0]).split()) or type(error).__name__
    parts = [primary, diagnosis.message_detail] if detail else [primary]
    return ". ".join(part for part in parts if part)


def is_missing_table(error: BaseException) -> bool:
    """Return whether the error says that there is no such table."""
    return _says(error, *_NO_TABLE)


def is_missing_unique(error: BaseException) -> bool:
    """Return whether the error says that no unique index fits the key of an upsert."""
    return _says(error, *_NO_UNIQUE)


def _says(error: BaseException, state: str, text: str) -> bool:
    return _state(error) == state or (hasattr(error, "sqlite_errorname") and text in str(error))
