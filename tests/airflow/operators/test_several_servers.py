"""The operators on a connection with several servers, run by Airflow against stand-ins."""

import json

import pytest

from ollama_provider.testing import Fail, Model, Respond

LOAD = "OllamaLoadModelOperator(task_id='t', model='llama3.2')"
UNLOAD = "OllamaUnloadModelOperator(task_id='t', model='llama3.2')"
PULL = "OllamaPullModelOperator(task_id='t', model='mistral')"
DELETE = "OllamaDeleteModelOperator(task_id='t', model='llama3.2')"
COPY = "OllamaCopyModelOperator(task_id='t', model='llama3.2', destination='mine')"
CREATE = "OllamaCreateModelOperator(task_id='t', model='mine', from_='llama3.2', system='Be brief.')"
PRUNE = "OllamaPruneModelsOperator(task_id='t', match='llama3.2', dry_run=False)"
GENERATE = "OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='hi')"

blocking = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)


@pytest.fixture
def servers(ollama_servers, run_task, monkeypatch):
    """Three servers, and the connection of `run_task` to all of them."""
    value = {"conn_type": "ollama", "host": ", ".join(server.url for server in ollama_servers)}
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps(value | {"extra": {"max_attempts": 1}}))
    return ollama_servers


def paths(server) -> list[str]:
    return [seen.path for seen in server.stand_in.requests]


@blocking
@pytest.mark.parametrize(
    ("task", "changed", "path"),
    [
        (LOAD, "loaded", "/api/generate"),
        (DELETE, "deleted", "/api/delete"),
        (COPY, "copied", "/api/copy"),
        (CREATE, "created", "/api/create"),
    ],
)
def test_all_servers_are_changed_once(run_task, servers, task, changed, path):
    """XCom says so of each, the log names it, and a second run changes nothing."""
    first, second = run_task(task), run_task(task)

    urls = [server.url for server in servers]
    assert (first.state, list(first.value)) == ("success", urls)
    assert [value[changed] for value in first.value.values()] == [True] * 3
    assert [value[changed] for value in second.value.values()] == [False] * 3
    assert all(f"{url}: Model " in first.log for url in urls)
    assert [paths(server).count(path) for server in servers] == [2 if task == LOAD else 1] * 3


@blocking
def test_only_those_servers_unload_that_have_loaded(run_task, servers):
    """For each the result is its own."""
    servers[1].stand_in.remove("llama3.2")
    run_task(LOAD)
    servers[2].stand_in.restart()

    ran = run_task(UNLOAD)

    assert [value["unloaded"] for value in ran.value.values()] == [True, True, False]


@blocking
def test_each_server_is_pruned_by_itself(run_task, servers):
    """What is there to delete may differ."""
    servers[1].stand_in.remove("llama3.2")

    ran = run_task(PRUNE)

    assert [value["models"] for value in ran.value.values()] == [["llama3.2:latest"], [], ["llama3.2:latest"]]


def test_a_model_is_pulled_to_those_that_lack_it(run_task, servers):
    """In the worker and in the triggerer; the others do not ask the registry."""
    servers[1].stand_in.install(Model("mistral"))

    first, second = run_task(PULL), run_task(PULL)

    assert [value["pulled"] for value in first.value.values()] == [True, False, True]
    assert [value["pulled"] for value in second.value.values()] == [False] * 3
    assert list(first.value) == [server.url for server in servers]
    assert [paths(server).count("/api/pull") for server in servers] == [1, 0, 1]


def test_a_failed_pull_does_not_stop_the_others(run_task, servers):
    """The error lists who failed, with the server's words."""
    servers[1].stand_in.script(Fail("pull model manifest: file does not exist"), path="pull")

    ran = run_task(PULL)

    assert ran.state == "failed"
    assert f"1 of 3 servers failed: {servers[1].url}: " in ran.log
    assert "file does not exist" in ran.log
    assert [("mistral" in {model.name for model in server.stand_in.models}) for server in servers] == [
        True,
        False,
        True,
    ]


def test_a_server_that_is_down_does_not_keep_the_others_from_pulling(run_task, servers):
    """Although nobody knows whether it has the model."""
    servers[0].stop()

    ran = run_task(PULL)

    assert ran.state == "failed"
    assert f"1 of 3 servers failed: {servers[0].url}: connection refused" in ran.log
    assert ["/api/pull" in paths(server) for server in servers[1:]] == [True, True]


@blocking
def test_a_server_that_is_down_does_not_keep_the_others_from_a_change(run_task, servers):
    """The task is to be repeated, and then does the rest."""
    servers[2].stop()
    ran = run_task(COPY)
    assert ran.state == "failed"
    assert f"1 of 3 servers failed: {servers[2].url}: connection refused" in ran.log
    servers[2].start()

    again = run_task(COPY)

    assert [value["copied"] for value in again.value.values()] == [False, False, True]


def test_the_usage_names_the_server_that_answered(run_task, servers):
    """And its digest of the model is the one that is told."""
    servers[0].stand_in.script(Respond(503, "<html>busy</html>"))
    servers[1].stand_in.retag("llama3.2")
    digest = servers[1].stand_in.model("llama3.2").digest

    ran = run_task(GENERATE)

    assert ran.state == "success"
    assert (ran.usage["server"], ran.usage["digest"]) == (servers[1].url, digest.removeprefix("sha256:"))


def test_vectors_come_from_a_server_that_is_up(run_task, servers):
    """As any other answer."""
    servers[0].stop()

    ran = run_task("OllamaEmbedOperator(task_id='t', model='nomic-embed-text', texts=['a', 'b'])")

    assert len(ran.value) == 2
    assert ran.usage["server"] == servers[1].url


def test_an_answer_that_is_shown_while_it_comes_is_that_of_one_server(run_task, servers, tmp_path):
    """Where the first is down, of the next."""
    servers[0].stop()

    ran = run_task(f"OllamaChatOperator(task_id='t', model='llama3.2', messages='hi', stream_to='{tmp_path}/answer')")

    assert ran.state == "success"
    assert ran.usage["server"] == servers[1].url


@pytest.mark.ollama_servers({"models": []}, {"models": []}, {"models": []})
def test_a_model_whose_capabilities_count_is_pulled_to_one(run_task, servers):
    """What it can do is asked before it is loaded."""
    servers[0].stop()

    ran = run_task("OllamaGenerateOperator(task_id='t', model='mistral', prompt='hi', think=True)")

    assert "the model lacks thinking" in ran.log
    assert [paths(server).count("/api/pull") for server in servers] == [0, 1, 0]


def test_the_error_of_all_servers_is_in_the_log(run_task, servers):
    """Each by name."""
    for server in servers:
        server.stop()

    ran = run_task(GENERATE)

    assert ran.state == "failed"
    assert all(f"{server.url}: connection refused" in ran.log for server in servers)
