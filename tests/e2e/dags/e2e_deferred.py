"""Three tasks that wait in the triggerer: for a model, for a download, for an answer."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.operators import OllamaGenerateOperator, OllamaPullModelOperator
from ollama_provider.sensors import OllamaHealthSensor

with DAG("e2e_deferred", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    OllamaHealthSensor(task_id="wait", models=["fresh"], deferrable=True, poke_interval=0.5)
    OllamaPullModelOperator(task_id="pull", model="mistral", deferrable=True)
    OllamaGenerateOperator(
        task_id="ask",
        model="llama3.2",
        # Too long for Airflow's database.
        prompt="Why is the sky blue? {{ 'Say it well. ' * 5000 }}",
        options={"num_ctx": 65536},
        deferrable=True,
    )
