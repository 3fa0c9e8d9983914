"""What a row costs beside the model's own time: in a batch, and as a mapped task of the same Airflow.

    python tests/benchmarks/mapped.py [rows of the batch] [mapped tasks]

Both are run by `airflow dags test`, the cheapest way to run a task that Airflow has: a scheduler with workers takes
three to six times as long for each. The server answers at once; what a run of one row takes is taken off; and seconds
are those of Airflow's processor, which is what other work on the machine disturbs least.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import serve, tell

AIRFLOW = Path(sys.executable).with_name("airflow")

DAG = """
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaBatchOperator, OllamaGenerateOperator

PROMPTS = Path(__file__).with_name("prompts.txt").read_text().splitlines()
OUTPUT = str(Path(__file__).parent / "out")

with DAG("batch", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    OllamaBatchOperator(task_id="rows", model="bench", rows=PROMPTS, output_path=OUTPUT, options={"num_ctx": 4096})

with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    OllamaGenerateOperator.partial(task_id="rows", model="bench").expand(prompt=PROMPTS)
"""


def seconds(dag: str, rows: int, home: Path, environment: dict[str, str]) -> float:
    """Run a DAG over so many rows; return seconds of the processor."""
    (home / "dags/prompts.txt").write_text("".join(f"Row {number}: say hello.\n" for number in range(rows)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([AIRFLOW, "dags", "test", dag], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rows, tasks = (int(number) for number in (*sys.argv[1:], *("20000", "50")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder, serve(slots=16) as url:
        home = Path(folder)
        (home / "dags").mkdir()
        (home / "dags/rows.py").write_text(DAG)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
            "AIRFLOW_HOME": folder,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_OLLAMA_DEFAULT": json.dumps({"conn_type": "ollama", "host": url}),
        }
        subprocess.run([AIRFLOW, "db", "migrate"], env=environment, check=True, capture_output=True)
        each = {
            dag: (seconds(dag, many, home, environment) - seconds(dag, 1, home, environment)) / (many - 1)
            for dag, many in (("batch", rows), ("mapped", tasks))
        }
    tell(
        "mapped",
        "a row in the batch beside a mapped task",
        f"{each['mapped'] / each['batch']:.0f} x",
        f"{each['batch'] * 1000:.2f} ms; mapped task {each['mapped'] * 1000:.0f} ms",
        "100 x",
        each["mapped"] / each["batch"],
    )


if __name__ == "__main__":
    main()
