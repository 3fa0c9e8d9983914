"""The nightly DAG over two servers, one of which is killed while the batch is at work."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.examples import DAGS
from tests.e2e.stack import Stack
from tests.processes import Processes, free_port

NIGHT = "ollama_nightly_summaries"
#: As many documents as every machine has.
ROWS = 30


@pytest.fixture
def ports() -> tuple[int, int]:
    """The ports of the two servers."""
    return free_port(), free_port()


@pytest.fixture
def servers(ports: tuple[int, int], tmp_path: Path) -> Iterator[Processes]:
    """The servers, `gpu0` and `gpu1`, each a process of its own, so that one can really be killed."""
    with Processes(tmp_path / "servers") as processes:
        for number in range(len(ports)):
            start(processes, ports, number)
        yield processes


@pytest.fixture
def stack(ports: tuple[int, int], servers: Processes, tmp_path: Path) -> Iterator[Stack]:
    """Airflow with the DAGs of this project, and a connection to both servers."""
    connection = {"conn_type": "ollama", "host": ", ".join(map(address, ports))}
    environment = {"AIRFLOW_CONN_OLLAMA_DEFAULT": json.dumps(connection)}
    with Stack(tmp_path / "airflow", dags=DAGS, environment=environment) as stack:
        yield stack


@pytest.mark.timeout(600)
def test_a_night_with_one_of_two_servers_killed(
    stack: Stack, servers: Processes, ports: tuple[int, int], tmp_path: Path
) -> None:
    """The task succeeds in its first try, every row is there once, and what was answered before is not asked again."""
    out = tmp_path / "results"
    run = stack.trigger(NIGHT, {"documents": ROWS, "output_path": f"file://{out}"})
    both = [address(port) for port in ports]
    stack.processes.wait(
        "answers of both servers", lambda: all(rows_by_server(out)[url] >= 3 for url in both), timeout=240
    )

    servers.kill("gpu1")
    killed_after = rows_by_server(out)
    states = stack.wait_for_run(NIGHT, run)

    assert set(states.values()) == {"success"}
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["index"] for row in results] == list(range(ROWS))
    assert {row["status"] for row in results} == {"ok"}
    shares = Counter(row["server"] for row in results)
    assert set(shares) == set(both)
    # What the killed server had answered until then is in the results as its own.
    assert shares[both[1]] >= killed_after[both[1]]
    assert shares[both[0]] > killed_after[both[0]]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["ok"], summary["failed"], summary["complete"]) == (ROWS, 0, True)
    killed = next(share for share in summary["servers"] if share["server"] == both[1])
    assert killed["seconds_out"] > 0
    log = stack.task_log(NIGHT, run, "summaries")
    assert f"Server {both[1]} is unavailable" in log
    assert "Traceback" not in log


def address(port: int) -> str:
    """Return the URL of a server."""
    return f"http://127.0.0.1:{port}"


def start(servers: Processes, ports: tuple[int, int], number: int) -> None:
    """Start a server on its port."""
    options = ["--port", str(ports[number]), "--parallel", "2", "--tokens-per-second", "30"]
    servers.start(f"gpu{number}", [sys.executable, "-m", "ollama_provider.testing", *options])


def rows_by_server(out: Path) -> Counter[str]:
    """Return how many rows each server has answered so far, as the parts have them."""
    lines = [line for part in (out / "parts").glob("*") for line in part.read_text().splitlines()]
    return Counter(json.loads(line)["server"] for line in lines if line.endswith("}"))
