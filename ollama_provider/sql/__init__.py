"""Rows out of a database and results into one, through Airflow's own connections and hooks.

    OllamaBatchOperator(
        rows=SqlRows("warehouse", "SELECT id, text FROM documents WHERE day = %(day)s", {"day": "{{ params.day }}"}),
        into=SqlTable("warehouse", "summaries", key="document", columns={"document": "id", "summary": "output"}),
        …
    )

Any connection whose hook is a ``DbApiHook`` gives rows; PostgreSQL and SQLite take results.
"""

from ollama_provider.sql.rows import SqlRows
from ollama_provider.sql.table import SqlTable

__all__ = ["SqlRows", "SqlTable"]
