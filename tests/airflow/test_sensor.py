"""The health sensor: what it waits for, and what it does not wait for."""

import logging
import threading
from collections.abc import Callable

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from ollama_provider.hooks import OllamaHook
from ollama_provider.sensors import OllamaHealthSensor
from ollama_provider.testing import Model, Respond, Stall
from ollama_provider.triggers import OllamaHealthTrigger
from tests.airflow.deferring import complete


def sensor(**arguments) -> OllamaHealthSensor:
    """A sensor that pokes without a pause, and for half a minute at most."""
    return OllamaHealthSensor(**{"task_id": "wait", "poke_interval": 0.01, "timeout": 30, **arguments})


@pytest.fixture(autouse=True)
def _no_long_pokes(monkeypatch):
    """The stand-in does not crash of being asked what is in its memory."""
    monkeypatch.setattr("ollama_provider.sensors._LOADED_POKE_INTERVAL", 0.0)


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def wait(request) -> Callable[..., None]:
    """Return a function that lets a sensor wait, here or in a trigger: nothing that a user sees may differ."""

    def run(**arguments) -> None:
        complete(sensor(deferrable=request.param, **arguments))

    return run


def asked(ollama) -> list[str]:
    return [seen.path for seen in ollama.stand_in.requests]


def test_a_server_that_answers_is_enough(wait, ollama, ollama_conn):
    """Without arguments one cheap request settles it."""
    wait()

    assert asked(ollama) == ["/api/tags"]


def test_it_waits_for_a_server_that_starts_later(wait, ollama, ollama_conn):
    """Refused connections and errors of a proxy are temporary."""
    ollama.stand_in.script(Respond(502, "<html>Bad gateway</html>"), Respond(503, ""), path="tags")

    wait()

    assert asked(ollama) == ["/api/tags"] * 3


def test_a_refused_connection_is_not_yet(ollama, ollama_conn):
    """The server may still be starting; one sensor sees it come."""
    ollama.stop()
    waiting = sensor()
    assert waiting.poke({}) is False

    ollama.start()
    assert waiting.poke({}) is True


def test_a_server_that_never_comes_times_out(wait, ollama, ollama_conn):
    """The sensor's own timeout ends it, under the name that Airflow knows it by."""
    ollama.stop()

    with pytest.raises(AirflowSensorTimeout):
        wait(timeout=0.05)


def test_a_killed_sensor_waits_no_longer(ollama, ollama_conn):
    """`on_kill` ends the poke that waits for its answer, and there is no other one; the task's retries are left."""
    ollama.stand_in.script(Stall(), path="tags")
    waiting = sensor(timeout=60)

    def kill() -> None:
        ollama.stand_in.wait_until(lambda s: s.open_requests)
        waiting.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AirflowException, match="closed meanwhile") as caught:
        waiting.execute({})
    killer.join()

    assert type(caught.value) is AirflowException
    assert asked(ollama) == ["/api/tags"]


def test_it_waits_until_all_models_are_there(ollama, ollama_conn):
    """One of two is not enough; the other comes between two pokes."""
    waiting = sensor(models=["llama3.2", "Fresh:LATEST"])
    assert waiting.poke({}) is False

    ollama.stand_in.install(Model("fresh"))
    assert waiting.poke({}) is True


def test_it_waits_until_a_model_is_loaded(ollama, ollama_conn):
    """In memory, not only on the disk."""
    waiting = sensor(loaded="llama3.2")
    assert waiting.poke({}) is False

    waiting.hook.load("llama3.2")
    assert waiting.poke({}) is True


@pytest.mark.parametrize(("wanted", "ready"), [("0.1.14", True), ("99.0", False)])
def test_it_waits_for_a_version(ollama, ollama_conn, wanted, ready):
    """An update may come."""
    assert sensor(min_version=wanted).poke({}) is ready


