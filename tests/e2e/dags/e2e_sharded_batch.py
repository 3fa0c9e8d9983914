"""One batch in two shards. With two workers of one task each, every worker runs one shard."""

import os
from datetime import timedelta

from airflow.sdk import dag

from ollama_provider.batch import Pace
from ollama_provider.operators.batch import sharded


@dag(schedule=None)
def e2e_sharded_batch():
    sharded(
        2,
        task_id="summaries",
        model="llama3.2",
        rows=os.environ.get("E2E_ROWS", "rows.jsonl"),
        prompt="Summarise in one sentence:\n{{ row.text }}",
        id_column="id",
        output_path=os.environ.get("E2E_RESULTS", "results"),
        pace=Pace(concurrency=2, checkpoint_every=0.5),
        retries=2,
        retry_delay=timedelta(seconds=1),
    )


e2e_sharded_batch()
