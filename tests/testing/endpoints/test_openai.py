"""The endpoints of OpenAI's API, as its official client uses them."""

import base64
import json
import re
import struct
from collections.abc import Iterator

import httpx
import openai
import pytest

from ollama_provider.testing import Answer, Crash, Cut, Fail, Insert, Pace, Respond, Server, StandIn, serve

HELLO = [{"role": "user", "content": "hello there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=5)


@pytest.fixture
def client(ollama: Server) -> Iterator[openai.OpenAI]:
    with client_of(ollama) as client:
        yield client


@pytest.fixture(params=["0.24.0", "0.33.0"])
def any_client(request: pytest.FixtureRequest) -> Iterator[tuple[Server, openai.OpenAI]]:
    with serve(StandIn(version=request.param)) as server, client_of(server) as client:
        yield server, client


def test_models(client: openai.OpenAI) -> None:
    """The client lists all models, or gets one by its name."""
    names = {model.id for model in client.models.list()}

    assert "llama3.2:latest" in names
    assert client.models.retrieve("llama3.2").owned_by == "library"
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        client.models.retrieve("nope")


def test_a_chat(ollama: Server, client: openai.OpenAI) -> None:
    """The client reads the answer, the finish reason and the token counts."""
    ollama.stand_in.script(Answer("Rome", prompt_eval_count=7, eval_count=2))

    answer = client.chat.completions.create(model="llama3.2", messages=HELLO, max_tokens=20, stop="x", seed=1)

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Rome", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)
    assert ollama.stand_in.requests[-1].path == "/v1/chat/completions"


def test_a_chat_that_is_streamed(any_client: tuple[Server, openai.OpenAI]) -> None:
    """The stream has chunks, a finish reason, and the token counts in a chunk without choices."""
    server, client = any_client
    server.stand_in.script(Answer("It is Rome.", thinking="Let me think."))

    chunks = list(
        client.chat.completions.create(
            model="qwen3", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )

    *said, counts = chunks
    deltas = [chunk.choices[0].delta for chunk in said]
    assert "".join(delta.content or "" for delta in deltas) == "It is Rome."
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "Let me think."
    assert [chunk.choices[0].finish_reason for chunk in said][-2:] == [None, "stop"]
    assert (counts.choices, counts.usage.total_tokens > 0) == ([], True)
    assert all(chunk.usage is None for chunk in said)


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_is_called_and_its_result_is_read(any_client: tuple[Server, openai.OpenAI], stream: bool) -> None:
    """The arguments are JSON text. The answer to the tool's result contains the result."""
    server, client = any_client
    server.stand_in.script(Answer("", tool_calls=(("get_weather", {"city": "Paris"}),)))

    answer = client.chat.completions.create(model="llama3.2", messages=HELLO, tools=[WEATHER], stream=stream)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    else:
        calls, reasons = answer.choices[0].message.tool_calls, [answer.choices[0].finish_reason]

    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    assert [reason for reason in reasons if reason] == ["tool_calls"]

    asked = {"role": "assistant", "tool_calls": [json.loads(calls[0].model_dump_json())]}
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "21 degrees"}
    told = client.chat.completions.create(model="llama3.2", messages=[*HELLO, asked, result], tools=[WEATHER])
    assert "21 degrees" in told.choices[0].message.content


def test_structured_output(client: openai.OpenAI) -> None:
    """`json_schema` gives JSON that satisfies the schema, `json_object` any JSON."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    answer = client.chat.completions.create(model="llama3.2", messages=HELLO, response_format=wanted)
    loose = client.chat.completions.create(model="llama3.2", messages=HELLO, response_format={"type": "json_object"})

    assert json.loads(answer.choices[0].message.content) == {"n": 0}
    assert isinstance(json.loads(loose.choices[0].message.content), dict)


def test_a_message_of_parts(ollama: Server, client: openai.OpenAI) -> None:
    """A message can have parts of text and image data, but no address of an image."""
    image = "data:image/png;base64," + base64.b64encode(b"png").decode()
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": image}}]

    answer = client.chat.completions.create(model="llava", messages=[{"role": "user", "content": parts}])

    assert answer.choices[0].message.content
    parts[1]["image_url"]["url"] = "https://example.com/a.png"
    with pytest.raises(openai.BadRequestError, match="image URLs are not currently supported"):
        client.chat.completions.create(model="llava", messages=[{"role": "user", "content": parts}])


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion(ollama: Server, client: openai.OpenAI, stream: bool) -> None:
    """The client uses the older endpoint for completions."""
    ollama.stand_in.script("one two three")

    answer = client.completions.create(model="llama3.2", prompt="count", max_tokens=2, stream=stream)
    found = list(answer) if stream else [answer]

    assert "".join(part.choices[0].text for part in found) == "one two"
    assert found[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(ollama: Server, client: openai.OpenAI, encoding: str) -> None:
    """Vectors come as numbers or, by the client's default, as base64 of float32 bytes."""
    ollama.stand_in.script(Answer(vectors=[[0.5, -0.25], [1.0, 0.0]]))

    found = client.embeddings.create(model="nomic-embed-text", input=["a", "b"], encoding_format=encoding)

    vectors = [item.embedding for item in found.data]
    if encoding == "base64":
        vectors = [list(struct.unpack("<2f", base64.b64decode(vector))) for vector in vectors]
    assert vectors == [[0.5, -0.25], [1.0, 0.0]]
    assert found.usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model 'nope' not found"),
        ({"messages": []}, openai.BadRequestError, r"\[\] is too short - 'messages'"),
        ({"messages": [{"role": "user", "content": None}]}, openai.BadRequestError, "message content type: <nil>"),
        ({"messages": "x"}, openai.BadRequestError, r"of type \[\]openai.Message"),
        ({"model": "nomic-embed-text"}, openai.BadRequestError, '"nomic-embed-text" does not support chat'),
        ({"model": "llava", "tools": [WEATHER]}, openai.BadRequestError, "does not support tools"),
        ({"reasoning_effort": "extreme"}, openai.BadRequestError, "invalid reasoning value: 'extreme'"),
        ({"model": "qwen3", "temperature": "hot"}, openai.BadRequestError, "temperature of type float64"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_refusals(client: openai.OpenAI, changes: dict, error: type[Exception], text: str, stream: bool) -> None:
    """The error has OpenAI's format and Ollama's text."""
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "llama3.2", "messages": HELLO, "stream": stream} | changes)

    assert set(caught.value.body) == {"message", "type", "param", "code"}
    # Not the text of the exception, in which older clients escape quotes.
    assert re.search(text, caught.value.body["message"])


def test_faults(ollama: Server, client: openai.OpenAI) -> None:
    """Faults that are scripted for a chat have OpenAI's format. Responses of a proxy are not translated."""

    def ask(**more: object) -> openai.types.chat.ChatCompletion:
        return client.chat.completions.create(model="llama3.2", messages=HELLO, **more)

    ollama.stand_in.script(Fail("server busy, please try again.  maximum pending requests exceeded", status=503))
    with pytest.raises(openai.InternalServerError, match="server busy") as busy:
        ask()
    assert busy.value.body["type"] == "api_error"

    ollama.stand_in.script(Respond(429, {"error": "slow down"}))
    with pytest.raises(openai.RateLimitError) as proxy:
        ask()
    assert proxy.value.body == "slow down"

    ollama.stand_in.script(("a b c", Pace(between_tokens=0.01), Cut(after=2)))
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        list(ask(stream=True))

    # Ollama drops an error after the first chunk: it becomes an empty chunk, and the end of the stream is missing.
    ollama.stand_in.script(("a b c", Crash(after=1)))
    assert [chunk.choices[0].delta.content for chunk in ask(stream=True)] == ["a", ""]

    ollama.stand_in.script(("a b c", Insert(b"data: {broken\n\n", after=1)))
    with pytest.raises(ValueError, match="Expecting"):
        list(ask(stream=True))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/a/b", 404),
        ("POST", "/v1/nonsense", 404),
        ("GET", "/v1/models/", 301),
    ],
)
def test_other_paths_and_methods(ollama: Server, method: str, path: str, status: int) -> None:
    """Errors of the router do not have OpenAI's format."""
    answer = httpx.request(method, ollama.url + path)

    assert answer.status_code == status
    assert "json" not in answer.headers.get("content-type", "")


