"""Every night, one sentence about each of many documents.

The documents are some that every machine has: the descriptions of the Python packages installed beside Airflow. The
results are in ``output_path/results.jsonl``, a row for each document; what was summarised before is not asked again.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, task

from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator, OllamaPullModelOperator
from ollama_provider.sensors import OllamaHealthSensor

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_nightly_summaries",
    description="One sentence about each of many documents",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "model": "llama3.2",
        "documents": Param(12, type="integer", minimum=1, description="How many documents at most"),
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/summaries", type="string"),
    },
    tags=["ollama"],
):
    server = OllamaHealthSensor(task_id="server", mode="reschedule", poke_interval=60, timeout=timedelta(hours=2))

    model = OllamaPullModelOperator(task_id="model", model="{{ params.model }}")

    @task
    def documents(params=None) -> str:
        """Write the documents to a file: thousands of rows do not belong into XCom."""
        file = ObjectStoragePath(params["output_path"]) / "documents.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        packages = {package.name: package.metadata.json.get("description", "") for package in distributions()}
        # Neither one line nor a whole book.
        names = sorted((name for name in packages if 300 < len(packages[name]) < 1500), key=str.lower)
        with file.open("w") as lines:
            for name in names[: params["documents"]]:
                lines.write(json.dumps({"name": name, "text": packages[name]}) + "\n")
        return str(file)

    # [start batch]
    summaries = OllamaBatchOperator(
        task_id="summaries",
        model="{{ params.model }}",
        rows=documents(),
        id_column="name",
        prompt="Summarise in one sentence what this Python package is for.\n\n{{ row.text }}",
        options={"temperature": 0, "num_predict": 300},
        output_path="{{ params.output_path }}",
        resume="task",
        failures=FailurePolicy(max_failed_ratio=0.05),
        retries=2,
    )
    # [end batch]

    server >> model >> summaries
