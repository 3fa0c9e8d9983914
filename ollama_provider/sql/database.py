"""An Airflow connection to a database, as far as rows and results need one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook

from ollama_provider.batch import DatabaseError, DatabaseGoneError
from ollama_provider.sql.failures import Failure, judge, words


def database_hook(conn_id: str) -> Any:
    """Return the ``DbApiHook`` of a connection.

    Raises:
        DatabaseError: it is no database's, or its provider is not installed.
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
        raise DatabaseError(
            f"Connection {conn_id!r} is no database that speaks SQL: its hook is {type(hook).__name__}."
        )
    return hook


def dialect_of(hook: Any) -> str:
    """Return the kind of database: ``postgresql``, ``sqlite``, …."""
    return str(getattr(hook, "dialect_name", hook.conn_type))


@contextmanager
def database_errors(conn_id: str, what: str) -> Iterator[None]:
    """Raise our errors inside, with the database's words, for *what* was to be done.

    Raises:
        DatabaseError: another try would fail alike.
        DatabaseGoneError: it may succeed later.
    """
    try:
        yield
    except Exception as error:
        failure = judge(error)
        if failure is None or isinstance(error, DatabaseError):
            raise
        kind = DatabaseGoneError if failure is Failure.GONE else DatabaseError
        raise kind(f"Connection {conn_id!r}: {what} failed: {words(error)}") from None
