"""Bad input and faults, through real HTTP: what happens, as which error, and what its text says."""

import contextlib
import socket
import threading

import pytest

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import AttemptFailed, CallEnded, PullMoved
from ollama_provider.api.schemas import (
    ChatRequest,
    DeleteRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.testing import Cut, Fail, Gate, Insert, Pace, Respond, Stall, StuckDownload, Unfinished
from tests.sockets import listening

SECRET = "my secret diary"
GENERATE = GenerateRequest(model="llama3.2", prompt=SECRET)
HTML = "<html><head><title>Nothing here</title></head><body>nginx</body></html>"

#: A stall is noticed soon, and what is not stalled is given time.
SOON = {"first_token": 0.5, "idle": 0.5}


@pytest.fixture
def free_port():
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def something_that_says(data: bytes):
    """A server that is no HTTP server: it reads a request, says its piece and hangs up."""

    def serve_one(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)

    return listening(serve_one)


def failure(on, request=GENERATE, **settings) -> OllamaError:
    """Send a request that must fail; return how, after a look at what no error may say."""
    with pytest.raises(OllamaError) as raised:
        on.send(request, **{"max_attempts": 1, **settings})

    error = raised.value
    assert SECRET not in str(error)
    assert error.host == settings["base_url"]
    assert settings["base_url"] in str(error)
    assert error.model == getattr(request, "model", None)
    assert error.__cause__ is None
    return error


# No server, or none of Ollama's


def test_the_server_is_down(on, free_port):
    """Nobody listens: the error names the host and asks whether the server runs."""
    error = failure(on, base_url=f"http://127.0.0.1:{free_port}")

    assert type(error) is errors.UnreachableError
    assert "connection refused" in str(error)
    assert "Is the server running" in str(error)


def test_the_server_is_down_under_a_name_with_two_addresses(on, free_port):
    """`localhost` may be tried as IPv6 and as IPv4; refused is refused."""
    error = failure(on, base_url=f"http://localhost:{free_port}")

    assert type(error) is errors.UnreachableError
    assert "refused" in str(error)


def test_there_is_no_such_host(on):
    """A name that does not resolve is told from a server that is down."""
    error = failure(on, base_url="http://no-such-host.invalid:11434")

    assert type(error) is errors.UnreachableError
    assert "no such host" in str(error)


@pytest.mark.parametrize("greeting", [b"220 mail ESMTP\r\n\r\n", b"\x00\x01\x02\x03\r\n\r\n"])
def test_the_port_speaks_something_else(on, greeting):
    """What answers is no HTTP server."""
    with something_that_says(greeting) as url:
        error = failure(on, base_url=url)

    assert type(error) is errors.NotOllamaError
    assert "does not speak HTTP" in str(error)


def test_the_port_speaks_a_little_of_something_else(on):
    """A greeting too short to be told from the beginning of an answer: the error asks for host and port as well."""
    with something_that_says(b"SSH-2.0-OpenSSH_9.6\r\n") as url:
        error = failure(on, base_url=url)

    assert isinstance(error, errors.NotOllamaError | errors.UnreachableError)
    assert "host" in error.advice
    assert "port" in error.advice


def test_a_server_that_hangs_up(on):
    """A connection that is closed without a byte of an answer may be a server that starts again."""
    with something_that_says(b"") as url:
        error = failure(on, base_url=url)

    assert type(error) is errors.ConnectionBrokenError
    assert error.retryable
    assert "Did the server end or restart?" in str(error)


def test_another_program_answers(on):
    """HTTP with a page is not Ollama, though its status is 200."""
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>Hi</html>"
    with something_that_says(page) as url:
        error = failure(on, VersionRequest(), base_url=url)

    assert type(error) is errors.NotOllamaError
    assert "text/html" in str(error)


@pytest.mark.parametrize("request_", [GENERATE, VersionRequest(), TagsRequest()], ids=lambda request: request.path)
def test_https_where_the_server_speaks_http(on, ollama, request_):
    """The error says what to check: http or https."""
    error = failure(on, request_, base_url=ollama.url.replace("http:", "https:"))

    assert type(error) is errors.TLSError
    assert "http or https" in str(error)


@pytest.mark.parametrize(
    ("turn", "kind", "says"),
    [
        (Respond(401, HTML), errors.AuthenticationError, "login and password"),
        (Respond(403, HTML), errors.AuthenticationError, "403"),
        (Respond(403), errors.AuthenticationError, "Host header"),
        (Respond(404, HTML), errors.NotOllamaError, "'Nothing here'"),
        (Respond(404, "404 page not found"), errors.EndpointNotFoundError, "base path"),
        (Respond(405, "405 method not allowed"), errors.EndpointNotFoundError, "405"),
        (Respond(413, HTML), errors.BadRequestError, "send less"),
        (Respond(502, HTML), errors.GatewayError, "502"),
        (Respond(504), errors.GatewayError, "504"),
        (Respond(301, headers={"Location": "https://sso.example.com/?t=x"}), errors.NotOllamaError, "sso.example.com"),
        (Respond(307, headers={"Location": "/api/generate"}), errors.NotOllamaError, "redirect"),
        (Respond(200, HTML), errors.NotOllamaError, "not JSON"),
        (Respond(200, b'{"some": "json"}', "application/json"), errors.IncompleteReplyError, "last object"),
    ],
    ids=lambda value: f"{value.status} {str(value.body)[:12]}" if isinstance(value, Respond) else "",
)
def test_a_proxy_answers(on, ollama, turn, kind, says):
    """Statuses and pages of what stands between us and Ollama are told apart."""
    ollama.stand_in.script(turn)

    error = failure(on, base_url=ollama.url)

    assert type(error) is kind
    assert says in str(error)
    assert error.status == (turn.status if turn.status != 200 else None)


def test_credentials_do_not_follow_a_redirect(on, ollama):
    """A redirect is an error, and what it points to is never asked."""
    ollama.stand_in.script(Respond(307, headers={"Location": f"{ollama.url}/api/tags"}))

    failure(on, base_url=ollama.url, password="token")

    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/generate"]


def test_a_wrong_base_path(on, ollama):
    """Ollama answers 404 to a path it does not know; that is no missing model."""
    error = failure(on, base_url=f"{ollama.url}/ollama")

    assert type(error) is errors.EndpointNotFoundError
    assert "base path" in str(error)
    assert len(ollama.stand_in.requests) == 1


# Once, then fine


@pytest.mark.parametrize(
    "turn",
    [
        Fail("server busy, please try again.  maximum pending requests exceeded", status=503),
        Fail("llama runner process has terminated: signal: killed"),
        Fail("model requires more system memory (35.8 GiB) than is available (22.4 GiB)"),
        Fail("an error was encountered while running the model: unexpected EOF", after=1),
        Respond(503, HTML, headers={"Retry-After": "0"}),
        Respond(502, HTML),
        Cut(),
        Cut(reset=True),
        Cut(after=0),
        Cut(after=1),
        Cut(after=1, reset=True),
        Unfinished(),
        Unfinished(after=0),
        Insert(b"{broken\n", after=1),
        Insert(b"\xff\xfe\n", after=1),
    ],
    ids=str,
)
def test_what_may_get_better_is_tried_again(on, ollama, turn):
    """A fault that passes costs an attempt: the answer is whole, and no piece of the first try is in it."""
    ollama.stand_in.script(("One two three.", turn), "One two three.")

    (reply,) = on.send(GENERATE, base_url=ollama.url)

    assert reply.text == "One two three."
    assert [type(event) for event in on.events] == [AttemptFailed, CallEnded]
    assert on.events[0].attempt == 1
    assert on.events[0].error.retryable
    assert len(ollama.stand_in.requests) == 2


def test_attempts_come_to_an_end(on, ollama):
    """After the last attempt the last error comes out, and each one before was told."""
    ollama.stand_in.script(Respond(503, HTML), times=3)

    error = failure(on, base_url=ollama.url, max_attempts=3)

    assert type(error) is errors.OverloadedError
    assert [event.attempt for event in on.events[:-1]] == [1, 2]
    assert on.events[-1].error is errors.OverloadedError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('option "temperature" must be of type float32', errors.BadRequestError),
        ("invalid JSON schema in format", errors.BadRequestError),
        ("unknown model architecture: 'x'", errors.BrokenModelError),
    ],
)
def test_a_500_that_is_hopeless_is_sent_once(on, ollama, text, kind):
    """The status alone would look like a passing fault."""
    ollama.stand_in.script(Fail(text))

    error = failure(on, base_url=ollama.url, max_attempts=4)

    assert type(error) is kind
    assert len(ollama.stand_in.requests) == 1