def test_a_poke_is_one_request_for_each_kind_of_fact(ollama, ollama_conn):
    """A thousand sensors must not keep a server busy: no retries inside, nothing that is not needed."""
    sensor(models=["llama3.2"]).poke({})
    assert asked(ollama) == ["/api/tags"]

    ollama.stand_in.script(Respond(503, ""), path="tags")
    sensor(models=["llama3.2"]).poke({})
    assert asked(ollama) == ["/api/tags"] * 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Respond(401, {"error": "unauthorized"}), "login and password"),
        (Respond(403, ""), "403"),
        (Respond(404, "<html><title>nginx</title></html>"), "host, port and base path"),
        (Respond(404, "404 page not found"), "base path"),
        (Respond(302, headers={"Location": "https://login.example.com"}), "redirect"),
        (Respond(200, "<html>It works!</html>"), "host, port and base path"),
    ],
)
def test_a_permanent_failure_fails_at_once(wait, ollama, ollama_conn, answer, words):
    """Neither the sensor's timeout nor the task's retries are spent, and the text says what to do."""
    ollama.stand_in.script(answer, path="tags")

    with pytest.raises(AirflowFailException, match=words):
        wait()

    assert len(asked(ollama)) == 1


def test_tls_to_a_plain_port_fails_at_once(wait, ollama, add_connection):
    """https in the connection, http on the port."""
    conn_id = add_connection(host=ollama.url.replace("http:", "https:"))

    with pytest.raises(AirflowFailException, match="http or https"):
        wait(conn_id=conn_id)


@pytest.mark.parametrize("wrong", [{"models": ["two words"]}, {"min_version": "newest"}, {"loaded": ["x@md5:1"]}])
def test_a_condition_that_can_never_be_true_fails_at_once(wait, ollama, ollama_conn, wrong):
    """A misspelt name is not waited for until the morning."""
    with pytest.raises(AirflowFailException):
        wait(**wrong)


def test_a_connection_that_cannot_be_read_fails_at_once(wait, add_connection):
    """With the field in the text."""
    conn_id = add_connection(extra={"idle_timeout": "soon"})

    with pytest.raises(AirflowFailException, match="idle_timeout"):
        wait(conn_id=conn_id)


def test_soft_fail_skips(wait, ollama, ollama_conn):
    """Airflow's own switch keeps working."""
    ollama.stand_in.script(Respond(401, {"error": "unauthorized"}), path="tags")

    with pytest.raises(AirflowSkipException):
        wait(soft_fail=True)


def test_the_log_says_what_is_missing_once(ollama, ollama_conn, caplog, monkeypatch):
    """The same reason is logged once; another reason is logged again."""
    monkeypatch.setattr(OllamaHealthSensor, "log", logging.getLogger("the task's log"))
    waiting = sensor(models=["one", "two"])
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            waiting.poke({})
        ollama.stand_in.install(Model("one"))
        for _ in range(3):
            waiting.poke({})

    told = [record.getMessage() for record in caplog.records if "Not yet" in record.getMessage()]
    assert told == [
        "Not yet: one:latest is not on the server; two:latest is not on the server",
        "Not yet: two:latest is not on the server",
    ]


def test_the_connection_is_closed_at_the_end(ollama, ollama_conn):
    """In reschedule mode each poke is a process's whole life, and leaves nothing open."""
    waiting = sensor()
    waiting.execute({})

    assert waiting.hook.client.settings.max_attempts == 1
    with pytest.raises(Exception, match="closed"):
        waiting.hook.version()


def test_arguments_are_templates():
    """The names of models often come from the run's parameters."""
    assert set(OllamaHealthSensor.template_fields) == {"conn_id", "models", "min_version", "loaded", "servers"}


@pytest.mark.parametrize("how", ["mode='poke'", "mode='reschedule'", "deferrable=True"])
def test_it_runs_in_a_dag(ollama, ollama_conn, run_dag, how):
    """On a real Airflow, in all modes, with templates; the model comes while it waits."""
    ollama.stand_in.script(Respond(503, ""), path="tags")
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.hooks import OllamaHook
from ollama_provider.sensors import OllamaHealthSensor

