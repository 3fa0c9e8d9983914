"""How fast vectors go into a table of pgvector, beside COPY, and how much slower with an HNSW index on it.

    python tests/benchmarks/vectors.py [rows]

PostgreSQL with pgvector runs on this machine. `SqlTable` makes text of the numbers and upserts 500 rows a transaction,
as in a batch. COPY gets text that is ready, into a table without a key: nothing can be faster.
"""

import io
import json
import os
import random
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
HOME = tempfile.TemporaryDirectory(prefix="airflow-")
os.environ["AIRFLOW_HOME"] = HOME.name

import psycopg2  # noqa: E402
from common import tell  # noqa: E402

from ollama_provider.batch import Vectors  # noqa: E402
from ollama_provider.sql import SqlTable  # noqa: E402
from tests.services import postgresql  # noqa: E402

LENGTH, CHUNK = 768, 500


def rate(rows: int, work: Callable[[int], object]) -> float:
    """Call *work* with the first number of each chunk; return rows a second."""
    began = time.perf_counter()
    for first in range(0, rows, CHUNK):
        work(first)
    return rows / (time.perf_counter() - began)


def main(rows: int) -> None:
    """Measure and print."""
    numbers = random.Random(1)
    vectors = [array("f", [numbers.gauss(0, 0.05) for _ in range(LENGTH)]) for _ in range(CHUNK)]
    with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder, "logs"), with_pgvector=True) as server:
        where = {"conn_type": "postgres", "host": "127.0.0.1", "port": server.port, "login": "airflow"}
        os.environ["AIRFLOW_CONN_VECTORS"] = json.dumps(where | {"schema": "airflow"})
        connection = psycopg2.connect(f"postgresql://{server.address}")
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("CREATE EXTENSION vector")
        cursor.execute(f"CREATE TABLE copied (id BIGINT, embedding vector({LENGTH}))")

        def into(table: SqlTable) -> Callable[[int], object]:
            table.open([{"id": 1}], "id", Vectors(LENGTH, in_pieces=False))
            return lambda first: table.write(
                [{"id": first + place, "output": vector} for place, vector in enumerate(vectors)]
            )

        texts = [f"1\t{json.dumps(vector.tolist())}\n" for vector in vectors]
        columns = {"id": "id", "embedding": "output"}
        plain = rate(rows, into(SqlTable("vectors", "plain", "id", columns, create=True)))
        copied = rate(rows, lambda _: cursor.copy_expert("COPY copied FROM STDIN", io.StringIO("".join(texts))))
        write = into(SqlTable("vectors", "indexed", "id", columns, create=True))
        cursor.execute("CREATE INDEX ON indexed USING hnsw (embedding vector_cosine_ops)")
        indexed = rate(rows, write)
        connection.close()
    tell(
        "vectors",
        f"pgvector: vectors of {LENGTH} numbers a second ({rows:,} rows)",
        f"{plain:.0f}",
        f"COPY {copied:.0f}; ours with an HNSW index {indexed:.0f}",
        "> 1/3 COPY",
        plain / copied,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