def test_what_must_not_be_repeated_is_sent_once(on, ollama):
    """A second delete would answer 404 to a delete that worked."""
    ollama.stand_in.script(Cut(), path="delete")

    failure(on, DeleteRequest(model="llama3.2"), base_url=ollama.url, max_attempts=4)

    assert len(ollama.stand_in.requests) == 1


@pytest.mark.parametrize(
    "turn", [Cut(after=1), Unfinished(after=1), Insert(b"{broken\n", after=1), Fail("boom", after=1)], ids=str
)
def test_a_stream_is_never_begun_again_after_its_first_part(on, ollama, turn):
    """Who has seen a part must not see it twice: the fault comes out of the iteration."""
    ollama.stand_in.script(("One two three.", turn))

    with pytest.raises(OllamaError):
        on.stream(GENERATE, base_url=ollama.url)

    assert len(ollama.stand_in.requests) == 1


def test_a_stream_may_be_begun_again_before_its_first_part(on, ollama):
    """As long as nobody has seen anything, a stream is tried again like any request."""
    ollama.stand_in.script(Cut(), Respond(503), "One two three.")

    parts = on.stream(GENERATE, base_url=ollama.url)

    assert "".join(part.text for part in parts) == "One two three."
    assert len(ollama.stand_in.requests) == 3


