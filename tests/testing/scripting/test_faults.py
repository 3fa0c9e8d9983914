"""Scripted faults, as a client sees them through a real socket."""

import json
import threading

import httpx
import pytest

from ollama_provider.testing import (
    Answer,
    Crash,
    Cut,
    Fail,
    Gate,
    Insert,
    Pace,
    Respond,
    Server,
    Stall,
    StandIn,
    StuckDownload,
    Unfinished,
    serve,
)

WORDS = "one two three four five six"
ASK = {"model": "llama3.2", "prompt": "hello"}


def ask(ollama: Server, **changes: object) -> httpx.Response:
    return httpx.post(f"{ollama.url}/api/generate", json=ASK | changes, timeout=5)


def lines(response: httpx.Response) -> list[dict]:
    return [json.loads(line) for line in response.content.split(b"\n") if line]


def test_answers_are_given_in_their_order(ollama: Server) -> None:
    """Each request takes one reply. After them, requests get the usual answers."""
    ollama.stand_in.script("first", {"second": 2})

    said = [ask(ollama, stream=False).json()["response"] for _ in range(3)]

    assert said[:2] == ["first", '{"second":2}']
    assert "stand-in" in said[2]


def test_replies_go_to_the_requests_that_match(ollama: Server) -> None:
    """Path, model (in any form of its name) and a condition on the body select the requests."""
    ollama.stand_in.script("by model", model="LLAVA:latest")
    ollama.stand_in.script("by body", where=lambda body: "Rome" in body.get("prompt", ""))
    ollama.stand_in.script(Respond(418), path="tags")

    assert "stand-in" in ask(ollama, stream=False).json()["response"]
    assert ask(ollama, stream=False, prompt="Rome").json()["response"] == "by body"
    assert ask(ollama, stream=False, model="llava").json()["response"] == "by model"
    assert httpx.get(f"{ollama.url}/api/tags").status_code == 418


def test_counted_replies_go_before_those_with_always(ollama: Server) -> None:
    """A reply without `always` takes precedence over one with it, also if it was scripted later."""
    ollama.stand_in.script("rule", always=True)
    ollama.stand_in.script("exception", times=2)

    said = [ask(ollama, stream=False).json()["response"] for _ in range(4)]

    assert said == ["exception", "exception", "rule", "rule"]


def test_an_early_failure_is_a_status(ollama: Server) -> None:
    """An error before the first token has an HTTP status, also in a streamed request."""
    ollama.stand_in.script(Fail("it broke", status=503), times=2)

    for stream in (True, False):
        response = ask(ollama, stream=stream)

        assert response.status_code == 503
        assert response.json() == {"error": "it broke"}


@pytest.mark.ollama(version="0.12.5")
def test_an_early_failure_of_an_old_server_is_a_line(ollama: Server) -> None:
    """Before 0.12.6 the error was a line in a stream of status 200."""
    ollama.stand_in.script(Fail("it broke"))

    response = ask(ollama)

    assert response.status_code == 200
    assert lines(response) == [{"error": "it broke"}]


def test_a_late_failure_is_the_last_line(ollama: Server) -> None:
    """An error after the first line is the last line of the stream."""
    ollama.stand_in.script((WORDS, Fail("it broke", after=2)))

    found = lines(ask(ollama))

    assert [line.get("response") for line in found] == ["one", " two", None]
    assert found[-1] == {"error": "it broke"}


def test_a_failure_after_more_lines_than_there_are_still_comes(ollama: Server) -> None:
    """A scripted failure never sends the last line, which says that the request succeeded."""
    ollama.stand_in.script((WORDS, Fail("it broke", after=100)))

    found = lines(ask(ollama))

    assert len(found) == 7
    assert found[-1] == {"error": "it broke"}


@pytest.mark.parametrize(
    ("version", "path", "status", "where"),
    [
        ("0.12.0", "embed", 500, "embedding"),
        ("0.24.0", "embed", 400, "embedding"),
        ("0.24.0", "embeddings", 500, "embedding"),
        ("0.33.0", "embed", 400, "v1/embeddings"),
    ],
)
def test_a_process_that_dies_at_an_embedding(version: str, path: str, status: int, where: str) -> None:
    """Ollama reports Go's error about the connection to the runner, since 0.13.3 with status 400 for an embedding."""
    with serve(StandIn(version=version)) as server:
        server.stand_in.script(Crash(after=0), Crash())
        body = {"model": "nomic-embed-text", "input": "a", "prompt": "a"}
        died, dead = (httpx.post(f"{server.url}/api/{path}", json=body, timeout=5) for _ in range(2))

    assert (died.status_code, dead.status_code) == (status, status)
    assert died.json() == {"error": f'do embedding request: Post "http://127.0.0.1:40001/{where}": EOF'}
    assert "process no longer running" in dead.json()["error"]


