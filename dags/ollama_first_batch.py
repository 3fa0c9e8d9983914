"""The shortest batch: each line of some files gets an answer."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.operators import OllamaBatchOperator

with DAG(
    "ollama_first_batch",
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
