"""OllamaHealthTrigger, run as a triggerer runs it."""

import asyncio
import json
import logging
import time

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from ollama_provider.sensors import OllamaHealthSensor
from ollama_provider.testing import Model, Respond
from ollama_provider.triggers import OllamaHealthTrigger
from tests.airflow.deferring import complete, fired, stored


def trigger(**arguments) -> OllamaHealthTrigger:
    """A trigger that looks without a pause, once a look as the sensor's does, and gives up after some seconds."""
    defaults = {
        "conn_id": "ollama_default",
        "overrides": {"max_attempts": 1},
        "poll_interval": 0.01,
        "deadline": time.time() + 20,
    }
    return OllamaHealthTrigger(**{**defaults, **arguments})


def looks(ollama) -> int:
    return sum(seen.path == "/api/tags" for seen in ollama.stand_in.requests)


def test_what_is_stored_is_small_and_has_no_secret(add_connection):
    """The path is the one people import, and everything about the connection but its name stays where it was."""
    add_connection(host="gpu1", password="hunter2", extra={"headers": {"X-Key": "sesame"}})

    path, kwargs = trigger(models=["llama3.2"]).serialize()

    assert path == "ollama_provider.triggers.OllamaHealthTrigger"
    text = json.dumps(kwargs)
    assert len(text) < 300
    assert "hunter2" not in text
    assert "sesame" not in text
    assert stored(trigger(models=["llama3.2"])).serialize()[1].keys() == kwargs.keys()


async def test_it_waits_for_a_model_that_is_still_missing(ollama, ollama_conn):
    """And says in the end what is there."""
    waiting = asyncio.create_task(fired(trigger(models=["fresh"])))
    await asyncio.to_thread(ollama.stand_in.wait_until, lambda s: len(s.requests) == 3)
    ollama.stand_in.install(Model("fresh"))

    assert await waiting == {"status": "ready", "text": "the server answers; fresh on the server"}


async def test_a_server_that_is_restarted_meanwhile_is_waited_for(ollama, ollama_conn):
    """Refused connections pass."""
    running = trigger(models=["fresh"])
    waiting = asyncio.create_task(fired(running))
    await asyncio.to_thread(ollama.stand_in.wait_until, lambda s: len(s.requests) == 2)
    await asyncio.to_thread(ollama.stop)
    while "fresh" in running.echo()["text"] and not waiting.done():
        await asyncio.sleep(0.01)
    assert "Is the server running" in running.echo()["text"]
    ollama.stand_in.install(Model("fresh"))
    await asyncio.to_thread(ollama.start)

    assert (await waiting)["status"] == "ready"


async def test_faults_that_pass_are_waited_for(ollama, ollama_conn):
    """As many as there are: a proxy without a server behind it, an overloaded one, one that says nonsense for once."""
    ollama.stand_in.script(Respond(502, "<html>"), Respond(503, ""), Respond(500, "?"), path="tags")

    assert (await fired(trigger()))["status"] == "ready"
    assert looks(ollama) == 4


async def test_what_cannot_pass_ends_the_wait_at_once_with_its_reason(ollama, ollama_conn):
    """A key that was revoked while the task was deferred."""
    ollama.stand_in.script(Respond(503, ""), Respond(401, {"error": "unauthorized"}), path="tags")

    payload = await fired(trigger(deadline=None))

    assert payload["status"] == "never"
    assert "check login and password" in payload["text"]
    assert looks(ollama) == 2


async def test_a_connection_that_was_deleted_ends_the_wait_at_once(add_connection):
    """After a restart of the triggerer. Until then the trigger keeps the settings that it has read."""
    payload = await fired(trigger(conn_id="gone"))

    assert payload["status"] == "never"
    assert "no connection 'gone'" in payload["text"]


