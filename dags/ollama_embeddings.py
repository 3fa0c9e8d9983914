"""Vectors of many texts in a file, and what they are good for: finding the nearest.

The file is at ``output_path``, a line for each text; the XCom of ``nearest`` has the three that fit the ``question``.
"""

import json
import os
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, task

from ollama_provider.hooks import OllamaHook
from ollama_provider.operators import OllamaEmbedOperator

AIRFLOW_HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()

with DAG(
    "ollama_embeddings",
    description="Texts into vectors, and the nearest to a question",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={
        "model": "nomic-embed-text",
        "question": "Which package sends HTTP requests?",
        "output_path": Param(f"file://{AIRFLOW_HOME}/ollama/packages.jsonl", type="string"),
    },
    tags=["ollama"],
):

    @task
    def texts() -> list[str]:
        """Return what the installed Python packages say of themselves, a line each."""
        known = [package.metadata.json for package in distributions()]
        return sorted({f"{package['name']}: {package['summary']}" for package in known if package.get("summary")})

    # [start embed]
    vectors = OllamaEmbedOperator(
        task_id="vectors", model="{{ params.model }}", texts=texts(), output_path="{{ params.output_path }}"
    )
    # [end embed]

    @task
    def nearest(file: dict, params=None) -> list[str]:
        """Return the three texts that are nearest to the question."""
        with OllamaHook() as hook:
            (question,) = hook.embed(params["question"], model=params["model"]).embeddings
        rows = [json.loads(line) for line in ObjectStoragePath(file["path"]).read_text().splitlines()]
        # All vectors have length 1, so the sum of the products says how near they are.
        rows.sort(key=lambda row: -sum(a * b for a, b in zip(question, row["embedding"], strict=True)))
        return [row["text"] for row in rows[:3]]

    nearest(vectors.output)
