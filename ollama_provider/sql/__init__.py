"""A query as the input of a batch, and a table for its results, through Airflow's own connections and hooks.

    OllamaBatchOperator(
        rows=SqlRows("warehouse", "SELECT id, text FROM documents WHERE day = %(day)s", {"day": "{{ params.day }}"}),
        into=SqlTable("warehouse", "summaries", key="document", columns={"document": "id", "summary": "output"}),
        …
    )

Any connection will do whose hook is a ``DbApiHook``. `ollama_provider.sql.dialects` knows how databases differ.
"""

from ollama_provider.sql.rows import SqlRows
from ollama_provider.sql.table import SqlTable

__all__ = ["SqlRows", "SqlTable"]
