"""TaskFlow: a function returns the prompt, the next one gets data that fits a class.

Each review is a mapped task. The XCom of ``count`` says how many are good, bad and mixed.
"""

from datetime import UTC, datetime
from typing import Literal

from airflow.providers.common.compat.sdk import DAG, literal, task
from pydantic import BaseModel, Field

NEW_REVIEWS = [
    "Arrived a day early, works as it should. Five stars.",
    "The battery lasts two hours, not ten. I want my money back.",
    "Nice colour. The manual is in {{ no language }} that I know.",
]


# [start reviews]
class Verdict(BaseModel):
    """What we want to know of a review."""

    mood: Literal["good", "bad", "mixed"]
    topics: list[str] = Field(max_length=3)


with DAG(
    "ollama_taskflow_reviews",
    description="The mood of each review, counted",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2"},
    tags=["ollama"],
):

    @task
    def reviews() -> list[str]:
        """Return what came in since yesterday."""
        return NEW_REVIEWS

    @task.ollama_generate(
        model="{{ params.model }}",
        system="You read customers' reviews.",
        options={"temperature": 0, "num_predict": 200},
        output_type=Verdict,
    )
    def judge(review: str):
        """Return the prompt; literal(), since braces in a customer's words are no template of ours."""
        return literal(f"What is the mood of this review, and what is it about?\n\n{review}")

    @task
    def count(verdicts: list[dict]) -> dict[str, int]:
        """Verdicts come as plain dicts that fit the class."""
        moods = [verdict["mood"] for verdict in verdicts]
        return {mood: moods.count(mood) for mood in sorted(set(moods))}

    count(judge.expand(review=reviews()))
# [end reviews]
