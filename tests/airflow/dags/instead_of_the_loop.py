"""What docs/howto/move-from-a-loop.md puts in the place of the loop."""

# [start batch]
from datetime import UTC, datetime
from typing import Literal

from airflow.providers.common.compat.sdk import DAG
from pydantic import BaseModel

from ollama_provider.operators import OllamaBatchOperator


class Review(BaseModel):
    mood: Literal["good", "bad"]


with DAG(
    "review_moods",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
):
    OllamaBatchOperator(
        task_id="moods",
        model="llama3.2",
        rows="reviews.jsonl",
        prompt="What is the mood of this review?\n\n{{ row.text }}",
        output_type=Review,
        options={"temperature": 0},
        output_path="moods",
        resume="task",
        retries=2,
    )
# [end batch]
