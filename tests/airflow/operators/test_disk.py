"""OllamaCopyModelOperator and OllamaDeleteModelOperator, run by Airflow against the stand-in."""

import threading

import pytest

from ollama_provider.api.client import Client
from ollama_provider.api.schemas import ChatRequest
from ollama_provider.api.settings import Settings
from ollama_provider.testing import Gate, Stall

pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)

COPY = "OllamaCopyModelOperator(task_id='t', model='llama3.2', destination='production', retries=3)"
DELETE = "OllamaDeleteModelOperator(task_id='t', model='{{ \"LLAMA3.2\" }}', retries=3)"


def paths(ollama) -> list[str]:
    return [seen.path for seen in ollama.stand_in.requests]


def test_a_model_is_copied_once(run_task, ollama):
    """The second run changes nothing, and logs that."""
    first, second = run_task(COPY), run_task(COPY)

    assert first.value["model"] == "production:latest"
    assert first.value["digest"] == ollama.stand_in.model("production").digest
    assert (first.value["copied"], second.value["copied"]) == (True, False)
    assert "Model llama3.2 was copied to production" in first.log
    assert "nothing has changed" in second.log
    assert paths(ollama).count("/api/copy") == 1


def test_a_name_that_meant_something_else_is_moved(run_task, ollama):
    """The source was pulled again, and the second name is updated."""
    run_task(COPY)
    ollama.stand_in.retag("llama3.2")

    ran = run_task(COPY)

    assert ran.value["copied"] is True
    assert ollama.stand_in.model("production").digest == ollama.stand_in.model("llama3.2").digest


def test_a_missing_source_is_not_pulled(run_task, ollama):
    """It is said, and no retry is wasted."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task(COPY)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "there is no such model to copy" in ran.log
    assert ollama.stand_in.downloads == {}


def test_a_bad_destination_is_named(run_task, ollama):
    """Before it is sent."""
    ran = run_task(COPY.replace("'production'", "'a:b:c'"))

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "'a:b:c' is not a model's name" in ran.log


def test_a_model_is_deleted_once(run_task, ollama):
    """The second run changes nothing, and logs that."""
    first, second = run_task(DELETE), run_task(DELETE)

    assert first.value == {"model": "llama3.2:latest", "deleted": True}
    assert "Model llama3.2:latest was deleted" in first.log
    assert second.value == {"model": "LLAMA3.2:latest", "deleted": False}
    assert "There is no model LLAMA3.2:latest, nothing has changed" in second.log
    assert paths(ollama).count("/api/delete") == 1
    assert "llama3.2" not in {model.name for model in ollama.stand_in.models}


def test_a_loaded_model_is_unloaded_first(run_task, ollama):
    """Else the server would keep the copy in memory, under a name that is gone."""
    run_task("OllamaLoadModelOperator(task_id='t', model='llama3.2')")

    ran = run_task(DELETE)

    assert ran.value["deleted"] is True
    assert "Model llama3.2:latest was in memory, and was unloaded" in ran.log
    asked = paths(ollama)
    assert asked.index("/api/delete") > asked[: asked.index("/api/delete")].index("/api/generate")
    assert ollama.stand_in.answer("GET", "/api/ps").json == {"models": []}


def test_a_model_at_work_is_not_deleted(run_task, ollama):
    """It does not become idle in time, so the task fails, and nothing is gone."""
    gate = Gate()
    ollama.stand_in.script(Stall(after=1, until=gate))

    def ask() -> None:
        with Client(Settings(base_url=ollama.url)) as client:
            client.send(ChatRequest(model="llama3.2", messages="Hello"))

    asking = threading.Thread(target=ask)
    asking.start()
    ollama.stand_in.wait_until(lambda stand_in: stand_in.loads)
    ran = run_task("OllamaDeleteModelOperator(task_id='t', model='llama3.2', unload_timeout=0)")
    gate.open()
    asking.join()

    assert ran.state == "failed"
    assert "the model is still in memory after 0 s" in ran.log
    assert "/api/delete" not in paths(ollama)
    assert ollama.stand_in.model("llama3.2")


def test_nothing_is_deleted_by_default(run_task, ollama, add_connection):
    """The connection's default model is for questions; a name that a template made empty means none."""
    add_connection(host=ollama.url, extra={"model": "llama3.2"})

    ran = run_task("OllamaDeleteModelOperator(task_id='t', model='{{ \"\" }}', retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "is not a model's name" in ran.log
    assert ollama.stand_in.requests == []
