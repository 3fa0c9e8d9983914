"""A night that begins only if a rehearsal says that it is worth it: 20 of the rows are asked first.

If more than 2 % of the rows are expected to fail, or even the longest time of the expected range is longer than the
night, the run fails and says why; otherwise the batch begins, and does not ask these 20 rows again.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Param, task

from ollama_provider.batch import Rehearsal
from ollama_provider.operators import OllamaBatchOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

# [start batch]
with DAG(
    "ollama_rehearsed_night",
    description="A night that begins only if a rehearsal says that it is worth it",
    doc_md=__doc__,
    schedule="0 22 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "model": "llama3.2",
        "rows": "docs/*.jsonl",
        "show_texts": Param(False, type="boolean", description="a prompt and the answers in log and XCom"),
        "hours": Param(8, type="number", description="of the night"),
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/rehearsed", type="string"),
    },
    tags=["ollama"],
):
    # The same for both, so that the answers of the rehearsal are those of the night.
    batch = {
        "model": "{{ params.model }}",
        "rows": "{{ params.rows }}",
        "prompt": "Summarise in one sentence:\n{{ row.text }}",
        "output_path": "{{ params.output_path }}",
    }
    rehearsal = OllamaBatchOperator(
        task_id="rehearsal", mode=Rehearsal(sample=20, show_texts="{{ params.show_texts }}"), **batch
    )

    @task.branch
    def is_worth_it(found: dict, params: dict) -> str:
        """Choose what comes next."""
        night = found["night"]
        fits = night is not None and night["high"] <= 3600 * params["hours"]
        return "night" if fits and found["failing"] <= 0.02 else "not_tonight"

    @task
    def not_tonight(found: dict) -> None:
        """Say why."""
        night = found["night"] or {"ends": "an unknown time", "latest": "an unknown time"}
        raise AirflowFailException(
            f"{found['failing']:.0%} of the rows would fail, and the night would last until {night['ends']} "
            f"({night['latest']} at the latest): {found['failures']}"
        )

    night = OllamaBatchOperator(task_id="night", **batch)
    is_worth_it(rehearsal.output) >> [night, not_tonight(rehearsal.output)]
# [end batch]
