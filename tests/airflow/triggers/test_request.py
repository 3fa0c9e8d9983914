"""OllamaRequestTrigger, run as a triggerer runs it: kept waiting, killed, begun again."""

import asyncio
import json
import logging
import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout, TaskDeferred

from ollama_provider.api import shared_clients
from ollama_provider.api.errors import InvalidRequestError, ModelNotFoundError, OllamaError
from ollama_provider.api.schemas import EmbedRequest, GenerateRequest, PullRequest, Request
from ollama_provider.operators import OllamaGenerateOperator, OllamaPullModelOperator
from ollama_provider.payloads import AnswerReader, write_request
from ollama_provider.testing import Answer, Fail, Gate, Model, Ordinary, Stall, StuckDownload
from ollama_provider.triggers import OllamaRequestTrigger
from tests.airflow.deferring import complete, fired, stored

ASK = GenerateRequest(model="llama3.2", prompt="Why is the sky blue?", truncate=False)
PULL = PullRequest(model="mistral")


def trigger(request: Request = ASK, **arguments) -> OllamaRequestTrigger:
    """A trigger for a request, as it comes out of the database."""
    return stored(OllamaRequestTrigger(conn_id="ollama_default", parcel=write_request(request, None), **arguments))


def taken(payload: dict, request: Request = ASK):
    """What the worker takes out of an event."""
    assert payload["status"] == "answered"
    with AnswerReader(payload["answers"]) as reader:
        return reader.send(request)


def asked(ollama, path: str = "/api/generate") -> int:
    return sum(seen.path == path for seen in ollama.stand_in.requests)


async def until(ollama, condition) -> None:
    """Wait for the server to see something, while the event loop runs on."""
    await asyncio.to_thread(ollama.stand_in.wait_until, condition)


async def idle(ollama) -> None:
    await until(ollama, lambda s: not s.open_requests)


def test_what_is_stored_is_the_request_and_no_secret(add_connection):
    """The path is the one people import."""
    add_connection(host="gpu1", password="hunter2")

    path, kwargs = trigger(may_cut=True, deadline=time.time()).serialize()

    assert path == "ollama_provider.triggers.OllamaRequestTrigger"
    assert json.loads(kwargs["parcel"]["body"])["prompt"] == "Why is the sky blue?"
    assert "hunter2" not in json.dumps(kwargs)
    assert stored(trigger(may_cut=True, deadline=1.0)).serialize()[1].keys() == kwargs.keys()


async def test_the_answer_is_the_servers_own(ollama, ollama_conn):
    """Every field of it, so that a worker can go on as if it had asked itself."""
    ollama.stand_in.script("Because of Rayleigh.")

    reply = taken(await fired(trigger()))

    assert reply.text == "Because of Rayleigh."
    assert reply.eval_count > 0
    assert reply.total_duration > 0
    assert reply.created_at is not None


async def test_the_event_of_an_immediate_answer_is_delayed(ollama, ollama_conn, monkeypatch):
    """Airflow fails a task that comes back before its scheduler knows that it is gone."""
    monkeypatch.setattr("ollama_provider.triggers._MINIMUM_SECONDS", 3600)
    waiting = asyncio.create_task(fired(trigger()))
    await until(ollama, lambda s: asked(ollama) == 1 and not s.open_requests)

    done, _ = await asyncio.wait([waiting], timeout=0.2)

    assert not done
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_task_that_is_cleared_during_that_delay_ends_at_once(ollama, ollama_conn, monkeypatch):
    """In the order of Airflow 3.3: cancel, `on_kill`, `cleanup`."""
    monkeypatch.setattr("ollama_provider.triggers._MINIMUM_SECONDS", 3600)
    running = trigger()
    waiting = asyncio.create_task(anext(running.run()))
    await until(ollama, lambda s: asked(ollama) == 1 and not s.open_requests)
    await asyncio.wait([running._work])

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await running.on_kill()
    await running.cleanup()


async def test_the_event_that_airflow_logs_shows_no_answer(ollama, ollama_conn):
    """Airflow writes every event into the task's log."""
    ollama.stand_in.script("Because of Rayleigh.")

    (event,) = [event async for event in trigger().run()]

    assert "Rayleigh" not in repr(event)
    assert "sky" not in repr(event)
    assert "answered" in repr(event)


async def test_an_error_arrives_with_all_its_attributes(ollama, ollama_conn):
    """Class, host, model and what to do: the worker decides by the class whether to try again."""
    missing = ASK.model_copy(update={"model": "nonesuch"})

    with pytest.raises(OllamaError) as caught:
        taken(await fired(trigger(missing, overrides={"auto_pull": False})))

    assert caught.value.retryable is False
    assert caught.value.host == ollama.url
    assert caught.value.model == "nonesuch"
    assert not isinstance(caught.value, ModelNotFoundError)
    assert "auto_pull is off" in str(caught.value)


