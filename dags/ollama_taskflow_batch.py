"""TaskFlow: a function returns the rows of a batch; they go through no database on their way to the model.

The rows are the Python packages installed beside Airflow; have ``explained`` yield your own. Results are in
``output_path``.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Param, task

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_taskflow_batch",
    description="A batch whose rows a Python function yields",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=1,
    params={"model": "llama3.2", "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/packages", type="string")},
    tags=["ollama"],
):
    # [start batch]
    @task.ollama_batch(
        model="{{ params.model }}",
        prompt="Explain to a child what this Python package is for: {{ row.name }}, {{ row.summary }}",
        id_column="name",
        output_path="{{ params.output_path }}",
        resume="task",
    )
    def explained() -> Iterator[dict[str, str]]:
        """Yield a row for each package that is installed here."""
        for package in distributions():
            about = package.metadata.json
            if about.get("summary"):
                yield {"name": about["name"], "summary": about["summary"]}

    @task
    def report(summary: dict) -> str:
        """What comes out is the summary; the rows are in the directory it names."""
        return f"{summary['ok']} packages explained, {summary['failed']} not: {summary['directory']}/results.jsonl"

    report(explained())
    # [end batch]
