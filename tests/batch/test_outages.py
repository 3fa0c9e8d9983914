"""An outage of any kind costs time and no row, and no server or proxy makes the batch wait beyond max_outage."""

import datetime as dt
import threading
import time

import pytest

from ollama_provider.api.errors import (
    AuthenticationError,
    EndpointNotFoundError,
    GatewayError,
    NotOllamaError,
    OllamaError,
    OverloadedError,
)
from ollama_provider.batch import FailurePolicy, StopSignal
from ollama_provider.testing import Respond

PAGE = "<html><head><title>Maintenance</title></head><body>Back soon</body></html>"
HTML = {"Content-Type": "text/html"}


def texts(count):
    return [f"text {number}" for number in range(count)]


def is_row(body):
    return bool(body.get("prompt"))


FAULTS = {
    "404 of a proxy": Respond(404, PAGE, headers=HTML),
    "404 of another server": Respond(404, "404 page not found"),
    "405": Respond(405, PAGE, headers=HTML),
    "a redirect to a page": Respond(302, "", headers={"Location": "https://status.example.com/"}),
    "200 with a page": Respond(200, PAGE, headers=HTML),
    "403 of a proxy": Respond(403, PAGE, headers=HTML),
    "the model is gone": Respond(404, {"error": "model 'llama3.2' not found"}),
    "502": Respond(502, PAGE, headers=HTML),
    "429": Respond(429, PAGE, headers=HTML),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_middle_of_a_run_is_an_outage(batch, ollama, fault):
    """It costs a pause, and every row is answered by its first attempt."""
    ollama.stand_in.script(fault, where=lambda body: body.get("prompt") == "text 5")

    summary = batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_attempts=1))

    assert (summary.complete, summary.ok, summary.failed) == (True, 20, 0)
    assert {row["attempts"] for row in batch.results} == {1}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (FAULTS["404 of a proxy"], NotOllamaError),
        (FAULTS["404 of another server"], EndpointNotFoundError),
        (FAULTS["a redirect to a page"], NotOllamaError),
        (FAULTS["200 with a page"], NotOllamaError),
        (FAULTS["403 of a proxy"], AuthenticationError),
    ],
)
class TestFaultsOfTheSetup:
    def test_at_the_beginning_they_end_the_run_at_once(self, batch, ollama, fault, kind):
        """No row was answered before."""
        ollama.stand_in.script(fault, where=is_row, always=True)

        with pytest.raises(kind):
            batch.run(texts(20), concurrency=1)

        assert len(batch.asked) == 1

    def test_after_max_outage_they_end_the_run_with_their_own_error(self, batch, ollama, fault, kind):
        """Five rows were answered, and none after that."""
        good = set(texts(5))
        ollama.stand_in.script(fault, where=lambda body: is_row(body) and body["prompt"] not in good, always=True)

        with pytest.raises(kind):
            batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_outage=0.5))

        assert batch.run(texts(5)).reused == 5


def test_a_text_that_a_proxy_refuses_fails_alone(batch, ollama):
    """A firewall may take one prompt for an attack."""
    ollama.stand_in.script(FAULTS["403 of a proxy"], where=lambda body: body.get("prompt") == "text 5", always=True)

    summary = batch.run(texts(30), concurrency=2)

    assert (summary.ok, summary.failed) == (29, 1)
    assert batch.failed[0]["error"]["class"] == "AuthenticationError"


class TestRetryAfter:
    @pytest.fixture(autouse=True)
    def an_hour(self, ollama):
        good = set(texts(5))
        hour = Respond(429, "", headers={"Retry-After": "3600"})
        ollama.stand_in.script(hour, where=lambda body: is_row(body) and body["prompt"] not in good, always=True)

    def test_it_is_limited_by_max_outage_and_the_log_says_how_long_the_pause_is(self, batch, caplog):
        """After max_outage there is one more request, and no second hour."""
        with pytest.raises(OverloadedError):
            batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_outage=2))

        assert "Server unavailable, pausing all requests for 2 s" in caplog.text

    def test_the_window_closes_during_a_pause(self, batch):
        """The run ends then, and not after the pause."""
        summary = batch.run(texts(20), concurrency=1, stop_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2))

        assert (summary.complete, summary.ok) == (False, 5)
        assert "window closed" in summary.reason

    @pytest.mark.parametrize("pace", [None, 0.01])
    def test_a_stop_signal_ends_a_pause(self, batch, ollama, pace):
        """Also the pause between two requests, with a pace of one request in a hundred minutes."""
        stop = StopSignal()
        helper = threading.Thread(
            target=lambda: (ollama.stand_in.wait_until(lambda _: batch.asked), time.sleep(0.3), stop.set("enough"))
        )
        helper.start()
        summary = batch.run(texts(20), concurrency=1, stop=stop, requests_per_minute=pace)
        helper.join()

        assert (summary.complete, summary.reason) == (False, "enough")
        assert summary.ok == (1 if pace else 5)


def test_a_probe_is_sent_before_a_row_that_the_server_failed_with(batch, ollama):
    """If nothing was answered since, loading the model tells a server that is down from a row that brings it down."""
    ollama.stand_in.script(FAULTS["502"], where=lambda body: body.get("prompt") == "text 3", times=2)

    summary = batch.run(texts(4), concurrency=1)

    assert (summary.ok, summary.failed) == (4, 0)
    kinds = [bool(seen.json.get("prompt")) for seen in ollama.stand_in.requests if seen.path == "/api/generate"]
    assert kinds == [False, True, True, True, True, False, True, False, True]


def test_an_outage_without_end_that_loads_the_model(batch, ollama):
    """The probe succeeds and all rows fail: no row fails for it, and the run ends with the error of the outage."""
    good = set(texts(5))
    ollama.stand_in.script(FAULTS["502"], where=lambda body: is_row(body) and body["prompt"] not in good, always=True)

    with pytest.raises(OllamaError) as raised:
        batch.run(texts(50), failures=FailurePolicy(max_outage=3))

    assert isinstance(raised.value, GatewayError)
    assert not (batch.directory / "failed.jsonl").exists()
