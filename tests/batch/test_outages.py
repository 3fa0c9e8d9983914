"""An outage in any clothes costs time and no row, and no number of the server's makes us wait beyond our patience."""

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


CLOTHES = {
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


@pytest.mark.parametrize("fault", CLOTHES.values(), ids=CLOTHES)
def test_what_was_right_a_moment_ago_is_waited_for(batch, ollama, fault):
    """In the middle of a run it costs a pause, and every row is answered by its first attempt."""
    ollama.stand_in.script(fault, where=lambda body: body.get("prompt") == "text 5")

    summary = batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_attempts=1))

    assert (summary.complete, summary.ok, summary.failed) == (True, 20, 0)
    assert {row["attempts"] for row in batch.results} == {1}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (CLOTHES["404 of a proxy"], NotOllamaError),
        (CLOTHES["404 of another server"], EndpointNotFoundError),
        (CLOTHES["a redirect to a page"], NotOllamaError),
        (CLOTHES["200 with a page"], NotOllamaError),
        (CLOTHES["403 of a proxy"], AuthenticationError),
    ],
)
class TestOfTheSetup:
    def test_at_the_beginning_it_ends_the_run_at_once(self, batch, ollama, fault, kind):
        """Nothing was answered before: it is the setup."""
        ollama.stand_in.script(fault, where=is_row, always=True)

        with pytest.raises(kind):
            batch.run(texts(20), concurrency=1)

        assert len(batch.asked) == 1

    def test_after_the_end_of_patience_it_ends_the_run_with_its_own_error(self, batch, ollama, fault, kind):
        """It was right for five rows, and then never again."""
        good = set(texts(5))
        ollama.stand_in.script(fault, where=lambda body: is_row(body) and body["prompt"] not in good, always=True)

        with pytest.raises(kind):
            batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_outage=0.5))

        assert batch.run(texts(5)).reused == 5


def test_a_text_that_a_proxy_refuses_fails_alone(batch, ollama):
    """A firewall that takes one prompt for an attack ends no night."""
    ollama.stand_in.script(CLOTHES["403 of a proxy"], where=lambda body: body.get("prompt") == "text 5", always=True)

    summary = batch.run(texts(30), concurrency=2)

    assert (summary.ok, summary.failed) == (29, 1)
    assert batch.failed[0]["error"]["class"] == "AuthenticationError"


class TestRetryAfter:
    @pytest.fixture(autouse=True)
    def an_hour(self, ollama):
        good = set(texts(5))
        hour = Respond(429, "", headers={"Retry-After": "3600"})
        ollama.stand_in.script(hour, where=lambda body: is_row(body) and body["prompt"] not in good, always=True)

    def test_it_is_bounded_by_our_own_patience_and_the_log_tells_the_wait(self, batch, caplog):
        """After max_outage there is one request more, and no second hour."""
        with pytest.raises(OverloadedError):
            batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_outage=2))

        assert "Server unavailable, pausing all requests for 2 s" in caplog.text

    def test_the_end_of_the_night_is_kept_while_waiting(self, batch):
        """The window closes in the middle of the pause."""
        summary = batch.run(texts(20), concurrency=1, stop_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2))

        assert (summary.complete, summary.ok) == (False, 5)
        assert "window closed" in summary.reason

    @pytest.mark.parametrize("pace", [None, 0.01])
    def test_so_is_a_signal_to_stop(self, batch, ollama, pace):
        """Also with a pace of one request in a hundred minutes."""
        stop = StopSignal()
        helper = threading.Thread(
            target=lambda: (ollama.stand_in.wait_until(lambda _: batch.asked), time.sleep(0.3), stop.set("enough"))
        )
        helper.start()
        summary = batch.run(texts(20), concurrency=1, stop=stop, requests_per_minute=pace)
        helper.join()

        assert (summary.complete, summary.reason) == (False, "enough")
        assert summary.ok == (1 if pace else 5)


def test_the_load_is_asked_for_before_a_row_that_the_server_failed_with(batch, ollama):
    """When nothing was answered since, it tells a server that is down from a row that brings it down."""
    ollama.stand_in.script(CLOTHES["502"], where=lambda body: body.get("prompt") == "text 3", times=2)

    summary = batch.run(texts(4), concurrency=1)

    assert (summary.ok, summary.failed) == (4, 0)
    kinds = [bool(seen.json.get("prompt")) for seen in ollama.stand_in.requests if seen.path == "/api/generate"]
    assert kinds == [False, True, True, True, True, False, True, False, True]


def test_an_outage_without_end_that_loads_the_model(batch, ollama):
    """All rows fail and the model can be loaded: rows are not failed for it, and the run ends with the outage."""
    good = set(texts(5))
    ollama.stand_in.script(CLOTHES["502"], where=lambda body: is_row(body) and body["prompt"] not in good, always=True)

    with pytest.raises(OllamaError) as raised:
        batch.run(texts(50), failures=FailurePolicy(max_outage=3))

    assert isinstance(raised.value, GatewayError)
    assert not (batch.directory / "failed.jsonl").exists()
