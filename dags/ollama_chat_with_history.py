"""A chat of two rounds: the second question builds on the first answer.

Each round is a task; the answer of the first comes to the second as its XCom. Trigger it with a ``subject`` of your
own.
"""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.operators import OllamaChatOperator

with DAG(
    "ollama_chat_with_history",
    description="A chat of two rounds",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "subject": "tides"},
    tags=["ollama"],
):
    # [start chat]
    opening = [
        {"role": "system", "content": "You are a patient teacher. Answer in at most three sentences."},
        {"role": "user", "content": "Explain {{ params.subject }}."},
    ]
    explain = OllamaChatOperator(task_id="explain", model="{{ params.model }}", messages=opening)

    OllamaChatOperator(
        task_id="simplify",
        model="{{ params.model }}",
        messages=[
            *opening,
            {"role": "assistant", "content": explain.output},
            {"role": "user", "content": "And now so that a child of six understands it."},
        ],
    )
    # [end chat]
