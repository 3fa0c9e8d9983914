"""One client for all in an event loop who talk to the same server in the same way."""

import asyncio

import pytest

from ollama_provider.api.errors import ClientClosedError, InvalidRequestError
from ollama_provider.api.schemas import TagsRequest
from ollama_provider.api.settings import Settings
from ollama_provider.api.shared_clients import shared_client


def client(concurrency: int = 16, **settings):
    return shared_client(Settings(**settings), listener=lambda _: None, concurrency=concurrency)


async def test_equal_settings_share_a_client(ollama):
    """Secrets are part of them."""
    async with (
        client(base_url=ollama.url, password="a") as first,
        client(base_url=ollama.url, password="a") as second,
        client(base_url=ollama.url, password="b") as other,
        client(base_url=ollama.url, password="a", concurrency=17) as wider,
    ):
        assert first is second
        assert len({id(first), id(other), id(wider)}) == 3


async def test_the_last_one_who_leaves_closes_it(ollama):
    """However they leave; the next one gets a new one."""
    async with client(base_url=ollama.url) as shared:
        with pytest.raises(ZeroDivisionError):
            async with client(base_url=ollama.url):
                raise ZeroDivisionError
        assert (await shared.send(TagsRequest())).models

    with pytest.raises(ClientClosedError):
        await shared.send(TagsRequest())
    async with client(base_url=ollama.url) as again:
        assert (await again.send(TagsRequest())).models


async def test_those_who_come_at_once_share_it_too(ollama):
    """A triggerer starts with hundreds."""
    seen = set()

    async def come() -> None:
        async with client(base_url=ollama.url) as shared:
            seen.add(id(shared))
            await shared.send(TagsRequest())

    await asyncio.gather(*(come() for _ in range(50)))

    assert len(seen) == 1


async def test_settings_that_make_no_client_are_refused_and_leave_nothing(ollama):
    """The next one with good settings is not disturbed."""
    with pytest.raises(InvalidRequestError):
        async with client(base_url="https://h", verify="/no/such/file.pem"):
            pass
    async with client(base_url=ollama.url) as shared:
        assert (await shared.send(TagsRequest())).models


def test_event_loops_share_nothing(ollama):
    """Connections belong to the loop that made them."""

    async def ask() -> int:
        async with client(base_url=ollama.url) as shared:
            await shared.send(TagsRequest())
            return id(shared._servers[0].pool)

    asyncio.run(ask())
    asyncio.run(ask())

    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/tags"] * 2
