"""Get a model ready before the work begins: newest version on the disk, loaded, and known."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from ollama_provider.hooks import OllamaHook
from ollama_provider.operators import OllamaPullModelOperator

with DAG(
    "ollama_prepare_model",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "keep_alive": "4h"},
    tags=["ollama"],
):
    pull = OllamaPullModelOperator(task_id="pull", model="{{ params.model }}", update=True)

    @task
    def load(pulled: dict, params=None) -> dict:
        """Load the model for the hours to come; return what it can do."""
        with OllamaHook() as hook:
            hook.load(pulled["model"], keep_alive=params["keep_alive"])
            shown = hook.show(pulled["model"])
        return {**pulled, "context_length": shown.context_length, "capabilities": shown.capabilities}

    load(pull.output)
