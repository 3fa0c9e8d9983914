"""Two batches at once, one a file of rows: with two workers that take one task each, each worker has one."""

import os
from datetime import timedelta

from airflow.sdk import dag

from ollama_provider.operators import OllamaBatchOperator


@dag(schedule=None)
def e2e_two_batches():
    OllamaBatchOperator.partial(
        task_id="summaries",
        model="llama3.2",
        prompt="Summarise in one sentence:\n{{ row.text }}",
        id_column="id",
        output_path=os.environ["E2E_RESULTS"],
        concurrency=2,
        checkpoint_every=0.5,
        retries=2,
        retry_delay=timedelta(seconds=1),
    ).expand(rows=[f"{os.environ['E2E_ROWS']}/{name}.jsonl" for name in ("left", "right")])


e2e_two_batches()
