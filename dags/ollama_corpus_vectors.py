"""A corpus into vectors: many texts a request, and a Parquet file with a fixed-size list of float32 for each text.

The texts are the summaries of the Python packages installed beside Airflow; have ``vectors`` yield your own. A text
that was there last week is not asked for again. Needs ``pip install airflow-provider-ollama[parquet]``.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, Param, task

from ollama_provider.batch import Embedding

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_corpus_vectors",
    description="Each week, many texts into vectors in one Parquet file",
    doc_md=__doc__,
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"model": "nomic-embed-text", "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/vectors", type="string")},
    tags=["ollama"],
):
    # [start batch]
    @task.ollama_batch(
        model="{{ params.model }}",
        embedding=Embedding(on_long_text="truncate"),
        id_column="name",
        output_path="{{ params.output_path }}",
        resume="task",
    )
    def vectors() -> Iterator[dict[str, str]]:
        """Yield the corpus; a text that was there last week has its vector already."""
        for package in distributions():
            about = package.metadata.json
            if about.get("summary"):
                yield {"name": about["name"], "text": about["summary"]}

    vectors()
    # [end batch]
