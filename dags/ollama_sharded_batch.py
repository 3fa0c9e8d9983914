"""A batch that several workers share: each shard is a mapped task with rows of its own, and the last task merges.

``rows`` and ``output_path`` must be where every worker can read and write. A shard that fails is retried alone.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Param

from ollama_provider.operators.batch import sharded

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_sharded_batch",
    description="A batch that four workers share",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={
        "model": "llama3.2",
        "rows": Param("docs/*.jsonl", type="string", description="Where every worker can read it"),
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/shards", type="string"),
    },
    tags=["ollama"],
):
    # [start batch]
    sharded(
        4,
        task_id="summaries",
        model="{{ params.model }}",
        rows="{{ params.rows }}",
        prompt="Summarise in one sentence:\n{{ row.text }}",
        output_path="{{ params.output_path }}",
        retries=2,
    )
    # [end batch]
