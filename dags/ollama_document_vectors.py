"""Each night: documents out of a bucket, in pieces, as vectors into PostgreSQL; then the pieces nearest to a question.

The connection ``vectors`` is to a PostgreSQL database in which somebody ran ``CREATE EXTENSION vector`` (pgvector).
``documents`` is a glob on any object store, such as ``s3://aws_default@bucket/notes/**/*.md``. A piece that was there
last night is not asked for again.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from ollama_provider.batch import Embedding, FailurePolicy
from ollama_provider.operators import OllamaBatchOperator, OllamaEmbedOperator
from ollama_provider.sql import SqlTable

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_document_vectors",
    description="A bucket of documents as vectors in PostgreSQL, and a search",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "model": "nomic-embed-text",
        "documents": Param(f"file://{AIRFLOW_HOME}/documents/**/*.md", type="string"),
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/document-vectors", type="string"),
        "question": "How do I change the oil?",
    },
    tags=["ollama"],
):
    # [start batch]
    vectors = OllamaBatchOperator(
        task_id="vectors",
        model="{{ params.model }}",
        rows="{{ params.documents }}",
        input_options={"split_text": 2000},
        # This model wants to be told what a text is.
        prompt="search_document: {{ row.text }}",
        embedding=Embedding(on_long_text="truncate"),
        into=SqlTable(
            "vectors",
            "document_vectors",
            key=["path", "chunk"],
            columns={
                "path": "row.path",
                "chunk": "row.chunk",
                "modified": "row.modified",
                "text": "row.text",
                "embedding": "output",
            },
            create=True,
        ),
        output_path="{{ params.output_path }}",
        resume="task",
        failures=FailurePolicy(on_broken_row="dead_letter", max_failed_ratio=0.05),
        retries=2,
    )
    # [end batch]
    # [start forget]
    forget = SQLExecuteQueryOperator(
        task_id="forget",
        conn_id="vectors",
        # All pieces of a file have its time, so an older one is left from when the file was longer.
        sql="""
            DELETE FROM document_vectors AS piece
            USING document_vectors AS other
            WHERE piece.path = other.path AND piece.modified::timestamptz < other.modified::timestamptz
        """,
        autocommit=True,
    )

    # [end forget]
    # [start nearest]
    def as_dicts(cursor: Any) -> list[dict[str, Any]]:
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    question = OllamaEmbedOperator(
        task_id="question", model="{{ params.model }}", texts=["search_query: {{ params.question }}"]
    )
    nearest = SQLExecuteQueryOperator(
        task_id="nearest",
        conn_id="vectors",
        sql="""
            SELECT path, chunk, 1 - (embedding <=> %(question)s::vector) AS similarity, text
            FROM document_vectors
            ORDER BY embedding <=> %(question)s::vector
            LIMIT 5
        """,
        parameters={"question": "{{ ti.xcom_pull(task_ids='question')[0] }}"},
        handler=as_dicts,
    )
    vectors >> forget >> nearest
    question >> nearest
    # [end nearest]
