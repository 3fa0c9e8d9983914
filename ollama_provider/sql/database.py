"""An Airflow connection to a database: its hook, and what the errors of its driver mean for a batch.

Drivers share the names of DB-API's exceptions (PEP 249) and little more. Where a driver gives an SQLSTATE, or the code
of SQLite or MySQL, that is more exact and decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook

from ollama_provider.batch import DatabaseError, DatabaseGoneError

#: Beginnings of SQLSTATE, first match counts. Data: values, constraints, WITH CHECK OPTION, RAISE in a trigger.
_DATA_STATES = ("22", "23", "44", "P0001")
#: Serialization and deadlock.
_CONFLICT_STATES = ("40",)
#: Connection, resources, lock, shutdown and cancelled statements, system.
_DOWN_STATES = ("08", "53", "55P03", "57", "58")
#: The same as names of SQLite's codes.
_DATA_CODES = ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG", "SQLITE_RANGE")
_DOWN_CODES = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN")
#: Errors of MySQL and MariaDB. Many have no SQLSTATE of their own. Data: NULL, duplicate, out of range, cut, wrong
#: value, foreign key, SIGNAL in a trigger, no partition, too long, JSON, CHECK.
_DATA_NUMBERS = frozenset(
    {1048, 1062, 1153, 1216, 1217, 1264, 1265, 1292, 1366, 1367, 1406, 1411, 1416, 1451, 1452, 1526, 1644, 1690, 3140,
     3141, 3143, 3156, 3819, 4025}
)  # fmt: skip
#: Lock wait, deadlock.
_CONFLICT_NUMBERS = frozenset({1205, 1213})
#: Disk, connections, shutdown, network, killed, read-only after a failover. From 2000 on they are the client's own.
_DOWN_NUMBERS = frozenset(
    {1021, 1040, 1041, 1042, 1043, 1053, 1077, 1078, 1079, 1080, 1114, 1129, 1152, 1154, 1155, 1156, 1157, 1158, 1159,
     1160, 1161, 1184, 1203, 1226, 1290, 1317, 1836, 1927, 3024, 4031, *range(2000, 3000)}
)  # fmt: skip
_MYSQL_DRIVERS = ("MySQLdb", "mysql", "pymysql")
#: SQLSTATE, MySQL's number, and the text of SQLite.
_NO_TABLE, _NO_UNIQUE = ("42P01", 1146, "no such table"), ("42P10", None, "ON CONFLICT clause does not match")


class Cause(Enum):
    """What is to blame for an error of a database."""

    #: A value of this row, or of one of these rows.
    DATA = auto()
    #: Another writer was in the way: the same may succeed at once.
    CONFLICT = auto()
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


def row_values(row: Any) -> Sequence[Any]:
    """Return the values of a row that a cursor has fetched. A connection may ask its driver for rows as dicts."""
    return tuple(row.values()) if isinstance(row, Mapping) else row


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
        kind = DatabaseGoneError if cause in {Cause.DOWN, Cause.CONFLICT} else DatabaseError
        raise kind(f"Connection {conn_id!r}: {what} failed: {error_text(error)}") from None


def cause_of(error: BaseException) -> Cause | None:
    """Return what is to blame for an error; None if it is not one of a database."""
    if number := _mysql_number(error):
        known = ((_DATA_NUMBERS, Cause.DATA), (_CONFLICT_NUMBERS, Cause.CONFLICT), (_DOWN_NUMBERS, Cause.DOWN))
        return next((cause for numbers, cause in known if number in numbers), Cause.SETUP)
    if state := _state(error):
        known_states = {_DATA_STATES: Cause.DATA, _CONFLICT_STATES: Cause.CONFLICT, _DOWN_STATES: Cause.DOWN}
        return _first(state, known_states) or Cause.SETUP
    names = {kind.__name__ for kind in type(error).__mro__}
    if code := getattr(error, "sqlite_errorname", None):
        return _first(code, {_DOWN_CODES: Cause.DOWN, _DATA_CODES: Cause.DATA}) or Cause.SETUP
    return next((cause for known, cause in _CAUSES if names & known), None)


def _first(code: str, table: dict[tuple[str, ...], Cause]) -> Cause | None:
    return next((cause for beginnings, cause in table.items() if code.startswith(beginnings)), None)


def _state(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _mysql_number(error: BaseException) -> int | None:
    if type(error).__module__.partition(".")[0] not in _MYSQL_DRIVERS:
        return None
    number = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    return number if isinstance(number, int) and number > 0 else None


def error_text(error: BaseException, *, detail: bool = False) -> str:
    """Return the text of the database.

    Args:
        error: of the driver.
        detail: add what may quote values of the row; must not be used in logs and exceptions.
    """
    if _mysql_number(error) is not None:
        return " ".join(str(getattr(error, "msg", None) or error.args[-1]).split())
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


def _says(error: BaseException, state: str, number: int | None, text: str) -> bool:
    if (mysql := _mysql_number(error)) is not None:
        return mysql == number
    return _state(error) == state or (hasattr(error, "sqlite_errorname") and text in str(error))
