"""OllamaLoadModelOperator and OllamaUnloadModelOperator, run by Airflow against the stand-in."""

import threading

import pytest

from ollama_provider.api.client import Client
from ollama_provider.api.schemas import ChatRequest
from ollama_provider.api.settings import Settings
from ollama_provider.testing import Gate, Model, Stall

pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)

LOAD = "OllamaLoadModelOperator(task_id='t', model='llama3.2', retries=3, keep_alive='8h', options={'num_ctx': 2048})"
UNLOAD = "OllamaUnloadModelOperator(task_id='t', model='LLAMA3.2:latest', retries=3)"


def test_a_model_is_loaded_once(run_task, ollama):
    """The second run changes nothing, and logs that."""
    first, second = run_task(LOAD), run_task(LOAD)

    assert (first.state, second.state) == ("success", "success")
    assert first.value["model"] == "llama3.2:latest"
    assert first.value["context_length"] == 2048
    assert first.value["size"] > first.value["size_vram"] == 0
    assert "T" in first.value["expires_at"]
    assert (first.value["loaded"], second.value["loaded"]) == (True, False)
    assert "Model llama3.2:latest is in memory: 2.4 GB, 0% on a GPU, context 2048, until 20" in first.log
    assert "is in memory already" in second.log
    assert ollama.stand_in.loads == ["llama3.2:latest"]


def test_other_options_load_it_again(run_task, ollama):
    """Another context is another load, and counts as one."""
    run_task(LOAD)

    ran = run_task(LOAD.replace("2048", "4096"))

    assert (ran.value["loaded"], ran.value["context_length"]) == (True, 4096)


def test_for_ever(run_task, ollama):
    """The server writes it as a date 300 years ahead."""
    ran = run_task(LOAD.replace("'8h'", "-1"))

    assert ran.state == "success"
    assert ", without limit" in ran.log


def test_a_model_for_embeddings_is_loaded_too(run_task, ollama):
    """It refuses to generate even nothing, and is asked for no vectors instead."""
    ran = run_task("OllamaLoadModelOperator(task_id='t', model='nomic-embed-text')")

    assert ran.value["loaded"] is True
    assert ollama.stand_in.loads == ["nomic-embed-text:latest"]


def test_a_missing_model_is_pulled_and_loaded(run_task, ollama):
    """As for any other question."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task(LOAD)

    assert ran.value["loaded"] is True
    assert ollama.stand_in.downloads == {"llama3.2:latest": 1}


def test_a_model_that_does_not_stay(run_task, ollama):
    """``keep_alive=0`` loads and unloads; the log does not claim otherwise."""
    ran = run_task(LOAD.replace("'8h'", "'{{ 0 }}'"))

    assert ran.state == "success"
    assert "is not in memory any more" in ran.log


def test_a_model_is_unloaded_once(run_task, ollama):
    """The second run changes nothing, and logs that."""
    run_task(LOAD)

    first, second = run_task(UNLOAD), run_task(UNLOAD)

    assert first.value == {"model": "LLAMA3.2:latest", "unloaded": True}
    assert "was unloaded" in first.log
    assert second.value == {"model": "LLAMA3.2:latest", "unloaded": False}
    assert "is not in memory, nothing has changed" in second.log


def test_unloading_what_is_not_there_pulls_nothing(run_task, ollama):
    """A name that the server does not know is not in its memory either."""
    ran = run_task("OllamaUnloadModelOperator(task_id='t', model='mistral')")

    assert ran.value["unloaded"] is False
    assert ollama.stand_in.downloads == {}


@pytest.fixture
def busy(ollama):
    """Return a gate. The model answers a request until the gate opens."""
    gate = Gate()
    ollama.stand_in.install(Model("busy"))
    ollama.stand_in.script(Stall(after=1, until=gate), model="busy")

    def ask() -> None:
        with Client(Settings(base_url=ollama.url)) as client:
            client.send(ChatRequest(model="busy", messages="Hello"))

    asking = threading.Thread(target=ask)
    asking.start()
    ollama.stand_in.wait_until(lambda stand_in: stand_in.loads == ["busy:latest"])
    yield gate
    gate.open()
    asking.join()


def test_a_busy_model_is_waited_for(run_task, ollama, busy):
    """It is unloaded when it has answered, and the task waits for that."""

    def asked_to_unload(stand_in) -> bool:
        return any(seen.path == "/api/generate" and seen.json["keep_alive"] == 0 for seen in stand_in.requests)

    def finish() -> None:
        ollama.stand_in.wait_until(asked_to_unload, seconds=60)
        busy.open()

    finishing = threading.Thread(target=finish)
    finishing.start()
    ran = run_task("OllamaUnloadModelOperator(task_id='t', model='busy')")
    finishing.join()

    assert ran.value["unloaded"] is True
    looks = [seen.path for seen in ollama.stand_in.requests].count("/api/ps")
    assert looks >= 2


def test_a_model_that_stays_busy_fails_the_task(run_task, ollama, busy):
    """The text says how long it was waited for, and what to do."""
    ran = run_task("OllamaUnloadModelOperator(task_id='t', model='busy', unload_timeout=0)")

    assert ran.state == "failed"
    assert (
        f"the model is still in memory after 0 s: it is answering requests, or new ones keep coming (at {ollama.url}"
        in ran.log
    )
    assert "raise unload_timeout" in ran.log


@pytest.mark.ollama(version="0.1.30")
def test_a_server_without_a_list_of_what_is_loaded(run_task, ollama):
    """Before 0.1.38 there is no telling, and the text says what is missing."""
    ran = run_task(UNLOAD)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "there is no /api/ps" in ran.log
