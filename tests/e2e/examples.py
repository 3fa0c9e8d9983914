"""The DAGs of dags/, and their input: connections to Ollama and to databases, rows in files, documents, a table."""

import json
import sqlite3
from pathlib import Path

import psycopg2

from ollama_provider.testing import Server
from tests.services import Postgresql

DAGS = Path(__file__).parents[2] / "dags"
NAMES = sorted(path.stem for path in DAGS.glob("*.py"))

#: DAGs with tasks that wait in the triggerer if Airflow's ``[operators] default_deferrable`` is set. Tasks of the other
#: DAGs have nothing to wait for, or process rows in the worker, as a batch does.
DEFERRABLE = {
    "ollama_chat_with_history",
    "ollama_deferred_night",
    "ollama_document_vectors",
    "ollama_embeddings",
    "ollama_image_captions",
    "ollama_prepare_tonight",
    "ollama_route_mails",
    "ollama_structured_answer",
    "ollama_taskflow_answers",
    "ollama_taskflow_reviews",
}
#: DAGs with tasks that are always deferrable.
DEFERRED = {"ollama_deferred_night"}


def provide(directory: Path, ollama: Server, pgvector: Postgresql) -> dict[str, str]:
    """Write the input of the DAGs into *directory*, their working directory and AIRFLOW_HOME.

    Args:
        directory: where it goes.
        ollama: the server of all DAGs.
        pgvector: the database of vectors, which has none yet.

    Returns:
        Environment variables with the connections.
    """
    (directory / "docs").mkdir()
    rows = [json.dumps({"text": f"Row {number}. It has a second sentence."}) + "\n" for number in range(6)]
    (directory / "docs/rows.jsonl").write_text("".join(rows))
    (directory / "documents/manual").mkdir(parents=True)
    for name in ("engine", "manual/oil"):
        (directory / f"documents/{name}.md").write_text(f"# {name}\n\n" + "How to change the oil. " * 200)
    with sqlite3.connect(directory / "warehouse.db") as warehouse:
        warehouse.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, title TEXT, text TEXT)")
        documents = [(number, f"Title {number}", f"Text {number}.") for number in range(6)]
        warehouse.executemany("INSERT INTO documents VALUES (?, ?, ?)", documents)
    warehouse.close()
    database = psycopg2.connect(f"postgresql://{pgvector.address}")
    with database, database.cursor() as cursor:
        cursor.execute("CREATE EXTENSION vector")
    database.close()
    connections = {
        "ollama_default": {"conn_type": "ollama", "host": f"http://{ollama.host}", "port": ollama.port},
        "warehouse": {"conn_type": "sqlite", "host": str(directory / "warehouse.db")},
        "vectors": {
            "conn_type": "postgres",
            "host": "127.0.0.1",
            "port": pgvector.port,
            "login": "airflow",
            "schema": "airflow",
        },
    }
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(connection) for name, connection in connections.items()}
