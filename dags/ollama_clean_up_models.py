"""Keep the server's disk clean: say which models are old, and delete them once somebody has read the list.

Deletes nothing while ``dry_run`` is true, as it is by default: the log and the XCom of ``prune`` say what would be
deleted. Models of ``keep`` are never deleted.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.operators import OllamaPruneModelsOperator

with DAG(
    "ollama_clean_up_models",
    description="Say which models are old, and delete them",
    doc_md=__doc__,
    schedule="@monthly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    params={"keep": "llama3.2, nomic-embed-text", "max_total_size": "500 GB", "dry_run": True},
    tags=["ollama"],
):
    # [start prune]
    OllamaPruneModelsOperator(
        task_id="prune",
        # Ollama does not note when a model was used; this is the time since it was pulled or created. Of models that
        # old, only as many go as are needed to come down to the size.
        older_than=timedelta(days=90),
        max_total_size="{{ params.max_total_size }}",
        keep="{{ params.keep }}",
        dry_run="{{ params.dry_run }}",
    )
    # [end prune]