async def test_a_connection_that_is_deleted_meanwhile_does_not_disturb_a_wait(ollama, ollama_conn, monkeypatch):
    """It was read at the beginning."""
    waiting = asyncio.create_task(fired(trigger(models=["fresh"])))
    await asyncio.to_thread(ollama.stand_in.wait_until, lambda s: len(s.requests) == 2)
    monkeypatch.delenv("AIRFLOW_CONN_OLLAMA_DEFAULT")
    ollama.stand_in.install(Model("fresh"))

    assert (await waiting)["status"] == "ready"


async def test_the_trigger_keeps_the_deadline_and_reports_what_was_missing(ollama, ollama_conn):
    """Airflow itself would say no more than that time is up."""
    payload = await fired(trigger(models=["fresh"], deadline=time.time() + 0.2))

    assert payload == {"status": "timeout", "text": "fresh:latest is not on the server"}


async def test_a_deadline_that_has_passed_asks_nothing(ollama, ollama_conn):
    """After a triggerer that was down for long."""
    payload = await fired(trigger(deadline=time.time() - 60))

    assert payload["status"] == "timeout"
    assert ollama.stand_in.requests == []


async def test_the_first_look_comes_after_an_interval(ollama, ollama_conn):
    """The worker has just looked: to defer adds no request."""
    payload = await fired(trigger(poll_interval=60, deadline=time.time() + 0.1))

    assert payload["status"] == "timeout"
    assert looks(ollama) == 0


async def test_a_look_is_one_request_without_retries(ollama, ollama_conn, no_waiting):
    """The next check is the retry, as in the sensor, whatever the connection sets."""
    ollama.stand_in.script(Respond(503, ""), path="tags", always=True)
    sensor = OllamaHealthSensor(task_id="wait", deferrable=True, poke_interval=0.01, timeout=20)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute({})
    assert looks(ollama) == 1
    running = stored(deferred.value.trigger)
    before = running.echo()

    waiting = asyncio.create_task(fired(running))
    while running.echo() == before and not waiting.done():
        await asyncio.sleep(0)
    waiting.cancel()

    assert looks(ollama) == 2


async def test_the_log_says_what_is_missing_once(ollama, ollama_conn, caplog):
    """In the task's log, once for each reason."""
    caplog.set_level(logging.INFO)
    logged = trigger(models=["fresh"])
    # Airflow's own way from here to the task's log differs from version to version.
    logged._log = logging.getLogger("trigger")
    waiting = asyncio.create_task(fired(logged))
    await asyncio.to_thread(ollama.stand_in.wait_until, lambda s: len(s.requests) == 5)
    waiting.cancel()

    told = [record.getMessage() for record in caplog.records if "Not yet" in record.getMessage()]
    assert told == ["Not yet: fresh:latest is not on the server"]


class TestSensor:
    """What the sensor makes of the event."""

    def wait(self, **arguments) -> None:
        defaults = {"task_id": "wait", "deferrable": True, "poke_interval": 0.01, "timeout": 20, "models": ["fresh"]}
        complete(OllamaHealthSensor(**{**defaults, **arguments}))

    def test_a_wait_that_became_useless_fails_without_retries(self, ollama, ollama_conn):
        """With the reason that the trigger has seen."""
        ollama.stand_in.script(Respond(503, ""), Respond(401, {"error": "unauthorized"}), path="tags")

        with pytest.raises(AirflowFailException, match="check login and password"):
            self.wait()

    def test_time_is_up(self, ollama, ollama_conn):
        """Under the name that a sensor's timeout has in Airflow, and with what was missing."""
        with pytest.raises(AirflowSensorTimeout, match=r"not ready within 1\.5 s: fresh:latest is not on the server"):
            self.wait(timeout=1.5)

    def test_soft_fail_skips_then_as_well(self, ollama, ollama_conn):
        """Airflow's own switch keeps working."""
        with pytest.raises(AirflowSkipException):
            self.wait(timeout=0.2, soft_fail=True)

    def test_what_is_there_is_not_waited_for(self, ollama, ollama_conn):
        """A deferral takes some seconds; one request settles it."""
        OllamaHealthSensor(task_id="wait", deferrable=True).execute({})

        assert looks(ollama) == 1
