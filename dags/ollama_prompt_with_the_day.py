"""Prompts that know the run they are in: its day, and the tone that was chosen when it was triggered.

A row's prompt is rendered by the batch and knows only the row. ``variables`` hands it what Airflow knows. Only rows
whose prompt has changed by that are asked again. Results are in ``output_path``.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Param

from ollama_provider.operators import OllamaBatchOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_prompt_with_the_day",
    description="Prompts with the day and the parameters of the run",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={
        "model": "llama3.2",
        "tone": Param("friendly", enum=["friendly", "dry"]),
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/invitations", type="string"),
    },
    tags=["ollama"],
):
    # [start batch]
    OllamaBatchOperator(
        task_id="invitations",
        model="{{ params.model }}",
        rows=[{"name": "Ada", "last": "2026-03-01"}, {"name": "Grace", "last": "2025-11-20"}],
        variables={
            "day": "{{ (dag_run.logical_date or dag_run.run_after) | ds }}",
            "tone": "{{ params.tone }}",
        },
        prompt="Today is {{ day }}. In a {{ tone }} tone, invite {{ row.name }}, who came on {{ row.last }}.",
        output_path="{{ params.output_path }}",
    )
    # [end batch]
