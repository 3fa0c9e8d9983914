"""A GPU that is free until six: the batch stops then and goes on the next night; who waits for all of it is told.

``complete`` is skipped while rows are left. When none is, it updates the asset ``ollama-night-summaries``, which starts
``ollama_after_the_night``. Results so far are in ``output_path``.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, Param, task

from ollama_provider.batch import Window
from ollama_provider.operators import OllamaBatchOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

# [start batch]
SUMMARIES = Asset("ollama-night-summaries")

with DAG(
    "ollama_night_window",
    description="A nightly batch that stops at six and goes on the next night",
    doc_md=__doc__,
    schedule="0 22 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "model": "llama3.2",
        "rows": "docs/*.jsonl",
        "stop_at": "06:00",
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/nights", type="string"),
    },
    tags=["ollama"],
):
    night = OllamaBatchOperator(
        task_id="night",
        model="{{ params.model }}",
        rows="{{ params.rows }}",
        prompt="Summarise in one sentence:\n{{ row.text }}",
        window=Window(stop_at="{{ params.stop_at }}", unload_after=True),
        output_path="{{ params.output_path }}",
        resume="task",
    )

    @task(outlets=[SUMMARIES])
    def complete(summary: dict) -> str:
        """Tell those who wait for the asset, but only when the last row is done."""
        if not summary["complete"]:
            raise AirflowSkipException(f"{summary['left']} rows are left for the next night")
        return summary["directory"]

    complete(night.output)
# [end batch]
