"""A night that waits without a slot: for the server, for a download of many gigabytes, for one long answer.

Needs a triggerer: while the tasks wait they are in state *deferred*, and no worker is kept.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, chain

from ollama_provider.operators import OllamaGenerateOperator, OllamaPullModelOperator
from ollama_provider.sensors import OllamaHealthSensor

with DAG(
    "ollama_deferred_night",
    description="Wait for server, model and answer without a slot",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "subject": "the tides"},
    tags=["ollama"],
):
    # [start waits]
    # While a task is deferred, nothing runs in a worker; the triggerer keeps an eye on the server.
    chain(
        # The machine with the GPU is switched on at some time in the evening.
        OllamaHealthSensor(task_id="server", deferrable=True, poke_interval=60, timeout=8 * 3600),
        # An interrupted download continues where it was, whatever interrupted it.
        OllamaPullModelOperator(task_id="model", model="{{ params.model }}", deferrable=True, retries=3),
        OllamaGenerateOperator(
            task_id="report",
            model="{{ params.model }}",
            prompt="Write a report of ten pages about {{ params.subject }}.",
            options={"num_ctx": 32768, "num_predict": 16384},
            deferrable=True,
            execution_timeout=timedelta(hours=2),
        ),
    )
    # [end waits]
