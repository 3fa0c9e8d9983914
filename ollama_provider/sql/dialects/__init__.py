"""The SQL that writes results into a table, for each kind of database.

What Airflow's own dialects generate is not used: ``REPLACE INTO``, the usual one, deletes the row that is there, with
those of its columns that the batch does not know; the one for PostgreSQL leaves capitals in names unquoted.
"""

from typing import Any

from ollama_provider.sql.dialects.mysql import MySql
from ollama_provider.sql.dialects.on_conflict import Sqlite
from ollama_provider.sql.dialects.postgresql import Postgresql
from ollama_provider.sql.dialects.standard import Destination, Dialect, Oracle, UnfitTableError, Vector

__all__ = ["Destination", "Dialect", "UnfitTableError", "Vector", "dialect_for"]

#: By SQLAlchemy's name of the dialect, or by the type of the connection.
_KINDS: dict[str, type[Dialect]] = {
    "mysql": MySql,
    "oracle": Oracle,
    "postgres": Postgresql,
    "postgresql": Postgresql,
    "sqlite": Sqlite,
}


def dialect_for(hook: Any) -> Dialect:
    """Return the dialect of the database that a ``DbApiHook`` connects to; one that is not known gets standard SQL."""
    name = str(getattr(hook, "dialect_name", "default"))
    kind = _KINDS.get(name) or _KINDS.get(str(hook.conn_type), Dialect)
    return kind(hook)
