"""A batch that starts when another is done, with its results as rows: an answer to each classified ticket.

The batch of ``ollama_classified_tickets`` updates the asset ``ollama-classified-tickets``, and its event says where the
results are. Results of this one are in ``output_path``.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Asset, Param, task

from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

# [start batch]
CLASSIFIED = Asset("ollama-classified-tickets")

with DAG(
    "ollama_answered_tickets",
    description="A batch that starts when another is done, with its results as rows",
    doc_md=__doc__,
    schedule=[CLASSIFIED],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    params={"model": "llama3.2", "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/answers", type="string")},
    tags=["ollama"],
):

    @task.short_circuit(inlets=[CLASSIFIED])
    def enough(inlet_events: dict) -> bool:
        """Go on only if that batch is complete and most tickets have a class."""
        batch = inlet_events[CLASSIFIED][-1].extra
        return batch["complete"] and batch["ok"] > batch["failed"]

    answers = OllamaBatchOperator(
        task_id="answers",
        model="{{ params.model }}",
        inlets=[CLASSIFIED],
        rows="{{ inlet_events[0][-1].extra.directory }}/results.jsonl",
        id_column="id",
        # A ticket without a class is asked nothing: the template fails with its row.
        prompt="Answer this ticket ({{ row.output.about }}) in two sentences.\n\n{{ row.row.text }}",
        output_path="{{ params.output_path }}",
        failures=FailurePolicy(max_failed_ratio=0.5),
    )

    enough() >> answers
# [end batch]
