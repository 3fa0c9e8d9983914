"""Both clients behind one face, so that each promise is tested on both."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import httpx
import pytest

from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.events import Event
from ollama_provider.api.retry import without_waiting
from ollama_provider.api.schemas import Reply, Request
from ollama_provider.api.settings import Settings

#: What a test may put in place of the network.
Answering = Callable[[httpx.Request], httpx.Response]


class On(Protocol):
    """A client, driven to the end."""

    events: list[Event]

    def send(self, *requests: Request[Any], answering: Answering | None = None, **settings: Any) -> list[Any]:
        """Send requests one after another through one client; return the replies."""
        ...

    def stream(self, request: Request[Any], *, parts: int | None = None, **settings: Any) -> list[Any]:
        """Read a streamed answer, or its first parts; return them."""
        ...


class OnClient:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, *requests: Request[Any], answering: Answering | None = None, **settings: Any) -> list[Any]:
        transport = httpx.MockTransport(answering) if answering else None
        with Client(Settings(**settings), listener=self.events.append, transport=transport) as client:
            return [client.send(request) for request in requests]

    def stream(self, request: Request[Any], *, parts: int | None = None, **settings: Any) -> list[Any]:
        found: list[Reply] = []
        with Client(Settings(**settings), listener=self.events.append) as client, client.stream(request) as replies:
            for reply in replies:
                found.append(reply)
                if len(found) == parts:
                    break
        return found


class OnAsyncClient:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, *requests: Request[Any], answering: Answering | None = None, **settings: Any) -> list[Any]:
        async def run() -> list[Any]:
            transport = httpx.MockTransport(answering) if answering else None
            async with AsyncClient(Settings(**settings), listener=self.events.append, transport=transport) as client:
                return [await client.send(request) for request in requests]

        return asyncio.run(run())

    def stream(self, request: Request[Any], *, parts: int | None = None, **settings: Any) -> list[Any]:
        async def run() -> list[Any]:
            found: list[Reply] = []
            async with (
                AsyncClient(Settings(**settings), listener=self.events.append) as client,
                client.stream(request) as replies,
            ):
                async for reply in replies:
                    found.append(reply)
                    if len(found) == parts:
                        break
            return found

        return asyncio.run(run())


@pytest.fixture(params=[OnClient, OnAsyncClient], ids=["Client", "AsyncClient"])
def on(request: pytest.FixtureRequest) -> On:
    """A client, each of the two in turn."""
    return request.param()


@pytest.fixture(autouse=True)
def _no_waits():
    with without_waiting():
        yield
