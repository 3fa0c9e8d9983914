"""Support tickets into classes: answers that fit a pydantic class, and a branch for those that never did.

The tickets stand in this file. Results are in ``output_path``: ``results.jsonl``, and ``failed.jsonl`` with the raw
answers of those that did not fit; up to half of them may. The batch updates the asset ``ollama-classified-tickets``,
which starts ``ollama_answered_tickets``.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from airflow.providers.common.compat.sdk import DAG, Asset, Param, task
from pydantic import BaseModel, Field

from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
TICKETS = [
    {"id": 1, "text": "I was charged twice in October."},
    {"id": 2, "text": "The app closes when I open the camera."},
    {"id": 3, "text": "How do I change my address?"},
]


# [start batch]
class Ticket(BaseModel):
    """What we want to know of a ticket."""

    about: Literal["billing", "bug", "question"]
    urgency: int = Field(ge=1, le=5)


with DAG(
    "ollama_classified_tickets",
    description="Support tickets into classes, and a branch for those that did not fit",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/tickets", type="string")},
    tags=["ollama"],
):
    tickets = OllamaBatchOperator(
        task_id="tickets",
        model="{{ params.model }}",
        rows=TICKETS,
        id_column="id",
        prompt="What is this ticket about, and how urgent is it from 1 to 5?\n\n{{ row.text }}",
        output_type=Ticket,
        options={"temperature": 0, "num_predict": 200},
        output_path="{{ params.output_path }}",
        keep_columns=["text"],
        failures=FailurePolicy(max_failed_ratio=0.5),
        outlets=[Asset("ollama-classified-tickets")],
    )

    @task.branch
    def all_classified(summary: dict) -> str:
        """Rows whose answers never fitted are in failed.jsonl with the raw answers; no class is made up for them."""
        return "look_at_failed" if summary["failed"] else "done"

    @task
    def look_at_failed(summary: dict) -> str:
        """Stand for whatever tells a person."""
        return f"{summary['failed']} of {summary['rows']} tickets: {summary['directory']}/failed.jsonl"

    @task
    def done(summary: dict) -> str:
        """Stand for whatever comes next."""
        return f"{summary['directory']}/results.jsonl"

    all_classified(tickets.output) >> [look_at_failed(tickets.output), done(tickets.output)]
# [end batch]