# Texts


@pytest.mark.parametrize("text", ["next\u0085line", "line\u2028separator", "para\u2029graph", "tab\tand\rreturn"])
def test_odd_line_ends_stay_in_the_answer(on, ollama, text):
    """Only a line feed ends a line of the stream."""
    ollama.stand_in.script(text)

    (reply,) = on.send(GENERATE, base_url=ollama.url)

    assert reply.text == text


def test_raw_separators_of_another_encoder(on, ollama):
    """A proxy or an old server may send U+2028 unescaped."""
    line = '{"model":"llama3.2","response":"a\u2028b\u0085c","done":false}\n'.encode()
    ollama.stand_in.script(("", Insert(line)))

    (reply,) = on.send(GENERATE, base_url=ollama.url)

    assert reply.text == "a\u2028b\u0085c"


# Silence


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        (Stall(), errors.FirstTokenTimeoutError),
        (("One two three.", Stall(after=0)), errors.FirstTokenTimeoutError),
        (("One two three.", Stall(after=2)), errors.IdleTimeoutError),
    ],
    ids=["before the headers", "before the first token", "between tokens"],
)
def test_silence(on, ollama, turn, kind):
    """A stall is noticed before the first token and between tokens, each by its own timeout."""
    ollama.stand_in.script(turn)
    other = {"idle": 60} if kind is errors.FirstTokenTimeoutError else {"first_token": 60}

    error = failure(on, base_url=ollama.url, timeouts={**SOON, **other})

    assert type(error) is kind
    assert "0.5 s" in str(error)
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_an_answer_that_comes_too_slowly(on, ollama):
    """Tokens keep coming, so nothing stalls; total_timeout ends it all the same."""
    ollama.stand_in.script(("word " * 1000, Pace(between_tokens=0.01)))

    error = failure(on, base_url=ollama.url, timeouts={"total": 0.2})

    assert type(error) is errors.TotalTimeoutError
    assert "num_predict" in str(error)
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_total_timeout_ends_a_wait_for_the_first_token(on, ollama):
    """It is the bound of the whole attempt, whatever the attempt waits for."""
    ollama.stand_in.script(Stall())

    assert type(failure(on, base_url=ollama.url, timeouts={"total": 0.5})) is errors.TotalTimeoutError


def test_a_stream_that_stalls(on, ollama):
    """The reader of a stream is told, too, after the parts that came."""
    ollama.stand_in.script(("One two three.", Stall(after=2)))

    with pytest.raises(errors.IdleTimeoutError):
        on.stream(GENERATE, base_url=ollama.url, timeouts=SOON)


