"""Tasks that read and write all that a task may, and some that fail, for the tests of their lineage.

The folder of the files is ``LINEAGE_FOLDER``, and what no event may have is ``CANARY``.
"""

import os
from datetime import datetime

from airflow.providers.common.compat.sdk import DAG

from ollama_provider.batch import Embedding, FailurePolicy
from ollama_provider.operators import (
    OllamaBatchOperator,
    OllamaCreateModelOperator,
    OllamaEmbedOperator,
    OllamaGenerateOperator,
    OllamaPullModelOperator,
)
from ollama_provider.operators.batch import sharded
from ollama_provider.sql import SqlRows, SqlTable

FOLDER = os.environ["LINEAGE_FOLDER"]
# As from a database: Airflow itself tells OpenLineage what the DAG file says.
PROMPT = "{{ canary() }}"

with DAG(
    "with_lineage",
    schedule=None,
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001
    user_defined_macros={"canary": lambda: os.environ["CANARY"]},
    default_args={"model": "llama3.2", "trigger_rule": "all_done"},
):
    many = f"file://{FOLDER}/many/*.txt"
    OllamaBatchOperator(task_id="many", rows=many, output_path=f"{FOLDER}/many-results", resume="task")
    OllamaBatchOperator(
        task_id="table",
        rows=SqlRows("warehouse", "SELECT d.id, d.text FROM documents d JOIN days USING (id) WHERE day = ?", ["1"]),
        id_column="id",
        into=SqlTable("warehouse", "summaries", key="id", columns={"id": "id", "summary": "output"}, create=True),
        output_path=f"{FOLDER}/table-results",
        resume="task",
    )
    OllamaBatchOperator(
        task_id="vectors",
        model="nomic-embed-text",
        rows=["one", PROMPT],
        embedding=Embedding(),
        output_path=f"{FOLDER}/corpus",
        resume="task",
    )
    sharded(2, task_id="night", rows=f"{FOLDER}/few/*.jsonl", output_path=f"{FOLDER}/night-results", resume="task")
    OllamaEmbedOperator(
        task_id="embed", model="nomic-embed-text", texts=["one", "two"], output_path=f"{FOLDER}/vectors.jsonl"
    )
    OllamaGenerateOperator(task_id="stream", prompt=PROMPT, stream_to=f"{FOLDER}/answer.txt")
    OllamaPullModelOperator(task_id="pull")
    OllamaCreateModelOperator(task_id="create", model="ours", files=f"{FOLDER}/weights.gguf")
    OllamaGenerateOperator(task_id="unknown_model", model="nowhere", prompt=PROMPT, auto_pull=False)
    OllamaGenerateOperator(task_id="bad_template", model="{{ nowhere.at.all }}", prompt=PROMPT)
    OllamaBatchOperator(
        task_id="failed_rows",
        rows=[{"text": "good"}, {"text": f"fail {os.environ['CANARY']}"}],
        output_path=f"{FOLDER}/failed-results",
        resume="task",
        failures=FailurePolicy(max_attempts=1),
    )
    OllamaBatchOperator(
        task_id="left", rows=["one", "two"], mode="failed_only", output_path=f"{FOLDER}/left-results", resume="task"
    )
    OllamaBatchOperator(
        task_id="no_file", rows=f"{FOLDER}/nothing/*.jsonl", output_path=f"{FOLDER}/no-results", resume="task"
    )
    OllamaBatchOperator(
        task_id="no_database",
        rows=SqlRows("nowhere", "SELECT id FROM documents"),
        output_path=f"{FOLDER}/no-rows",
        resume="task",
    )