async def test_a_deleted_connection_is_reported(add_connection):
    """A new triggerer has to read it again."""
    with pytest.raises(InvalidRequestError, match="no connection 'ollama_default'"):
        taken(await fired(trigger()))


@pytest.mark.parametrize(
    "fault",
    [
        {"parcel": {"endpoint": "/api/nonsense", "body": "a secret"}},
        {"parcel": {}},
        {"parcel": None},
        {"folder": 7},
    ],
    ids=str,
)
async def test_an_unexpected_exception_is_an_event_and_its_traceback_is_logged(
    ollama, ollama_conn, caplog, capfd, monkeypatch, fault
):
    """An exception that is raised before Airflow has stored the deferral would leave the task deferred without end."""
    monkeypatch.setattr("ollama_provider.payloads.ANSWERS_LIMIT", 1)
    broken = trigger()
    vars(broken).update(fault)

    payload = await fired(broken)

    log = caplog.text + "".join(capfd.readouterr())
    assert payload["status"] == "failed"
    assert "Error in the trigger OllamaRequestTrigger" in payload["text"]
    assert "triggers.py" in log
    assert "secret" not in log + payload["text"]


async def test_the_event_of_an_exception_is_delayed_too(ollama_conn, monkeypatch):
    """Airflow fails a task that comes back too soon, and says nothing of why."""
    monkeypatch.setattr("ollama_provider.triggers._MINIMUM_SECONDS", 3600)
    broken = trigger()
    broken.parcel = {}
    waiting = asyncio.create_task(fired(broken))

    done, _ = await asyncio.wait([waiting], timeout=0.5)

    assert not done
    waiting.cancel()
    await asyncio.wait([waiting])


@pytest.mark.parametrize("kind", [ValueError, RecursionError, OverflowError, TypeError, TimeoutError, StopIteration])
def test_a_task_whose_trigger_had_a_fault_fails_with_words(ollama, ollama_conn, monkeypatch, kind):
    """And may be tried again, since what a server answers may be better then."""

    async def wait(_self):
        raise kind("what was answered")

    monkeypatch.setattr(OllamaRequestTrigger, "wait", wait)

    with pytest.raises(AirflowException, match="in the trigger OllamaRequestTrigger") as caught:
        complete(OllamaGenerateOperator(task_id="t", model="llama3.2", prompt="Why?", deferrable=True))

    assert not isinstance(caught.value, AirflowFailException)
    assert "what was answered" not in str(caught.value)


class TestKilled:
    """A triggerer that stops cancels its requests; the next one sends them again."""

    async def test_a_generation_ends_with_its_trigger_and_is_asked_again(self, ollama, ollama_conn):
        """Ollama has no jobs, so the second triggerer sends the request again."""
        ollama.stand_in.script((Answer("never told"), Stall(after=1)), "Rayleigh.")
        first = asyncio.create_task(fired(trigger()))
        await until(ollama, lambda s: s.open_requests)

        first.cancel()
        await idle(ollama)
        reply = taken(await fired(trigger()))

        assert reply.text == "Rayleigh."
        assert asked(ollama) == 2

    async def test_a_request_that_has_no_answer_yet_ends_too(self, ollama, ollama_conn):
        """In the queue, while the model loads, while it reads the prompt."""
        ollama.stand_in.script(Stall())
        waiting = asyncio.create_task(fired(trigger()))
        await until(ollama, lambda s: s.open_requests)

        waiting.cancel()

        await idle(ollama)

    @pytest.mark.ollama(pull_seconds=0.4)
    async def test_a_pull_continues_where_it_was(self, ollama, ollama_conn):
        """The server keeps what it has."""
        first = asyncio.create_task(fired(trigger(PULL)))
        await until(ollama, lambda s: s.open_requests)
        first.cancel()
        await idle(ollama)

        assert taken(await fired(trigger(PULL)), PULL).status == "success"
        assert asked(ollama, "/api/pull") == 2

    @pytest.mark.parametrize("end", ["cleanup", "on_kill"])
    async def test_each_way_to_end_a_trigger_cancels_the_request(self, ollama, ollama_conn, end):
        """Cleared, marked, timed out or shut down: the server stops computing."""
        ollama.stand_in.script(Stall())
        running = trigger()
        waiting = asyncio.create_task(anext(running.run()))
        await until(ollama, lambda s: s.open_requests)

        await getattr(running, end)()

        await idle(ollama)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def test_the_end_of_one_leaves_the_others_alone(self, ollama, ollama_conn):
        """They share a client."""
        gate = Gate()
        ollama.stand_in.script(Stall(until=gate), Stall(until=gate))
        first, second = (asyncio.create_task(fired(trigger())) for _ in range(2))
        await until(ollama, lambda s: len(s.open_requests) == 2)

        first.cancel()
        await until(ollama, lambda s: len(s.open_requests) == 1)
        gate.open()

        assert taken(await second).done
        assert first.cancelled()