OTHERS = "exceeds the available context size"


@pytest.mark.parametrize(
    ("version", "after", "begins", "quotes"),
    [
        ("0.24.0", None, "llama runner process no longer running: -1 ", False),
        ("0.24.0", 0, "model runner has unexpectedly stopped, ", False),
        ("0.24.0", 2, "an error was encountered while running the model: unexpected EOF", False),
        ("0.33.0", None, "llama-server process no longer running: unknown error: task id", True),
        ("0.33.0", 0, "an error was encountered while running the model: error: task id", True),
        ("0.33.0", 2, "an error was encountered while running the model: error: task id", True),
    ],
)
@pytest.mark.parametrize("path", ["generate", "chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_process_that_dies(
    version: str, after: int | None, begins: str, quotes: bool, path: str, stream: bool
) -> None:
    """Since 0.30 the error text ends with log lines of that process, which may be about other requests."""
    body = {
        "model": "llama3.2",
        "prompt": "a b c",
        "messages": [{"role": "user", "content": "a b c"}],
        "stream": stream,
    }
    with serve(StandIn(version=version)) as server:
        server.stand_in.script((WORDS, Crash(after=after)))
        response = httpx.post(f"{server.url}/api/{path}", json=body, timeout=5)

    *answered, last = lines(response)

    assert (response.status_code, len(answered)) == ((200, 2) if stream and after else (500, 0))
    assert last["error"].startswith(begins)
    assert (OTHERS in last["error"]) is quotes


def test_a_failing_pull_says_so_in_its_stream(ollama: Server) -> None:
    """The first line of a pull is always sent; without a stream the failure is status 500."""
    ollama.stand_in.script(Fail("max retries exceeded: unexpected EOF"), path="pull", times=2)

    streamed = httpx.post(f"{ollama.url}/api/pull", json={"model": "mistral"})
    whole = httpx.post(f"{ollama.url}/api/pull", json={"model": "mistral", "stream": False})

    assert lines(streamed) == [{"status": "pulling manifest"}, {"error": "max retries exceeded: unexpected EOF"}]
    assert (whole.status_code, whole.json()) == (500, {"error": "max retries exceeded: unexpected EOF"})


def test_something_else_answers(ollama: Server) -> None:
    """A proxy's page comes with its own type and headers."""
    ollama.stand_in.script(Respond(502, "<html>Bad gateway</html>", headers={"Retry-After": "7"}))

    response = ask(ollama)

    assert response.status_code == 502
    assert response.headers["Content-Type"] == "text/html"
    assert response.headers["Retry-After"] == "7"


@pytest.mark.parametrize("stream", [True, False])
def test_a_cut_before_the_first_byte(ollama: Server, stream: bool) -> None:
    """The client sees a connection that was closed without an answer."""
    ollama.stand_in.script(Cut())

    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        ask(ollama, stream=stream)


@pytest.mark.parametrize("after", [0, 2])
def test_a_cut_in_the_stream(ollama: Server, after: int) -> None:
    """The lines before the cut arrive, then the chunked body is incomplete."""
    ollama.stand_in.script((WORDS, Cut(after=after)))
    got = []

    with (
        httpx.stream("POST", f"{ollama.url}/api/generate", json=ASK) as response,
        pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"),
    ):
        got.extend(response.iter_raw())

    assert b"".join(got).count(b"\n") == after


def test_a_reset_in_the_stream(ollama: Server) -> None:
    """RST is another error than FIN."""
    ollama.stand_in.script((WORDS, Cut(after=1, reset=True)))

    with pytest.raises(httpx.ReadError):
        ask(ollama)


def test_a_stream_that_ends_without_done(ollama: Server) -> None:
    """The stream ends without `done`. A reply that is not streamed has `done: false` and no metrics."""
    ollama.stand_in.script((WORDS, Unfinished(after=3)), (WORDS, Unfinished()), Unfinished())

    assert [line["done"] for line in lines(ask(ollama))] == [False] * 3
    assert [line["done"] for line in lines(ask(ollama))] == [False] * 6
    assert set(ask(ollama, stream=False).json()) == {"model", "created_at", "response", "done"}


@pytest.mark.parametrize("data", [b'{"broken\n', b"\n", '{"response":"a\u2028b\u0085c","done":false}\n'.encode()])
def test_raw_bytes_between_two_lines(ollama: Server, data: bytes) -> None:
    """The inserted bytes arrive unchanged, and the stream continues."""
    ollama.stand_in.script((WORDS, Insert(data, after=1)))

    body = ask(ollama).content

    assert body.split(b"\n", 1)[1].startswith(data)
    assert b'"done":true' in body


@pytest.mark.parametrize("after", [None, 2])
def test_a_stall_lasts_until_the_client_gives_up(ollama: Server, after: int | None) -> None:
    """No more bytes arrive. When the client disconnects, the stand-in returns the slot."""
    ollama.stand_in.script((WORDS, Stall(after=after)))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{ollama.url}/api/generate", json=ASK, timeout=0.05)
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    assert ask(ollama).status_code == 200


def test_a_stall_ends_when_its_gate_opens(ollama: Server) -> None:
    """A test holds a request until it opens the gate."""
    gate = Gate()
    ollama.stand_in.script((WORDS, Stall(until=gate)))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(ollama)))
    thread.start()
    ollama.stand_in.wait_until(lambda stand_in: len(stand_in.open_requests) == 1)

    assert (ollama.stand_in.open_requests[0].path, ollama.stand_in.open_requests[0].model) == (
        "/api/generate",
        "llama3.2",
    )
    assert not answers

    gate.open()
    thread.join()

    assert answers[0].status_code == 200


