"""Both clients against a server that answers as Ollama does."""

import pytest

from ollama_provider.api.client import Client
from ollama_provider.api.errors import FirstTokenTimeoutError
from ollama_provider.api.events import CallEnded, PullMoved
from ollama_provider.api.schemas import (
    ChatRequest,
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbedRequest,
    EmptyReply,
    GenerateRequest,
    PsRequest,
    PullRequest,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings
from ollama_provider.testing import Answer, Stall


def test_the_pieces_of_an_answer_are_joined(on, ollama):
    """`send` returns the whole answer with the numbers of its last object."""
    ollama.stand_in.script("Rome is the capital.")

    (reply,) = on.send(GenerateRequest(model="llama3.2", prompt="Capital?"), base_url=ollama.url)

    assert reply.text == "Rome is the capital."
    assert reply.done
    assert reply.done_reason == "stop"
    assert reply.eval_count > 0


def test_a_stream_gives_the_pieces_as_they_come(on, ollama):
    """`stream` yields each object; together they are the answer, and the last one says done."""
    ollama.stand_in.script("Rome is the capital.")

    parts = on.stream(ChatRequest(model="llama3.2", messages="Capital?"), base_url=ollama.url)

    assert len(parts) > 1
    assert "".join(part.text for part in parts) == "Rome is the capital."
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_one_client_serves_many_endpoints(on, ollama):
    """Requests of all kinds go through one client, each with its own reply."""
    version, tags, vectors = on.send(
        VersionRequest(),
        TagsRequest(),
        EmbedRequest(model="nomic-embed-text", input=["a", "b"]),
        base_url=ollama.url,
    )

    assert version.version == "0.24.0"
    assert {model.tag for model in tags.models} >= {"llama3.2:latest"}
    assert len(vectors.embeddings) == 2


def test_a_listener_hears_how_a_call_ended(on, ollama):
    """Each call is told once, with the server's numbers and without its texts."""
    on.send(GenerateRequest(model="llama3.2", prompt="hello"), base_url=ollama.url)

    (event,) = on.events
    assert isinstance(event, CallEnded)
    assert (event.path, event.model, event.server, event.error) == ("/api/generate", "llama3.2", ollama.url, None)
    assert event.metrics is not None
    assert event.metrics.eval_count > 0
    assert not hasattr(event.metrics, "response")


@pytest.mark.parametrize("fault", [ZeroDivisionError, ConnectionError, TimeoutError])
def test_what_a_listener_raises_goes_to_the_caller(ollama, fault):
    """A fault of an observer is seen, and not taken for one of the server, whatever its class."""

    def listener(event: object) -> None:
        if isinstance(event, PullMoved):
            raise fault

    with Client(Settings(base_url=ollama.url), listener=listener) as client, pytest.raises(fault):
        client.send(PullRequest(model="mistral"))

    assert len(ollama.stand_in.requests) == 1


def test_a_silence_before_the_first_token_is_tried_twice(on, ollama):
    """To hang up ends the load; a third and a fourth attempt would begin it anew as well."""
    ollama.stand_in.script(Stall(), times=2)

    with pytest.raises(FirstTokenTimeoutError):
        on.send(GenerateRequest(model="llama3.2"), base_url=ollama.url, timeouts={"first_token": 0.05})

    assert len(ollama.stand_in.requests) == 2


def test_tools_and_thinking_come_back(on, ollama):
    """A chat's reply holds the calls and the thoughts."""
    ollama.stand_in.script(Answer("", thinking="Hm.", tool_calls=(("get_weather", {"city": "Paris"}),)))
    tool = {"function": {"name": "get_weather"}}

    (reply,) = on.send(ChatRequest(model="qwen3", messages="Weather?", tools=[tool], think=True), base_url=ollama.url)

    assert reply.thinking == "Hm."
    assert [(call.function.name, call.function.arguments) for call in reply.tool_calls] == [
        ("get_weather", {"city": "Paris"})
    ]


def test_models_are_managed(on, ollama):
    """Copy, create, show, ps and delete: each with its own reply, or none."""
    copied, shown, created, _, running, deleted = on.send(
        CopyRequest(source="llama3.2", destination="ours"),
        ShowRequest(model="ours"),
        CreateRequest(model="made", from_="llama3.2", system="Be brief."),
        GenerateRequest(model="ours"),
        PsRequest(),
        DeleteRequest(model="ours"),
        base_url=ollama.url,
    )

    assert isinstance(copied, EmptyReply)
    assert isinstance(deleted, EmptyReply)
    assert shown.context_length == 131_072
    assert created.done
    assert [model.tag for model in running.models] == ["ours:latest"]
