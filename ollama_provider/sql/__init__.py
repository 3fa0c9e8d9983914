"""A query as the input of a batch, and a table for its results, through Airflow's own connections and hooks.

    OllamaBatchOperator(
        rows=SqlRows("warehouse", "SELECT id, text FROM documents WHERE day = %(day)s", {"day": "{{ params.day }}"}),
        into=SqlTable("warehouse", "summaries", key="document", columns={"document": "id", "summary": "output"}),
        …
    )

Rows can come from any connection whose hook is a ``DbApiHook``. Results can go to PostgreSQL and SQLite.
"""

from ollama_provider.sql.rows import SqlRows
from ollama_provider.sql.table import SqlTable

__all__ = ["SqlRows", "SqlTable"]
