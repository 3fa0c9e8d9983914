"""Get the night's model ready: the newest base on the disk, a variant with our system prompt, loaded until morning.

Run it as often as you like: each task leaves alone what is as it should be.
"""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, chain

from ollama_provider.operators import OllamaCreateModelOperator, OllamaLoadModelOperator, OllamaPullModelOperator

with DAG(
    "ollama_prepare_tonight",
    description="Pull, create and load the night's model",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"base": "llama3.2", "model": "nightly", "keep_alive": "10h"},
    tags=["ollama"],
):
    # [start lifecycle]
    # Each task leaves alone what is as it should be: run the DAG as often as you like.
    chain(
        OllamaPullModelOperator(task_id="pull", model="{{ params.base }}", update=True),
        OllamaCreateModelOperator(
            task_id="create",
            model="{{ params.model }}",
            from_="{{ params.base }}",
            system="You summarise documents for busy engineers. Answer in plain sentences, without an introduction.",
            parameters={"temperature": 0, "num_ctx": 8192},
        ),
        OllamaLoadModelOperator(task_id="load", model="{{ params.model }}", keep_alive="{{ params.keep_alive }}"),
    )
    # [end lifecycle]
