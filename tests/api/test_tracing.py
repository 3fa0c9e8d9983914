"""Spans of requests, as an exporter of OpenTelemetry gets them."""

import asyncio
import json

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.errors import OllamaError, PullNotAllowedError
from ollama_provider.api.retry import without_waiting
from ollama_provider.api.schemas import (
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    Options,
    PullRequest,
    ShowRequest,
    TagsRequest,
)
from ollama_provider.api.settings import Settings
from ollama_provider.testing import Answer, Model, Respond
from tests.security.canaries import ANSWER, LOGIN, PASSWORD, PROMPT, found_in
from tests.tracing import exported, text_of

SWITCH = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@pytest.fixture
def client(ollama):
    """A client of the stand-in, with credentials."""
    with Client(Settings(base_url=ollama.url, login=LOGIN, password=PASSWORD)) as client:
        yield client


@pytest.fixture
def spans(monkeypatch):
    """What is exported while the test runs."""
    monkeypatch.delenv(SWITCH, raising=False)
    with exported(monkeypatch) as spans:
        yield spans


def test_an_answer(client, ollama, spans):
    """All that the conventions have for it, and nothing of the prompt and the answer."""
    ollama.stand_in.script(Answer(ANSWER))
    options = Options(temperature=0, num_predict=50, seed=7, stop=["END"])
    reply = client.send(ChatRequest(model="llama3.2", messages=PROMPT, options=options, format="json"))

    (span,) = spans()
    assert (span.name, span.kind) == ("chat llama3.2", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "llama3.2",
        "gen_ai.request.temperature": 0,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.output.type": "json",
        "gen_ai.response.model": "llama3.2",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": reply.prompt_eval_count,
        "gen_ai.usage.output_tokens": reply.eval_count,
        "server.address": ollama.host,
        "server.port": ollama.port,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert found_in(text_of(span)) == []


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (GenerateRequest(model="llama3.2", prompt="Hi"), "text_completion llama3.2"),
        (EmbedRequest(model="nomic-embed-text", input="Hi"), "embeddings nomic-embed-text"),
        (GenerateRequest(model="llama3.2"), "load llama3.2"),
        (EmbedRequest(model="nomic-embed-text", input=[]), "load nomic-embed-text"),
        (GenerateRequest(model="llama3.2", keep_alive=0), "unload llama3.2"),
        (PullRequest(model="llama3.2"), "pull llama3.2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names(request_, name, client, spans):
    """The operation and the model."""
    client.send(request_)

    assert [span.name for span in spans()] == [name]
    assert spans()[0].attributes["gen_ai.operation.name"] == name.split()[0]


@pytest.mark.parametrize("request_", [TagsRequest(), ShowRequest(model="llama3.2")], ids=["tags", "show"])
def test_questions_about_the_server_have_none(request_, client, spans):
    """Tasks ask them all the time."""
    client.send(request_)

    assert spans() == []


def test_a_stream_is_one_span(client, ollama, spans, monkeypatch):
    """It ends with the answer, whose pieces are joined."""
    monkeypatch.setenv(SWITCH, "true")
    ollama.stand_in.install(Model("thinker", ("completion", "thinking")))
    ollama.stand_in.script(Answer("one two three", thinking="hm"))
    with client.stream(GenerateRequest(model="thinker", prompt="Hi", think=True)) as parts:
        assert len(list(parts)) > 2
        assert spans() == []

    (span,) = spans()
    (message,) = json.loads(span.attributes["gen_ai.output.messages"])
    assert message == {
        "role": "assistant",
        "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "one two three"}],
        "finish_reason": "stop",
    }


def test_async_requests(ollama, spans):
    """Many at once, each with its own span below the one that was current."""

    async def send_all() -> None:
        async with AsyncClient(Settings(base_url=ollama.url)) as client:
            with trace.get_tracer("test").start_as_current_span("task"):
                await asyncio.gather(*(client.send(GenerateRequest(model="llama3.2", prompt="Hi")) for _ in range(3)))

    asyncio.run(send_all())

    *requests, task = spans()
    assert [span.name for span in requests] == ["text_completion llama3.2"] * 3
    assert {span.parent.span_id for span in requests} == {task.context.span_id}


def test_an_error(ollama, spans):
    """Its class, our text for it, and the server."""
    settings = Settings(base_url=ollama.url, login=LOGIN, password=PASSWORD, auto_pull=False)
    with Client(settings) as client, pytest.raises(PullNotAllowedError) as caught:
        client.send(GenerateRequest(model="nowhere", prompt=PROMPT))

    (span,) = spans()
    assert span.attributes["error.type"] == type(caught.value).__name__
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(caught.value))
    assert (span.attributes["server.address"], span.attributes["server.port"]) == (ollama.host, ollama.port)
    assert found_in(text_of(span)) == []


def test_a_retry_is_an_event(client, ollama, spans):
    """Of the one span of all attempts."""
    ollama.stand_in.script(Respond(503, {"error": f"server busy: {PROMPT}"}), "Hello.")
    with without_waiting():
        client.send(GenerateRequest(model="llama3.2", prompt=PROMPT))

    (span,) = spans()
    (event,) = span.events
    assert (event.name, event.attributes["error.type"]) == ("retry", "OverloadedError")
    assert "error.type" not in span.attributes
    assert found_in(text_of(span)) == []


def test_a_missing_model_is_pulled_in_a_span_of_its_own(client, ollama, spans):
    """So that a slow first request explains itself."""
    ollama.stand_in.offer(Model("fresh"))
    client.send(GenerateRequest(model="fresh", prompt="Hi"))

    assert [span.name for span in spans()] == ["pull fresh", "text_completion fresh"]


@pytest.mark.parametrize("value", ["true", "SPAN_ONLY", "SPAN_AND_EVENT"])
def test_content_where_the_switch_asks_for_it(value, client, ollama, spans, monkeypatch):
    """Prompt, system message and answer, as the conventions write messages."""
    monkeypatch.setenv(SWITCH, value)
    ollama.stand_in.script(Answer(ANSWER))
    client.send(GenerateRequest(model="llama3.2", prompt=PROMPT, system="Be brief."))

    (span,) = spans()
    assert json.loads(span.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": PROMPT}]}
    ]
    assert json.loads(span.attributes["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    (answer,) = json.loads(span.attributes["gen_ai.output.messages"])
    assert answer["parts"] == [{"type": "text", "content": ANSWER}]


@pytest.mark.parametrize("value", ["false", "NO_CONTENT", "EVENT_ONLY", ""])
def test_no_content_otherwise(value, client, ollama, spans, monkeypatch):
    """Values for others than spans are none for them."""
    monkeypatch.setenv(SWITCH, value)
    ollama.stand_in.script(Answer(ANSWER))
    client.send(GenerateRequest(model="llama3.2", prompt=PROMPT, system=PROMPT))

    assert found_in(text_of(spans()[0])) == []


def test_tools_in_the_content(client, spans, monkeypatch):
    """Calls and their results."""
    monkeypatch.setenv(SWITCH, "true")
    call = {"id": "c1", "function": {"name": "look_up", "arguments": {"who": "Bo"}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "nobody", "tool_call_id": "c1"},
    ]
    client.send(ChatRequest(model="llama3.2", messages=messages))

    asked, told = json.loads(spans()[0].attributes["gen_ai.input.messages"])
    assert asked["parts"] == [{"type": "tool_call", "id": "c1", "name": "look_up", "arguments": {"who": "Bo"}}]
    assert told == {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "nobody"}]}


def test_none_where_it_is_not_sampled(client, monkeypatch):
    """The sampler of whoever has set up tracing decides."""
    with exported(monkeypatch, sampler=ALWAYS_OFF) as spans:
        client.send(GenerateRequest(model="llama3.2", prompt="Hi"))
        assert spans() == []


def test_a_share_of_the_requests(ollama, spans, monkeypatch):
    """Each by the same chance, as those of a batch's rows."""
    monkeypatch.setattr("ollama_provider.api.events.random", iter([0.1, 0.5, 0.4, 0.9]).__next__)
    with Client(Settings(base_url=ollama.url), traced=0.5) as client:
        for number in range(4):
            client.send(GenerateRequest(model="llama3.2", prompt=str(number), options=Options(seed=number)))

    assert [span.attributes["gen_ai.request.seed"] for span in spans()] == [0, 2]


def test_none_where_a_client_wants_none(ollama, spans):
    """As that of a batch's rows."""
    with Client(Settings(base_url=ollama.url), traced=0) as client:
        client.send(GenerateRequest(model="llama3.2", prompt="Hi"))

    assert spans() == []


def test_a_failure_of_another_kind_has_no_text(client, spans):
    """It may quote anything."""
    with pytest.raises(ValueError, match="canary"), client.stream(GenerateRequest(model="llama3.2", prompt="Hi")) as _:
        raise ValueError(PROMPT)

    (span,) = spans()
    assert (span.attributes["error.type"], span.status.description) == ("ValueError", None)
    assert not issubclass(ValueError, OllamaError)
