"""Each night: documents out of one table, a sentence about each of them into another.

The connection ``warehouse`` is to PostgreSQL, or to SQLite on a laptop. The table ``documents`` has the columns ``id``,
``title`` and ``text``.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Param

from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator
from ollama_provider.sql import SqlRows, SqlTable

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_table_summaries",
    description="Summaries of a table's documents, into another table",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"model": "llama3.2", "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/table", type="string")},
    tags=["ollama"],
):
    # [start batch]
    OllamaBatchOperator(
        task_id="summaries",
        model="{{ params.model }}",
        rows=SqlRows("warehouse", "SELECT id, title, text FROM documents ORDER BY id"),
        id_column="id",
        prompt="Summarise in one sentence.\n\n{{ row.title }}\n\n{{ row.text }}",
        options={"temperature": 0, "num_predict": 300},
        into=SqlTable(
            "warehouse",
            "summaries",
            key="document",
            columns={"document": "id", "title": "row.title", "summary": "output", "digest": "digest"},
            create=True,
        ),
        output_path="{{ params.output_path }}",
        resume="task",
        failures=FailurePolicy(max_failed_ratio=0.05),
        retries=2,
    )
    # [end batch]
