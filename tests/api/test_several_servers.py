"""One client, several servers, real HTTP: where a request goes, and where it goes on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from ollama_provider.api import errors
from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.events import AttemptFailed, CallEnded, ServerFailed
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
from ollama_provider.api.settings import Settings
from ollama_provider.testing import Crash, Cut, Fail, Gate, Respond, Stall

GENERATE = GenerateRequest(model="llama3.2", prompt="hi")


def urls(servers) -> dict[str, object]:
    first, *others = [server.url for server in servers]
    return {"base_url": first, "other_urls": others}


def asked(server, *, besides: tuple[str, ...] = ("/api/ps",)) -> list[str]:
    """The paths that were asked for, without those that only look for the model."""
    return [seen.path for seen in server.stand_in.requests if seen.path not in besides]


def load(server, model: str = "llama3.2") -> None:
    with Client(Settings(base_url=server.url)) as client:
        client.send(GenerateRequest(model=model))


def test_the_server_that_has_the_model_in_memory_answers(on, ollama_servers):
    """It is found without a hint, and named by the reply."""
    load(ollama_servers[2])

    (reply,) = on.send(GENERATE, **urls(ollama_servers))

    assert reply.server == ollama_servers[2].url
    assert asked(ollama_servers[0]) == asked(ollama_servers[1]) == []


@pytest.mark.parametrize(
    "request_",
    [GENERATE, ChatRequest(model="llama3.2", messages="hi"), EmbedRequest(model="nomic-embed-text", input=["hi"])],
)
def test_the_servers_are_asked_once_for_what_they_have_in_memory(on, ollama_servers, request_):
    """From then on the one that answered is known to have it."""
    replies = on.send(*[request_] * 5, **urls(ollama_servers))

    assert {reply.server for reply in replies} == {ollama_servers[0].url}
    assert [asked(server, besides=()).count("/api/ps") for server in ollama_servers] == [1, 1, 1]


def test_one_server_is_never_asked_for_what_it_has_in_memory(on, ollama):
    """There is nothing to choose."""
    on.send(GENERATE, TagsRequest(), base_url=ollama.url)

    assert asked(ollama, besides=()) == ["/api/generate", "/api/tags"]


def test_requests_at_the_same_time_are_spread(ollama_servers):
    """As long as no server has the model; each has as many as the others."""
    gate = Gate()
    for server in ollama_servers:
        server.stand_in.script(Stall(until=gate), always=True)

    with Client(Settings(**urls(ollama_servers))) as client, ThreadPoolExecutor(6) as pool:
        sending = []
        for number in range(1, 7):
            sending.append(pool.submit(client.send, GENERATE))
            while sum(len(server.stand_in.open_requests) for server in ollama_servers) < number:
                pass
        assert [len(server.stand_in.open_requests) for server in ollama_servers] == [2, 2, 2]
        gate.open()
        assert all(each.result().done for each in sending)


async def test_coroutines_ask_once_together(ollama_servers):
    """However many begin at the same time."""
    async with AsyncClient(Settings(**urls(ollama_servers))) as client:
        replies = await asyncio.gather(*[client.send(GENERATE) for _ in range(30)])

    assert {reply.server for reply in replies} == {server.url for server in ollama_servers}
    assert [asked(server, besides=()).count("/api/ps") for server in ollama_servers] == [1, 1, 1]


@pytest.mark.parametrize(
    "fault",
    [
        Respond(503, "<html>busy</html>"),
        Fail("server busy, please try again.  maximum pending requests exceeded", status=503),
        Respond(401, "no"),
        Respond(200, "<html>hello</html>"),
        Cut(),
        Fail("model requires more system memory (8 GiB) than is available (2 GiB)"),
    ],
    ids=repr,
)
def test_a_server_that_fails_before_the_first_token_is_passed_over(on, ollama_servers, fault):
    """The next one answers at once, without a backoff, and the log can say so."""
    ollama_servers[0].stand_in.script(fault)

    (reply,) = on.send(GENERATE, **urls(ollama_servers))

    assert reply.server == ollama_servers[1].url
    failed, ended = on.events
    assert isinstance(failed, ServerFailed)
    assert (failed.error.host, failed.next_host) == (ollama_servers[0].url, ollama_servers[1].url)
    assert isinstance(ended, CallEnded)
    assert (ended.error, ended.server) == (None, ollama_servers[1].url)


def test_a_server_that_is_down_is_passed_over_and_not_first_again(on, ollama_servers):
    """Nobody waits for it a second time."""
    ollama_servers[0].stop()

    replies = on.send(VersionRequest(), GENERATE, TagsRequest(), GENERATE, **urls(ollama_servers))

    assert {reply.server for reply in replies} == {ollama_servers[1].url}
    assert [type(event) for event in on.events].count(ServerFailed) == 1


def test_a_stream_that_has_not_begun_goes_on_at_the_next_server(on, ollama_servers):
    """Its parts name the server that sends them."""
    ollama_servers[0].stand_in.script(Respond(502, "bad gateway"))

    parts = on.stream(GENERATE, **urls(ollama_servers))

    assert parts[-1].done
    assert {part.server for part in parts} == {ollama_servers[1].url}


def test_a_stream_that_has_begun_stays_where_it_is(on, ollama_servers):
    """The caller has read a part of the answer."""
    ollama_servers[0].stand_in.script(("One two three.", Cut(after=2)))

    with pytest.raises(errors.IncompleteReplyError):
        on.stream(GENERATE, **urls(ollama_servers))

    assert asked(ollama_servers[1]) == []


def test_after_a_round_of_all_comes_the_backoff(on, ollama_servers):
    """Then all are tried again; what the log says of the round names each of them."""
    for server in ollama_servers:
        server.stand_in.script(Respond(503, "<html>busy</html>"))

    (reply,) = on.send(GENERATE, **urls(ollama_servers))

    assert reply.done
    assert [type(event) for event in on.events] == [ServerFailed, ServerFailed, AttemptFailed, CallEnded]
    assert all(server.url in str(on.events[2].error) for server in ollama_servers)


def test_the_error_names_each_server_and_what_it_said(on, ollama_servers):
    """Down, refused and not Ollama: one text has it all."""
    ollama_servers[0].stop()
    ollama_servers[1].stand_in.script(Respond(401, "no"), always=True)
    ollama_servers[2].stand_in.script(Respond(302, "", headers={"Location": "/login"}), always=True)

    with pytest.raises(errors.UnreachableError, match="none of the 3 servers could answer") as raised:
        on.send(GENERATE, max_attempts=2, **urls(ollama_servers))

    text = str(raised.value)
    assert f"{ollama_servers[0].url}: connection refused" in text
    assert f"{ollama_servers[1].url}: the server answers 401" in text or "401" in text
    assert f"{ollama_servers[2].url}: " in text
    assert "'llama3.2'" in text
    assert raised.value.retryable


def test_what_another_server_would_refuse_too_is_not_sent_to_it(on, ollama_servers):
    """The request is wrong, and not the server."""
    ollama_servers[0].stand_in.script(Fail("invalid format: x", status=400))

    with pytest.raises(errors.BadRequestError):
        on.send(GENERATE, **urls(ollama_servers))

    assert asked(ollama_servers[1]) == asked(ollama_servers[2]) == []


def test_a_prompt_that_crashes_the_model_does_so_on_one_server_only(on, ollama_servers):
    """However often it is tried."""
    ollama_servers[0].stand_in.script(Crash(), always=True)

    with pytest.raises(errors.RunnerError):
        on.send(GENERATE, **urls(ollama_servers))

    assert asked(ollama_servers[0]) == ["/api/generate"] * 3
    assert asked(ollama_servers[1]) == asked(ollama_servers[2]) == []


def test_a_server_that_stays_silent_is_not_tried_again_first(on, ollama_servers):
    """The next attempt begins elsewhere."""
    ollama_servers[0].stand_in.script(Stall())

    (reply,) = on.send(GENERATE, timeouts={"first_token": 0.2}, **urls(ollama_servers))

    assert reply.server == ollama_servers[1].url


@pytest.mark.ollama_servers({"models": ["qwen3"]}, {"models": ["llama3.2"]})
def test_the_server_that_has_the_model_on_its_disk_is_found(on, ollama_servers):
    """Nothing is pulled where another has it, and its details come from there too."""
    for request in (GENERATE, ShowRequest(model="llama3.2")):
        (reply,) = on.send(request, **urls(ollama_servers))
        assert reply.server == ollama_servers[1].url

    assert "/api/pull" not in asked(ollama_servers[0])


@pytest.mark.ollama_servers({}, {})
def test_a_model_that_nobody_has_is_pulled_by_one(on, ollama_servers):
    """The first, which then answers."""
    (reply,) = on.send(GenerateRequest(model="mistral", prompt="hi"), **urls(ollama_servers))

    assert reply.server == ollama_servers[0].url
    assert asked(ollama_servers[0]) == ["/api/generate", "/api/pull", "/api/generate"]
    assert asked(ollama_servers[1]) == ["/api/generate"]


def test_a_model_is_pulled_by_one_that_is_up(on, ollama_servers):
    """Where the first is down."""
    ollama_servers[0].stop()

    (reply,) = on.send(GenerateRequest(model="mistral", prompt="hi"), **urls(ollama_servers))

    assert reply.server == ollama_servers[1].url


@pytest.mark.ollama_servers({}, {})
def test_a_failure_of_the_server_that_has_pulled_a_model_is_retried(on, ollama_servers):
    """Though the other one still lacks the model."""
    first, second = ollama_servers
    first.stand_in.script(Respond(503, "busy"), where=lambda _: bool(first.stand_in.downloads))

    (reply,) = on.send(GenerateRequest(model="mistral", prompt="hi"), **urls(ollama_servers))

    assert reply.server == first.url
    assert "/api/pull" not in asked(second)
    assert [type(event) for event in on.events].count(AttemptFailed) == 1


@pytest.mark.ollama_servers({}, {})
def test_a_model_that_may_not_be_pulled_is_told_for_each_server(on, ollama_servers):
    """The text has both, and what to do."""
    with pytest.raises(errors.PullNotAllowedError, match="auto_pull is off") as raised:
        on.send(GenerateRequest(model="mistral", prompt="hi"), auto_pull=False, **urls(ollama_servers))

    assert all(server.url in str(raised.value) for server in ollama_servers)


def test_a_model_that_may_be_pulled_is_missing_and_not_unreachable(on, ollama_servers):
    """Whoever asks for its details can then pull it, although one server is down and might have had it."""
    ollama_servers[0].stop()

    with pytest.raises(errors.ModelNotFoundError, match="none of the 3 servers"):
        on.send(ShowRequest(model="mistral"), **urls(ollama_servers))


async def test_coroutines_share_the_pull_of_several_servers(ollama_servers):
    """One of them pulls, once."""
    async with AsyncClient(Settings(**urls(ollama_servers))) as client:
        await asyncio.gather(*[client.send(GenerateRequest(model="mistral", prompt="x")) for _ in range(9)])

    assert sum(asked(server).count("/api/pull") for server in ollama_servers) == 1


@pytest.mark.parametrize("request_", [PullRequest(model="mistral"), DeleteRequest(model="llama3.2")])
def test_what_changes_a_disk_is_not_sent_to_just_any_server(on, ollama_servers, request_):
    """The error says how to name one."""
    with pytest.raises(errors.InvalidRequestError, match="is for one server, and the connection has 3"):
        on.send(request_, **urls(ollama_servers))

    assert [asked(server) for server in ollama_servers] == [[], [], []]


@pytest.mark.ollama_servers({"version": "0.2.0"}, {"version": "0.2.0"})
def test_old_servers_embed_text_by_text(on, ollama_servers):
    """As one old server does."""
    (reply,) = on.send(EmbedRequest(model="nomic-embed-text", input=["a", "b"]), **urls(ollama_servers))

    assert len(reply.embeddings) == 2
    assert reply.server == ollama_servers[0].url


def test_closing_ends_a_wait_at_any_server(ollama_servers):
    """`on_kill` does not know where the request is."""
    load(ollama_servers[1])
    ollama_servers[1].stand_in.script(Stall())
    client = Client(Settings(**urls(ollama_servers)))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.send, GENERATE)
        ollama_servers[1].stand_in.wait_until(lambda stand_in: stand_in.open_requests)
        client.close()
        with pytest.raises(errors.ClientClosedError):
            waiting.result(5)


async def test_cancelling_leaves_no_request_at_any_server(ollama_servers):
    """Not even one that only looked for the model."""
    for server in ollama_servers:
        server.stand_in.script(Stall(), path="ps")

    async with AsyncClient(Settings(**urls(ollama_servers))) as client:
        sending = asyncio.create_task(client.send(GENERATE))
        for server in ollama_servers:
            await asyncio.to_thread(server.stand_in.wait_until, lambda stand_in: stand_in.open_requests)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        for server in ollama_servers:
            await asyncio.to_thread(server.stand_in.wait_until, lambda stand_in: not stand_in.open_requests)


def test_a_server_that_is_silent_about_its_memory_holds_nobody_up(on, ollama_servers, monkeypatch):
    """It is asked last, since it is busy or broken."""
    monkeypatch.setattr("ollama_provider.api.client._ASKING_SECONDS", 0.2)
    ollama_servers[0].stand_in.script(Stall(), path="ps")

    (reply,) = on.send(GENERATE, **urls(ollama_servers))

    assert reply.server == ollama_servers[1].url
    assert "/api/ps was not answered within 0.2 s" in str(on.events[0].error)
