"""OllamaPullModelOperator, run by Airflow against the stand-in."""

from ollama_provider.testing import Fail

TASK = "OllamaPullModelOperator(task_id='t', retries=3, "


def paths(ollama):
    """What was asked of the server."""
    return [seen.path for seen in ollama.stand_in.requests]


def test_missing_model_is_pulled(run_task, ollama) -> None:
    """The download shows in the log; XCom says what is there now."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task(f"{TASK}model='{{{{ params.model }}}}')", params={"model": "llama3.2"})

    assert ran.state == "success"
    assert ran.value["model"] == "llama3.2:latest"
    assert ran.value["pulled"] is True
    assert ran.value["size"] > 0
    assert len(ran.value["digest"]) == 64
    assert "llama3.2: success, 100 % of" in ran.log
    assert ran.usage is None


def test_model_that_is_there_is_left_alone(run_task, ollama) -> None:
    """The registry is not asked, and the log says that nothing has changed."""
    ran = run_task(f"{TASK}model='LLAMA3.2:latest')")

    assert ran.value["pulled"] is False
    assert "nothing has changed" in ran.log
    assert "/api/pull" not in paths(ollama)


def test_update_without_news(run_task, ollama) -> None:
    """``update=True`` asks the registry, which has nothing newer."""
    ran = run_task(f"{TASK}model='llama3.2', update=True)")

    assert ran.value["pulled"] is False
    assert "/api/pull" in paths(ollama)


def test_update_with_news(run_task, ollama) -> None:
    """``update=True`` brings what is newer under the same name."""
    ollama.stand_in.retag("llama3.2")
    before = run_task(f"{TASK}model='llama3.2')").value["digest"]

    ran = run_task(f"{TASK}model='llama3.2', update=True)")

    assert ran.value["pulled"] is True
    assert ran.value["digest"] != before


def test_unknown_model(run_task, ollama) -> None:
    """The server's own words, and no retry."""
    ran = run_task(f"{TASK}model='llama3.22')")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "file does not exist" in ran.log
    assert "llama3.22" in ran.log


def test_the_server_cannot_reach_the_registry(run_task, ollama, add_connection) -> None:
    """The server's way to the registry may be back for the next try."""
    add_connection(host=ollama.url, extra={"max_attempts": 1})
    ollama.stand_in.remove("llama3.2")
    ollama.stand_in.script(
        Fail('pull model manifest: Get "https://registry.ollama.ai/v2/": dial tcp: i/o timeout'), path="pull"
    )

    ran = run_task(f"{TASK}model='llama3.2')")

    assert (ran.state, ran.tries) == ("success", 2)
    assert "i/o timeout" in ran.log