with DAG("waits", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaHealthSensor(
        task_id="wait", models=["{{{{ 'llama' ~ 3.2 }}}}"], {how}, poke_interval=0.01, timeout=60
    )
""")

    assert run.state == "success"
    assert asked(ollama) == ["/api/tags"] * 2


@pytest.mark.parametrize("wanted", [{"min_version": 0.1}, {"models": [0.5]}, {"loaded": True}], ids=str)
def test_a_number_that_native_rendering_made_of_a_text_is_refused(ollama_conn, wanted):
    """0.1 may have been 0.10."""
    (name,) = wanted

    with pytest.raises(AirflowFailException, match=f"{name}: a text is needed.*render_template_as_native_obj"):
        OllamaHealthSensor(task_id="t", **wanted).poke({})


@pytest.mark.parametrize("argument", ["models", "loaded"])
@pytest.mark.parametrize("text", ['["llama3.2", "fresh"]', "['llama3.2', 'fresh']", "('llama3.2', 'fresh')"])
def test_a_list_that_a_template_turned_into_text_is_read(wait, ollama, ollama_conn, argument, text):
    """Each name counts, in the worker and in the trigger."""
    ollama.stand_in.install(Model("fresh"))
    with OllamaHook() as hook:
        hook.load("llama3.2")
        hook.load("fresh")

    wait(**{argument: text})

    with pytest.raises(AirflowSensorTimeout):
        wait(**{argument: text.replace("llama3.2", "missing")}, timeout=0.05)


@pytest.mark.parametrize("nothing", [None, "None", [], ()])
def test_nothing_is_wanted(ollama, ollama_conn, nothing):
    """As a template says it too."""
    models = nothing if isinstance(nothing, list | tuple) else None

    assert OllamaHealthSensor(task_id="t", models=models, min_version=nothing or None).poke({}) is True


def test_a_fault_in_the_trigger_fails_the_sensor_with_words(ollama, ollama_conn, monkeypatch):
    """And leaves it neither waiting nor ready."""

    async def wait(_self):
        raise OverflowError("what was answered")

    monkeypatch.setattr(OllamaHealthTrigger, "wait", wait)

    with pytest.raises(AirflowException, match="OverflowError in the trigger OllamaHealthTrigger"):
        complete(OllamaHealthSensor(task_id="t", models=["fresh"], deferrable=True))


@pytest.mark.parametrize("servers", ["any", 2, " 2 "])
def test_enough_of_several_servers_are_waited_for(wait, ollama_servers, ollama_servers_conn, servers):
    """One of three may be down."""
    ollama_servers[1].stop()

    wait(servers=servers)

    assert asked(ollama_servers[0])[-1] == "/api/tags"


def test_all_of_several_servers_are_waited_for(ollama_servers, ollama_servers_conn):
    """The log says of each what is missing there."""
    ollama_servers[1].stop()
    ollama_servers[2].stand_in.remove("llama3.2")

    waiting = sensor(servers="all", models="llama3.2")
    assert waiting.poke({}) is False

    text = waiting._logged
    assert text.startswith("1 of 3 servers are ready, 3 needed: ")
    assert f"{ollama_servers[1].url}: connection refused" in text
    assert f"{ollama_servers[2].url}: llama3.2:latest is not on the server" in text


def test_a_server_that_comes_up_is_counted(wait, ollama_servers, ollama_servers_conn):
    """Each poke looks at all of them."""
    for server in ollama_servers[:2]:
        server.stand_in.script(Respond(503, ""), Respond(503, ""), path="tags")

    wait(servers="all")

    assert [len(asked(server)) for server in ollama_servers] == [3, 3, 3]


def test_servers_that_never_will_be_ready_end_the_wait(wait, ollama_servers, ollama_servers_conn):
    """As soon as too few are left."""
    ollama_servers[0].stand_in.script(Respond(401, "no"), path="tags", always=True)
    wait(servers=2)

    with pytest.raises(AirflowFailException, match="2 of 3 servers are ready, 3 needed"):
        wait(servers=3)


@pytest.mark.parametrize(
    ("servers", "says"), [(4, "servers is 4, and the connection has 3"), ("most", "'any', 'all' or")]
)
def test_a_wrong_number_of_servers_fails_at_once(wait, ollama_servers_conn, servers, says):
    """Waiting would not help."""
    with pytest.raises(AirflowFailException, match=says):
        wait(servers=servers)


def test_the_memory_is_not_asked_for_often(monkeypatch):
    """A server may crash of it while it loads; other pokes are as often as the user wants."""
    monkeypatch.undo()

    assert sensor(loaded="llama3.2", poke_interval=0.1).poke_interval == 2
    assert sensor(loaded="llama3.2", poke_interval=5).poke_interval == 5
    assert sensor(models="llama3.2", poke_interval=0.1).poke_interval == 0.1
