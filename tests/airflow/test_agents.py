"""A pydantic-ai model over a connection."""

import asyncio
import base64
import json
import sys

import pydantic_ai
import pytest
from pydantic import BaseModel

from ollama_provider.agents import pydantic_ai_model
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.testing import Answer, Ordinary


class Capital(BaseModel):
    city: str


ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "llama3.2",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"city": "Rome"}'}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def test_a_model_has_to_be_named(add_connection):
    """By the call or by the connection."""
    add_connection(host="gpu1")

    with pytest.raises(InvalidRequestError, match="no model: name one"):
        pydantic_ai_model()


def test_what_is_missing_is_named(add_connection, monkeypatch):
    """With the command that installs it."""
    add_connection(host="gpu1")
    monkeypatch.setitem(sys.modules, "pydantic_ai.models.ollama", None)

    with pytest.raises(ImportError, match=r"pip install 'pydantic-ai-slim\[openai\]'"):
        pydantic_ai_model(model="llama3.2")


def test_the_connection_is_used(add_connection, httpx_mock):
    """Address with its path, credentials, headers and default model come from the connection."""
    add_connection(
        host="http://gpu1:8080/base",
        login="ada",
        password="secret",
        extra={"model": "llama3.2", "headers": {"X-Tenant": "nightly"}},
    )
    httpx_mock.add_response(json=ANSWER)

    answer = pydantic_ai.Agent(pydantic_ai_model()).run_sync("Capital?", model_settings={"max_tokens": 30})

    (request,) = httpx_mock.get_requests()
    body = json.loads(request.content)
    assert answer.output == '{"city": "Rome"}'
    assert str(request.url) == "http://gpu1:8080/base/v1/chat/completions"
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"ada:secret").decode()
    assert request.headers["x-tenant"] == "nightly"
    assert (body["model"], body["max_tokens"]) == ("llama3.2", 30)


def test_structured_output_is_a_schema(add_connection, httpx_mock):
    """Ollama's /v1 ignores that a tool must be called, and keeps to a schema."""
    add_connection(host="gpu1", password="key")
    httpx_mock.add_response(json=ANSWER)

    # [start agent]
    answer = pydantic_ai.Agent(pydantic_ai_model("ollama_default", "llama3.2"), output_type=Capital).run_sync(
        "Capital of Italy?"
    )
    # [end agent]

    (request,) = httpx_mock.get_requests()
    body = json.loads(request.content)
    assert answer.output == Capital(city="Rome")
    assert request.headers["authorization"] == "Bearer key"
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["city"]
    assert "tool_choice" not in body


def test_an_agent_works_with_a_server(ollama, ollama_conn):
    """Plain answers, answers in a schema and tools, over the wire."""
    stand_in = ollama.stand_in
    model = pydantic_ai_model(ollama_conn, "llama3.2")

    def temperature(city: str) -> str:
        """The temperature in a city."""
        return f"21 degrees in {city}"

    stand_in.script(
        {"city": "Rome"},
        Answer("", tool_calls=(("temperature", {"city": "Paris"}),)),
        Ordinary(),
    )
    capital = pydantic_ai.Agent(model, output_type=Capital).run_sync("Capital of Italy?")
    weather = pydantic_ai.Agent(model, tools=[temperature]).run_sync("How warm is it?")

    assert capital.output == Capital(city="Rome")
    assert "21 degrees in Paris" in weather.output
    assert {seen.path for seen in stand_in.requests} == {"/v1/chat/completions"}


def test_an_agent_streams(ollama, ollama_conn):
    """The text comes in pieces, the counts with the last one."""
    ollama.stand_in.script("It is Rome, of course.")
    agent = pydantic_ai.Agent(pydantic_ai_model(ollama_conn, "llama3.2"))

    async def pieces():
        async with agent.run_stream("Capital of Italy?") as run:
            return [piece async for piece in run.stream_text(delta=True, debounce_by=None)]

    assert "".join(asyncio.run(pieces())) == "It is Rome, of course."


def test_an_agent_hears_what_the_server_refuses(ollama, ollama_conn):
    """With status and text."""
    with pytest.raises(pydantic_ai.exceptions.ModelHTTPError, match="model 'nope' not found") as caught:
        pydantic_ai.Agent(pydantic_ai_model(ollama_conn, "nope")).run_sync("?")

    assert caught.value.status_code == 404


def test_of_several_servers_one_has_to_be_named(add_connection):
    """The OpenAI client of pydantic-ai cannot go on with another one."""
    conn_id = add_connection(host="gpu1, gpu2:1")

    with pytest.raises(InvalidRequestError, match="server=…, one of http://gpu1:11434, http://gpu2:1"):
        pydantic_ai_model(conn_id, "llama3.2")
    model = pydantic_ai_model(conn_id, "llama3.2", server="gpu2")

    assert model.base_url.startswith("http://gpu2:1/v1")