def test_a_connection_that_is_never_made(on):
    """A full backlog drops the attempt to connect: connect_timeout ends it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = server.getsockname()
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)

        error = failure(on, base_url=f"http://127.0.0.1:{address[1]}", timeouts={"connect": 0.1})

    assert type(error) is errors.ConnectTimeoutError
    assert "connect_timeout" in str(error)


# A missing model


def test_a_missing_model_is_pulled_once(on, ollama):
    """404 of a model, a pull with progress, and the same request again."""
    (reply,) = on.send(GenerateRequest(model="mistral", prompt="hi"), base_url=ollama.url)

    assert reply.done
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/generate", "/api/pull", "/api/generate"]
    assert any(isinstance(event, PullMoved) and event.status == "success" for event in on.events)


@pytest.mark.parametrize(
    "request_",
    [ChatRequest(model="mistral", messages="hi"), EmbedRequest(model="all-minilm", input="hi")],
    ids=["chat", "embed"],
)
def test_every_inference_pulls(on, ollama, request_):
    """Both quotes that servers put around the name are understood."""
    on.send(request_, base_url=ollama.url)

    assert [seen.path for seen in ollama.stand_in.requests] == [request_.path, "/api/pull", request_.path]


@pytest.mark.parametrize(
    "request_", [ShowRequest(model="mistral"), DeleteRequest(model="mistral")], ids=["show", "delete"]
)
def test_looking_does_not_pull(on, ollama, request_):
    """Only what needs the model brings it."""
    error = failure(on, request_, base_url=ollama.url)

    assert type(error) is errors.ModelNotFoundError
    assert len(ollama.stand_in.requests) == 1


def test_auto_pull_is_off(on, ollama):
    """The error says how to allow it."""
    error = failure(on, GenerateRequest(model="mistral"), base_url=ollama.url, auto_pull=False)

    assert type(error) is errors.PullNotAllowedError
    assert "auto_pull=True" in str(error)
    assert len(ollama.stand_in.requests) == 1


def test_another_registry_needs_leave(on, ollama):
    """A name from data must not choose whom the server talks to."""
    ollama.stand_in.offer("hf.co/theirs/model")
    request = GenerateRequest(model="hf.co/theirs/model")

    error = failure(on, request, base_url=ollama.url)
    (reply,) = on.send(request, base_url=ollama.url, pull_allow=["hf.co/*"])

    assert type(error) is errors.PullNotAllowedError
    assert "pull_allow" in str(error)
    assert reply.done


def test_a_pull_that_fails_says_why(on, ollama):
    """The server's own words come out."""
    error = failure(on, GenerateRequest(model="no-such-model"), base_url=ollama.url, max_attempts=4)

    assert type(error) is errors.PullFailedError
    assert "file does not exist" in str(error)
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/generate", "/api/pull"]


def test_a_pull_that_failed_for_the_moment_goes_on(on, ollama):
    """A new pull resumes; the registry's hiccup costs an attempt."""
    ollama.stand_in.script(Fail("max retries exceeded: unexpected EOF"), path="pull")

    (reply,) = on.send(GenerateRequest(model="mistral"), base_url=ollama.url)

    assert reply.done
    assert [seen.path for seen in ollama.stand_in.requests] == [
        "/api/generate",
        "/api/pull",
        "/api/pull",
        "/api/generate",
    ]


def test_a_pull_that_stalls(on, ollama):
    """Lines keep coming and bytes do not: the pull is given up, and the error says at what."""
    ollama.stand_in.script(StuckDownload(after=2), path="pull")

    error = failure(on, GenerateRequest(model="mistral"), base_url=ollama.url, timeouts={"pull_stall": 0.3})

    assert type(error) is errors.PullStalledError
    assert "no byte more" in str(error)
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_a_pull_that_falls_silent(on, ollama):
    """No line at all is a stall as well, and no matter for idle_timeout."""
    ollama.stand_in.script(Stall(after=2), path="pull")

    error = failure(on, PullRequest(model="mistral"), base_url=ollama.url, timeouts={"pull_stall": 0.2})

    assert type(error) is errors.PullStalledError


def test_a_model_that_is_missing_still_is_an_error(on, ollama):
    """After a pull the request is sent once more, and not for ever."""
    ollama.stand_in.script(Fail("model 'llama3.2' not found", status=404), times=2)

    error = failure(on, base_url=ollama.url, max_attempts=4)

    assert type(error) is errors.ModelNotFoundError
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/generate", "/api/pull", "/api/generate"]


def test_a_listed_model_whose_file_is_gone_is_repaired(on, ollama):
    """Its 404 is another one's, and a pull is what mends it."""
    ollama.stand_in.script(Fail('model "llama3.2" not found, try pulling it first', status=404), "fine")

    (reply,) = on.send(GENERATE, base_url=ollama.url)

    assert reply.text == "fine"


def test_a_proxys_404_is_no_missing_model(on, ollama):
    """Nothing is pulled because of a page."""
    ollama.stand_in.script(Respond(404, HTML))

    failure(on, base_url=ollama.url)

    assert len(ollama.stand_in.requests) == 1


