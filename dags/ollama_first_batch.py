"""The shortest batch: each line of some files gets an answer.

Rows are the lines of ``docs/*.jsonl``, results are in ``summaries/results.jsonl``.
"""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.operators import OllamaBatchOperator

with DAG(
    "ollama_first_batch",
    description="A summary of each line of some files",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
):
    OllamaBatchOperator(
        task_id="summaries",
        model="llama3.2",
        rows="docs/*.jsonl",
        prompt="Summarise in one sentence:\n{{ row.text }}",
        output_path="summaries",
        resume="task",
    )
