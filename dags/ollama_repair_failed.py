"""A batch whose failed rows can be asked again on their own: whoever triggers it chooses that in the form.

``mode`` is *all* for a night's work, and *failed_only* for the rows that failed in it.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Param

from ollama_provider.batch import FailurePolicy, Window
from ollama_provider.operators import OllamaBatchOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

# [start batch]
with DAG(
    "ollama_repair_failed",
    description="A batch whose failed rows can be asked again on their own",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=1,
    params={
        "mode": Param("all", enum=["all", "failed_only"], description="failed_only asks only the failed rows again"),
        "model": "llama3.2",
        "max_attempts": Param(3, type="integer", minimum=1),
        "max_failed_ratio": Param(None, type=["null", "number"], minimum=0, maximum=1),
        "stop_at": Param(None, type=["null", "string"], description="06:00, or empty for no end"),
        "rows": "docs/*.jsonl",
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/repaired", type="string"),
    },
    tags=["ollama"],
):
    OllamaBatchOperator(
        task_id="summaries",
        mode="{{ params.mode }}",
        model="{{ params.model }}",
        rows="{{ params.rows }}",
        prompt="Summarise in one sentence:\n{{ row.text }}",
        output_path="{{ params.output_path }}",
        resume="task",
        failures=FailurePolicy(
            max_attempts="{{ params.max_attempts }}", max_failed_ratio="{{ params.max_failed_ratio }}"
        ),
        window=Window(stop_at="{{ params.stop_at }}"),
    )
# [end batch]
