"""What a database's error means for a batch: a row is wrong, the database is gone for now, or the whole plan is wrong.

Drivers share the names of DB-API's exceptions (PEP 249) and not much more. Where one gives an SQLSTATE or SQLite's own
code, that is more exact and counts first.
"""

from enum import Enum, auto
from typing import Any

#: Classes of SQLSTATE (or whole states), first match counts: data, constraints, WITH CHECK OPTION, RAISE in a trigger;
#: connection, serialization and deadlock, resources, lock, shutdown and cancelled statements, system.
_DATA_STATES = ("22", "23", "44", "P0001")
_GONE_STATES = ("08", "40", "53", "55P03", "57", "58")
#: The same in the names of SQLite's codes.
_DATA_CODES = ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG", "SQLITE_RANGE")
_GONE_CODES = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN")
_NO_TABLE, _NO_UNIQUE = ("42P01", "no such table"), ("42P10", "ON CONFLICT clause does not match")


class Failure(Enum):
    """Whose fault it is."""

    #: This row's, or one of these rows'.
    DATA = auto()
    #: The database's, for a while.
    GONE = auto()
    #: The statement's or the table's: every row would fail alike.
    WRONG = auto()


#: DB-API's exceptions, and last what a driver raises for a value that it cannot even send: NUL in a text, half a
#: surrogate pair, an integer of a hundred digits.
_NAMES = (
    ({"IntegrityError", "DataError"}, Failure.DATA),
    ({"OperationalError", "InterfaceError", "ConnectionError", "TimeoutError"}, Failure.GONE),
    ({"DatabaseError", "Error"}, Failure.WRONG),
    ({"ValueError", "OverflowError"}, Failure.DATA),
)


def judge(error: BaseException) -> Failure | None:
    """Return whose fault an error is; None if it is none of a database."""
    if state := _state(error):
        return _first(state, {_DATA_STATES: Failure.DATA, _GONE_STATES: Failure.GONE}) or Failure.WRONG
    names = {kind.__name__ for kind in type(error).__mro__}
    if code := getattr(error, "sqlite_errorname", None):
        return _first(code, {_GONE_CODES: Failure.GONE, _DATA_CODES: Failure.DATA}) or Failure.WRONG
    return next((failure for known, failure in _NAMES if names & known), None)


def _first(code: str, table: dict[tuple[str, ...], Failure]) -> Failure | None:
    return next((failure for beginnings, failure in table.items() if code.startswith(beginnings)), None)


def _state(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def words(error: BaseException, *, detail: bool = False) -> str:
    """Return what the database says.

    Args:
        error: of its driver.
        detail: with what may quote values of the row; not for logs and exceptions.
    """
    diagnosis: Any = getattr(error, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    if primary is None:
        # Some drivers quote the statement from the second line on.
        return " ".join((str(error) if detail else str(error).partition("\n")[0]).split()) or type(error).__name__
    parts = [primary, diagnosis.message_detail] if detail else [primary]
    return ". ".join(part for part in parts if part)


def is_missing_table(error: BaseException) -> bool:
    """Tell whether it says that there is no such table."""
    return _says(error, *_NO_TABLE)


def is_missing_unique(error: BaseException) -> bool:
    """Tell whether it says that no unique index fits the key of an upsert."""
    return _says(error, *_NO_UNIQUE)


def _says(error: BaseException, state: str, text: str) -> bool:
    return _state(error) == state or (hasattr(error, "sqlite_errorname") and text in str(error))
