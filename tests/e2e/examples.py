"""The DAGs of dags/ with what they read: a connection to Ollama, rows in files, and a table of documents."""

import json
import sqlite3
from pathlib import Path

from ollama_provider.testing import Server

DAGS = Path(__file__).parents[2] / "dags"
NAMES = sorted(path.stem for path in DAGS.glob("*.py"))

#: Whose tasks wait in the triggerer if Airflow's ``[operators] default_deferrable`` says so. The others find what they
#: would wait for at their first look, or work on their rows all the time, as a batch does.
DEFERRABLE = {
    "ollama_chat_with_history",
    "ollama_deferred_night",
    "ollama_embeddings",
    "ollama_image_captions",
    "ollama_prepare_tonight",
    "ollama_structured_answer",
    "ollama_taskflow_answers",
    "ollama_taskflow_reviews",
}
#: Whose tasks say themselves that they do.
DEFERRED = {"ollama_deferred_night"}


def provide(directory: Path, ollama: Server) -> dict[str, str]:
    """Write what the DAGs read into *directory*, which is to be their working directory.

    Returns:
        The environment variables with the connections.
    """
    (directory / "docs").mkdir()
    rows = [json.dumps({"text": f"Row {number}. It has a second sentence."}) + "\n" for number in range(6)]
    (directory / "docs/rows.jsonl").write_text("".join(rows))
    with sqlite3.connect(directory / "warehouse.db") as warehouse:
        warehouse.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, title TEXT, text TEXT)")
        documents = [(number, f"Title {number}", f"Text {number}.") for number in range(6)]
        warehouse.executemany("INSERT INTO documents VALUES (?, ?, ?)", documents)
    warehouse.close()
    connections = {
        "ollama_default": {"conn_type": "ollama", "host": f"http://{ollama.host}", "port": ollama.port},
        "warehouse": {"conn_type": "sqlite", "host": str(directory / "warehouse.db")},
    }
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(connection) for name, connection in connections.items()}
