"""A chat whose model may look things up: it calls a Python function before it answers.

The model needs to know tools, as ``llama3.2`` does. Its docstring and annotations tell the model what the function is
for, and it runs in the worker.
"""

from datetime import UTC, datetime
from importlib.metadata import distribution

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.operators import OllamaChatOperator


# [start tool]
def package_version(name: str) -> dict[str, str]:
    """Look up the version of a Python package that is installed on the worker.

    Args:
        name: name of the package on PyPI, such as "httpx".
    """
    found = distribution(name)
    return {"version": found.version, "summary": found.metadata["Summary"]}


with DAG(
    "ollama_chat_with_tool",
    description="A chat whose model calls a Python function",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "package": "httpx"},
    tags=["ollama"],
):
    OllamaChatOperator(
        task_id="ask",
        model="{{ params.model }}",
        messages="Which package version of {{ params.package }} is installed here, and what is it good for?",
        tools=[package_version],
        max_rounds=4,
    )
# [end tool]