def test_a_stream_pulls_as_well(on, ollama):
    """A missing model is no part of a stream that anybody has seen."""
    parts = on.stream(GenerateRequest(model="mistral", prompt="hi"), base_url=ollama.url)

    assert parts[-1].done


# Old servers


@pytest.mark.ollama(version="0.1.30")
def test_an_old_server_without_embed(on, ollama):
    """Before 0.2.6 there is /api/embeddings alone: the same vectors, of length 1, text by text, and remembered."""
    request = EmbedRequest(model="nomic-embed-text", input=["one", "two"])

    first, second = on.send(request, request, base_url=ollama.url)

    assert first.embeddings == second.embeddings
    assert len(first.embeddings) == 2
    assert sum(x * x for x in first.embeddings[0]) == pytest.approx(1)
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/embed"] + ["/api/embeddings"] * 4


@pytest.mark.ollama(version="0.1.30")
def test_an_old_server_loads_an_embedding_model(on, ollama):
    """A request without a text has no vectors, and is a load all the same."""
    (reply,) = on.send(EmbedRequest(model="nomic-embed-text", input=[]), base_url=ollama.url)

    assert reply.embeddings == []
    assert ollama.stand_in.loads == ["nomic-embed-text:latest"]


@pytest.mark.parametrize("texts", ["a", []])
def test_without_either_way_to_embed_it_is_no_ollama(on, ollama, texts):
    """A wrong base path is no old server."""
    error = failure(on, EmbedRequest(model="m", input=texts), base_url=f"{ollama.url}/wrong")

    assert type(error) is errors.EndpointNotFoundError
    assert "/api/embed " in f"{error.what} "


# Requests that are never sent


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"options": {"num_ctxt": 1}}, "did you mean 'num_ctx'"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"num_ctx": "4096.5"}}, "options.num_ctx"),
        ({"format": "yaml"}, "JSON schema"),
        ({"format": "{broken"}, "not valid JSON"),
        ({"images": ["/etc/passwd!"]}, "never a path"),
        ({"keep_alive": "1d"}, "keep_alive"),
        ({"think": "hard"}, "think"),
        ({"modle": "x"}, "did you mean 'model'"),
        ({"model": ""}, "model"),
    ],
)
def test_a_wrong_request_is_never_sent(fields, says):
    """A misspelt or mistyped field is an error that names it, and no value of another."""
    with pytest.raises(errors.InvalidRequestError, match=says) as raised:
        GenerateRequest(**{"model": "m", "prompt": SECRET, **fields})

    assert SECRET not in str(raised.value)


def test_numbers_in_strings_are_numbers(on, ollama):
    """Templates give strings; they reach the server as what they stand for."""
    request = GenerateRequest(
        model="llama3.2", options={"temperature": "0.2", "num_ctx": "2048", "stop": "END", "use_mmap": "true"}
    )

    on.send(request, base_url=ollama.url)

    assert ollama.stand_in.requests[0].json["options"] == {
        "temperature": 0.2,
        "num_ctx": 2048,
        "stop": ["END"],
        "use_mmap": True,
    }


def test_an_empty_prompt_loads_the_model(on, ollama):
    """It is a request with a meaning of its own, and no error."""
    (reply,) = on.send(GenerateRequest(model="llama3.2"), base_url=ollama.url)

    assert (reply.done_reason, reply.text) == ("load", "")


def test_a_prompt_over_the_context(on, ollama):
    """`truncate=False` makes it an error that says what to raise."""
    request = GenerateRequest(model="llama3.2", prompt="word " * 1000, truncate=False, options={"num_ctx": 64})

    error = failure(on, request, base_url=ollama.url)

    assert type(error) is errors.ContextLengthError
    assert "options.num_ctx" in str(error)


def test_an_answer_that_is_cut(on, ollama):
    """An answer that ended at num_predict says so."""
    request = GenerateRequest(model="llama3.2", prompt="hi", options={"num_predict": 2})

    (reply,) = on.send(request, base_url=ollama.url)

    assert reply.answer_cut
    assert reply.done_reason == "length"


def test_gates_of_the_stand_in_let_a_slow_answer_finish(on, ollama):
    """Silence within the timeouts is no fault."""
    gate = Gate()
    ollama.stand_in.script(("One two three.", Stall(until=gate)))
    threading.Timer(0.05, gate.open).start()

    (reply,) = on.send(GENERATE, base_url=ollama.url)

    assert reply.text == "One two three."
    assert not any(isinstance(event, AttemptFailed) for event in on.events)
