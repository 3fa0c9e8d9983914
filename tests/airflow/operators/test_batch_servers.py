"""OllamaBatchOperator on a connection with several servers, run by Airflow against stand-ins."""

import json

import pytest

from ollama_provider.testing import Respond

# Rows are for the worker: a triggerer belongs to everybody.
pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)


@pytest.fixture
def servers(ollama_servers, run_task, monkeypatch):
    """Three servers, and the connection of `run_task` to all of them."""
    value = {"conn_type": "ollama", "host": ", ".join(server.url for server in ollama_servers)}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps(value | {"extra": {"max_attempts": 1}}))
    return ollama_servers


def batch(tmp_path, rows: int) -> str:
    """The source of a batch task."""
    return (
        f"OllamaBatchOperator(task_id='t', model='llama3.2', retries=3, output_path='{tmp_path}/out', resume='task', "
        f"rows=[{{'text': f'text {{number}}'}} for number in range({rows})], pace=Pace(concurrency=2))"
    )


def test_all_servers_share_the_rows(run_task, servers, tmp_path, caplog) -> None:
    """XCom and log say what each of them did."""
    caplog.set_level("INFO", "ollama_provider")

    ran = run_task(batch(tmp_path, 60))

    assert ran.state == "success"
    assert [share["server"] for share in ran.value["servers"]] == [server.url for server in servers]
    assert sum(share["rows"] for share in ran.value["servers"]) == 60
    assert "The servers of this run:" in caplog.text
    results = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert {row["server"] for row in results} <= {server.url for server in servers}


def test_a_server_that_cannot_be_used_is_left_out(run_task, servers, tmp_path, caplog) -> None:
    """The task is green, and its log and XCom name the server and the reason."""
    servers[0].stand_in.script(Respond(401, "no"), path="version", always=True)

    ran = run_task(batch(tmp_path, 20))

    assert (ran.state, ran.value["ok"]) == ("success", 20)
    assert "401" in ran.value["servers"][0]["reason"]
    assert f"Server {servers[0].url} is left out of this run" in caplog.text


def test_no_server_that_can_be_used(run_task, servers, tmp_path) -> None:
    """The task fails without a retry if no reason can pass by itself; the error names all servers."""
    for server in servers:
        server.stand_in.script(Respond(401, "no"), path="version", always=True)

    ran = run_task(batch(tmp_path, 20))

    assert (ran.state, ran.tries) == ("failed", 1)
    assert all(server.url in ran.log for server in servers)