def test_a_paced_answer_is_measured(ollama: Server) -> None:
    """The durations in the reply contain the scripted delays, in nanoseconds."""
    ollama.stand_in.script((Answer("a b"), Pace(load=0.02, first_token=0.03, between_tokens=0.01)))

    reply = ask(ollama, stream=False).json()

    assert reply["load_duration"] >= 20e6
    assert reply["prompt_eval_duration"] >= 30e6
    assert reply["eval_duration"] >= 20e6
    assert reply["total_duration"] >= 70e6


def test_a_stuck_download_repeats_its_progress(ollama: Server) -> None:
    """The pull keeps sending lines, but `completed` does not change."""
    ollama.stand_in.script(StuckDownload(after=3, every=0.001), path="pull")
    seen = []

    with httpx.stream("POST", f"{ollama.url}/api/pull", json={"model": "mistral"}) as response:
        for line in response.iter_lines():
            seen.append(json.loads(line))
            if len(seen) == 10:
                break

    assert seen[0] == {"status": "pulling manifest"}
    assert 0 < seen[2]["completed"] < seen[2]["total"]
    assert all(line == seen[2] for line in seen[3:])


def test_a_server_that_is_down_for_a_while(ollama: Server) -> None:
    """After `stop` connections are refused. After `start` it answers on the same port, and no model is loaded."""
    ask(ollama)
    url = ollama.url
    ollama.stop()
    with pytest.raises(httpx.ConnectError):
        ask(ollama)

    ollama.start()

    assert ollama.url == url
    assert httpx.get(f"{url}/api/ps").json() == {"models": []}
    assert ask(ollama).status_code == 200


def test_a_server_that_stops_in_the_middle(ollama: Server) -> None:
    """The connections of open requests close at once, also of those that wait."""
    ollama.stand_in.script((WORDS, Stall(after=1)))
    failures = []

    def client() -> None:
        try:
            ask(ollama)
        except httpx.TransportError as error:
            failures.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    ollama.stand_in.wait_until(lambda stand_in: len(stand_in.open_requests) == 1)
    ollama.stop()
    thread.join(5)

    assert len(failures) == 1
    assert ollama.stand_in.open_requests == []


def test_a_script_without_a_reply_is_refused(ollama: Server) -> None:
    """`script` raises an error with the reason."""
    with pytest.raises(ValueError, match="needs a reply"):
        ollama.stand_in.script()
    with pytest.raises(ValueError, match="exactly one"):
        ollama.stand_in.script("a", "b", always=True)