async def test_a_server_that_is_restarted_meanwhile_is_asked_again(ollama, ollama_conn, no_waiting):
    """By the client, in the same wait, as in a worker."""
    ollama.stand_in.script((Answer("never told"), Stall(after=1)), "Rayleigh.")
    # Without waits in between, a few attempts would be over before the server is back.
    waiting = asyncio.create_task(fired(trigger(overrides={"max_attempts": 100_000})))
    await until(ollama, lambda s: s.open_requests)

    await asyncio.to_thread(ollama.stop)
    await asyncio.to_thread(ollama.start)

    assert taken(await waiting).text == "Rayleigh."


@pytest.mark.ollama(pull_seconds=0.2)
async def test_a_download_continues_after_a_restart_of_the_server(ollama, ollama_conn, no_waiting):
    """In the same wait, and so in the same try of the task."""
    ollama.stand_in.script(StuckDownload(every=0.01), path="pull")
    waiting = asyncio.create_task(fired(trigger(PULL, overrides={"max_attempts": 100_000})))
    await until(ollama, lambda s: s.open_requests)

    await asyncio.to_thread(ollama.stop)
    await asyncio.to_thread(ollama.start)

    assert taken(await waiting, PULL).status == "success"
    assert asked(ollama, "/api/pull") == 2


async def test_deleting_the_connection_does_not_disturb_a_request_in_flight(ollama, ollama_conn, monkeypatch):
    """It was read at the beginning."""
    gate = Gate()
    ollama.stand_in.script(Stall(until=gate))
    waiting = asyncio.create_task(fired(trigger()))
    await until(ollama, lambda s: s.open_requests)

    monkeypatch.delenv("AIRFLOW_CONN_OLLAMA_DEFAULT")
    gate.open()

    assert taken(await waiting).done


class TestDeadline:
    async def test_it_ends_the_request(self, ollama, ollama_conn):
        """Airflow does not count execution_timeout while a task is deferred."""
        ollama.stand_in.script(Stall())

        payload = await fired(trigger(deadline=time.time() + 0.2))

        assert payload["status"] == "timeout"
        await idle(ollama)

    def test_the_task_fails_as_it_would_have_in_a_worker(self, ollama, ollama_conn):
        """Under the name that execution_timeout has in Airflow, so its retries are used."""
        ollama.stand_in.script(Stall())

        with pytest.raises(AirflowTaskTimeout, match=r"execution_timeout \(0:00:00\.2"):
            complete(
                OllamaGenerateOperator(
                    task_id="t",
                    model="llama3.2",
                    prompt="Hi",
                    deferrable=True,
                    execution_timeout=timedelta(seconds=0.2),
                )
            )


class TestPull:
    async def test_its_progress_is_in_the_log(self, ollama, ollama_conn, caplog):
        """Percent and size, as in a worker."""
        pulling = trigger(PULL)
        caplog.set_level(logging.INFO)
        hook = pulling.hook()
        hook._log = logging.getLogger("hook")
        pulling.hook = lambda: hook

        taken(await fired(pulling), PULL)

        assert any("mistral" in record.getMessage() and "100 %" in record.getMessage() for record in caplog.records)

    async def test_no_byte_more_is_an_error_however_many_lines_come(self, ollama, ollama_conn):
        """A stalled pull keeps talking."""
        ollama.stand_in.script(StuckDownload(every=0.01), path="pull")

        with pytest.raises(OllamaError, match="stalled"):
            taken(await fired(trigger(PULL, overrides={"pull_stall_timeout": 0.2, "max_attempts": 1})), PULL)

        await idle(ollama)

    def test_a_failed_pull_says_why_in_the_servers_words(self, ollama, ollama_conn):
        """And takes no retry when the words say that none helps."""
        ollama.stand_in.script(Fail("pull model manifest: file does not exist"), path="pull")

        with pytest.raises(AirflowFailException, match="file does not exist"):
            complete(OllamaPullModelOperator(task_id="t", model="nonesuch", deferrable=True))

    def test_a_model_that_is_there_is_not_deferred_for(self, ollama, ollama_conn):
        """One request settles it."""
        try:
            result = OllamaPullModelOperator(task_id="t", model="llama3.2", deferrable=True).execute({})
        except TaskDeferred:
            pytest.fail("deferred")

        assert result["pulled"] is False
        assert asked(ollama, "/api/pull") == 0