def test_old_servers_have_no_v1() -> None:
    """The first version with an endpoint of OpenAI's is 0.1.24."""
    assert StandIn(version="0.1.23").answer("POST", "/v1/chat/completions", {}).status == 404
    assert StandIn(version="0.1.24").answer("POST", "/v1/chat/completions", {}).status == 400
    assert StandIn(version="0.1.24").answer("GET", "/v1/models").status == 404


def test_bodies_that_are_no_json() -> None:
    """The error has OpenAI's format."""
    reply = StandIn().answer("POST", "/v1/chat/completions", body=b"")

    assert (reply.status, reply.json["error"]) == (
        400,
        {"message": "EOF", "type": "invalid_request_error", "param": None, "code": None},
    )


def _chat(**message: object) -> dict[str, object]:
    return {"messages": [{"role": "user", **message}]}


_PNG = "data:image/png;base64,"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("chat/completions", _chat(content=5), "invalid message content type: float64"),
        ("chat/completions", _chat(content=True), "invalid message content type: bool"),
        ("chat/completions", _chat(content={}), "invalid message content type: map[string]interface {}"),
        ("chat/completions", _chat(content=None), "invalid message content type: <nil>"),
        ("chat/completions", _chat(content=[{"type": "audio"}]), "invalid message format"),
        ("chat/completions", _chat(content=["a"]), "invalid message format"),
        ("chat/completions", _chat(content=[{"type": "image_url", "image_url": "https://h/a.png"}]), "not currently"),
        ("chat/completions", _chat(content=[{"type": "image_url", "image_url": "a.png"}]), "invalid image input"),
        ("chat/completions", _chat(content=[{"type": "image_url", "image_url": {"url": _PNG + "%"}}]), "invalid image"),
        ("chat/completions", _chat(tool_calls=[{"function": {"name": "f", "arguments": "no"}}]), "invalid tool call"),
        ("chat/completions", _chat(tool_calls=[{"function": {"name": "f", "arguments": "[]"}}]), "invalid tool call"),
        ("chat/completions", _chat(content="a") | {"reasoning": {"effort": "huge"}}, "invalid reasoning value: 'huge'"),
        ("completions", {"prompt": "a", "stop": ["b", 1]}, "invalid type for 'stop' field: float64"),
    ],
)
def test_what_the_translation_refuses(ollama: Server, path: str, body: dict[str, object], says: str) -> None:
    """With 400, before a model is asked, and in the form of OpenAI's errors."""
    answer = httpx.post(f"{ollama.url}/v1/{path}", json={"model": "llama3.2", **body})

    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
