"""What Airflow may find in this package. Strings only: Airflow reads this at every start."""

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata as described by Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-ollama",
        "name": "Ollama",
        "description": "Local language models served by Ollama, above all in nightly batches.",
    }
