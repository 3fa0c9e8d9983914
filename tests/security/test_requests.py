"""Canaries through each request of both clients, against servers that say them again: no error and no log has them."""

import asyncio

import pytest

from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import (
    ChatRequest,
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbedRequest,
    GenerateRequest,
    PsRequest,
    PullRequest,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings
from tests.security.canaries import HEADER, LOGIN, PASSWORD, PROMPT, PROXY_PASSWORD, basic, found_in, logged, told
from tests.security.hostile import FAULTS, error, hostile

CALL = {"function": {"name": "look_up", "arguments": {"who": PROMPT}}}
REQUESTS = {
    "generate": GenerateRequest(model="m", prompt=PROMPT),
    "generate with more": GenerateRequest(model="m", prompt="x", system=PROMPT, suffix=PROMPT, template=PROMPT),
    "chat": ChatRequest(model="m", messages=PROMPT),
    "chat with tools": ChatRequest(model="m", messages=[{"role": "assistant", "tool_calls": [CALL]}]),
    "embed": EmbedRequest(model="m", input=["x", PROMPT]),
    "create": CreateRequest(model="m", from_="n", system=PROMPT, messages=[{"role": "user", "content": PROMPT}]),
    "pull": PullRequest(model="m"),
    "tags": TagsRequest(),
    "ps": PsRequest(),
    "version": VersionRequest(),
    "show": ShowRequest(model="m"),
    "copy": CopyRequest(source="m", destination="n"),
    "delete": DeleteRequest(model="m"),
}


def settings(url: str, **more) -> Settings:
    secrets = {"login": LOGIN, "password": PASSWORD, "headers": {"X-Api-Key": HEADER}}
    return Settings(base_url=url, max_attempts=2, auto_pull=False, **(secrets | more))


def failures(url: str, **more) -> list[OllamaError]:
    """Send each request with each client; return what they raised."""

    async def send_async() -> list[OllamaError]:
        found = []
        async with AsyncClient(settings(url, **more), listener=events.append) as client:
            for request in REQUESTS.values():
                try:
                    await client.send(request)
                except OllamaError as raised:
                    found.append(raised)
        return found

    events, found = [], []
    with Client(settings(url, **more), listener=events.append) as client:
        for request in REQUESTS.values():
            try:
                client.send(request)
            except OllamaError as raised:
                found.append(raised)
    found += asyncio.run(send_async())
    assert found_in(repr(events)) == []
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_no_error_and_no_log_says_what_was_sent(fault, debug_log, no_waits):
    """Whatever the server says of it: in a text, in JSON, on a page, in a header."""
    with hostile(FAULTS[fault]) as server:
        raised = failures(server.url)
        seen = server.seen

    assert found_in("".join(one.whole for one in seen), "prompt", "header", "credentials") == [
        "header", "credentials", "prompt",
    ]  # fmt: skip
    assert len(raised) > len(REQUESTS)
    for one in raised:
        assert (found_in(told(one)), str(one)) == ([], str(one))
    assert logged(debug_log.records) == set()


def test_a_bearer_token_neither(debug_log, no_waits):
    """An API key has no login."""
    with hostile(FAULTS["401 that quotes headers"]) as server:
        raised = failures(server.url, login=None)

    assert found_in("".join(map(told, raised))) == []
    assert logged(debug_log.records) == set()


def test_nor_the_password_of_a_proxy(debug_log, no_waits, monkeypatch):
    """Which a proxy may quote as well, in any encoding."""

    def quoting(seen):
        return error(407, f"who is {PROXY_PASSWORD}? {' '.join(seen.head.split())}")

    with hostile(quoting) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", f"http://{LOGIN}:{PROXY_PASSWORD}@"))
        raised = failures("http://gpu1.example:11434")
        seen = proxy.seen

    assert basic(LOGIN, PROXY_PASSWORD) in seen[0].head
    assert "through the proxy http://127.0.0.1:" in str(raised[0])
    assert found_in("".join(map(told, raised))) == []
    assert logged(debug_log.records) == set()


def test_nor_when_several_servers_were_asked(debug_log, no_waits):
    """The error says what each of them said."""
    with hostile(FAULTS["a page that quotes"]) as first, hostile(FAULTS["500 that quotes the prompt"]) as second:
        raised = failures(first.url, other_urls=(second.url,))
        assert all(any("canary-prompt" in one.whole for one in server.seen) for server in (first, second))

    assert found_in("".join(map(told, raised))) == []
    assert logged(debug_log.records) == set()
