"""TaskFlow: find the text that fits a question by its vector, and let the model answer with it.

Needs two models: ``embedding_model`` makes the vectors, ``model`` the answer. The notes stand in this file.
"""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

NOTES = [
    "The nightly run starts at 22:00 and takes about four hours.",
    "The GPU machine is called gpu1 and stands in room 2.17.",
    "Invoices are archived for ten years.",
]

with DAG(
    "ollama_taskflow_answers",
    description="Find the note that fits a question, and answer with it",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "embedding_model": "nomic-embed-text", "question": "When does the nightly run start?"},
    tags=["ollama"],
):
    # [start answers]
    @task.ollama_embed(model="{{ params.embedding_model }}")
    def vectors(notes: list[str]) -> list[str]:
        """Return the texts; what the function returns may hold Jinja."""
        return ["{{ params.question }}", *notes]

    @task
    def nearest(notes: list[str], vectors: list[list[float]]) -> str:
        """All vectors have length 1, so the sum of the products says how near they are."""
        question, *others = vectors
        near = [sum(a * b for a, b in zip(question, other, strict=True)) for other in others]
        return notes[near.index(max(near))]

    @task.ollama_chat(model="{{ params.model }}", options={"temperature": 0, "num_predict": 100})
    def answer(note: str) -> list[dict]:
        """Return the messages."""
        return [
            {"role": "system", "content": "Answer in one sentence, from the note alone."},
            {"role": "user", "content": f"Note: {note}\n\nQuestion: {{{{ params.question }}}}"},
        ]

    answer(nearest(NOTES, vectors(NOTES)))
    # [end answers]
