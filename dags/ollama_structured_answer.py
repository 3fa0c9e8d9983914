"""An answer as data: the model fills a pydantic class, and the next task gets a dict.

An answer that does not fit fails the task, and is asked for again by its retries. Trigger it with a ``mail`` of your
own.
"""

from datetime import UTC, datetime
from typing import Literal

from airflow.providers.common.compat.sdk import DAG, task
from pydantic import BaseModel

from ollama_provider.operators import OllamaGenerateOperator


# [start answer]
class Ticket(BaseModel):
    """A customer's mail, sorted."""

    product: str
    urgency: Literal["low", "medium", "high"]
    summary: str


with DAG(
    "ollama_structured_answer",
    description="A mail into data that fits a class",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "mail": "Your coffee machine model K2 is on fire! What shall I do? Please call."},
    tags=["ollama"],
):
    ticket = OllamaGenerateOperator(
        task_id="ticket",
        model="{{ params.model }}",
        system="You sort mails of customers. Answer in JSON with product, urgency (low, medium, high) and summary.",
        prompt="{{ params.mail }}",
        output_type=Ticket,
        options={"temperature": 0},
        retries=2,
    )
    # [end answer]

    @task
    def route(ticket: dict) -> str:
        """Say who has to look at it."""
        return "somebody, now" if ticket["urgency"] == "high" else "the queue"

    route(ticket.output)
