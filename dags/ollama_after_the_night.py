"""Runs when the batch of ``ollama_night_window`` is complete, be it after one night or after five.

It waits for the asset ``ollama-night-summaries``, which that DAG updates when no row is left. Put your own tasks in the
place of ``publish``.
"""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, Asset, task

with DAG(
    "ollama_after_the_night",
    description="What comes after the night's batch, once it is complete",
    doc_md=__doc__,
    schedule=[Asset("ollama-night-summaries")],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    tags=["ollama"],
):

    @task
    def publish() -> str:
        """Stand for whatever needs all of the summaries."""
        return "published"

    publish()