class TestMany:
    @pytest.mark.ollama(models=[], registry=["llama3.2"], pull_seconds=0.2, parallel=50)
    async def test_two_hundred_that_miss_a_model_download_it_once(self, ollama, ollama_conn):
        """Mapped tasks on a new server."""
        payloads = await asyncio.gather(*(fired(trigger()) for _ in range(200)))

        assert all(taken(payload).done for payload in payloads)
        assert ollama.stand_in.downloads == {"llama3.2:latest": 1}
        assert asked(ollama, "/api/pull") == 1

    @pytest.mark.ollama(models=[], registry=["llama3.2"], pull_seconds=0.2, parallel=50)
    async def test_a_download_survives_the_task_that_began_it(self, ollama, ollama_conn):
        """Cleared while it pulled for all: another one takes over."""
        ollama.stand_in.script(StuckDownload(every=0.01), path="pull")
        first = asyncio.create_task(fired(trigger()))
        await until(ollama, lambda s: any(seen.path == "/api/pull" for seen in s.open_requests))
        others = [asyncio.create_task(fired(trigger())) for _ in range(19)]
        await until(ollama, lambda s: asked(ollama) == 20)

        first.cancel()

        assert all(taken(payload).done for payload in await asyncio.gather(*others))
        assert asked(ollama, "/api/pull") == 2

    @pytest.mark.ollama(parallel=50)
    async def test_they_share_one_client(self, ollama, ollama_conn):
        """One connection pool for each Airflow connection, not for each task; it is closed with the last trigger."""
        gate = Gate()
        ollama.stand_in.script(Stall(until=gate), always=True)
        waiting = [asyncio.create_task(fired(trigger())) for _ in range(30)]
        await until(ollama, lambda s: len(s.open_requests) == 30)
        clients = shared_clients._loops[asyncio.get_running_loop()].clients

        assert [shared.users for shared in clients] == [30]
        gate.open()
        assert all(taken(payload).done for payload in await asyncio.gather(*waiting))
        assert clients == []

    async def test_many_pulls_to_several_servers_wait_for_each_other_at_none(self, ollama_servers, ollama_servers_conn):
        """Each may take hours."""
        gate = Gate()
        for server in ollama_servers:
            server.stand_in.script(Stall(until=gate), path="pull", always=True)
        urls = [server.url for server in ollama_servers]
        waiting = [asyncio.create_task(fired(trigger(PULL, servers=urls))) for _ in range(20)]

        for server in ollama_servers:
            await until(server, lambda s: len(s.open_requests) == 20)
        gate.open()
        assert all(taken(payload, PULL).done for payload in await asyncio.gather(*waiting))


@pytest.mark.ollama(models=[Model("nomic-embed-text", ("embedding",))])
async def test_texts_go_in_pieces_and_come_back_in_order(ollama, ollama_conn, tmp_path):
    """Answers that are too large for Airflow's database go by file, which the worker removes."""
    request = EmbedRequest(model="nomic-embed-text", input=[f"text {n}" for n in range(70)], truncate=False)

    payload = await fired(trigger(request, folder=str(tmp_path)))

    assert len(json.dumps(payload)) < 10_000
    assert len(list(tmp_path.iterdir())) == 1
    with AnswerReader(payload["answers"]) as reader:
        replies = [reader.send(request) for _ in range(3)]
    assert [len(reply.embeddings) for reply in replies] == [32, 32, 6]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ollama(models=[Model("nomic-embed-text", ("embedding",))])
async def test_answers_that_will_not_be_read_leave_no_file(ollama, ollama_conn, tmp_path, monkeypatch):
    """The place may be the directory where the results of others are."""
    monkeypatch.setattr("ollama_provider.payloads.ANSWERS_LIMIT", 1)
    ollama.stand_in.script(Ordinary(), Stall())
    request = EmbedRequest(model="nomic-embed-text", input=["text"] * 70, truncate=False)
    waiting = asyncio.create_task(fired(trigger(request, folder=str(tmp_path))))
    await until(ollama, lambda s: asked(ollama, "/api/embed") == 2)
    assert len(list(tmp_path.iterdir())) == 1

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert list(tmp_path.iterdir()) == []
    await idle(ollama)
