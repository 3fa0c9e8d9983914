"""One AsyncClient for all coroutines of an event loop that use the same server with the same settings.

A triggerer runs a thousand waiting triggers in one event loop. A client for each of them, with its own connections,
would cost more than their requests.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from weakref import WeakKeyDictionary

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings


@dataclass
class _Shared:
    """A client and how many use it."""

    settings: Settings
    concurrency: int
    client: AsyncClient
    users: int = 0


@dataclass
class _Loop:
    """The clients of one event loop."""

    clients: list[_Shared] = field(default_factory=list)
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


@asynccontextmanager
async def shared_client(settings: Settings, *, listener: Listener, concurrency: int) -> AsyncIterator[AsyncClient]:
    """Yield the client shared by all callers with equal arguments in this loop; the last one to leave closes it.

    Args:
        settings: how to reach the server.
        listener: called with the events of all users if this is the first of them, in the task of each call.
        concurrency: limit of concurrent requests. Others wait.

    Raises:
        InvalidRequestError: see `AsyncClient`.
    """
    loop = _loops.setdefault(asyncio.get_running_loop(), _Loop())
    async with loop.making:
        shared = next((s for s in loop.clients if s.settings == settings and s.concurrency == concurrency), None)
        if shared is None:
            # In a thread, since it reads certificates from files and imports aiohttp, which takes half a second.
            client = await asyncio.to_thread(_make, settings, listener, concurrency)
            shared = _Shared(settings, concurrency, client)
            loop.clients.append(shared)
        shared.users += 1
    try:
        yield shared.client
    finally:
        shared.users -= 1
        if not shared.users:
            loop.clients.remove(shared)
            await shared.client.close()


def _make(settings: Settings, listener: Listener, concurrency: int) -> AsyncClient:
    import_module("httpx_aiohttp")
    return AsyncClient(settings, listener=listener, concurrency=concurrency)
