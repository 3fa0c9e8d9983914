"""The servers of a run, and the connections to them."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch.requests.preflight import ModelControl
from ollama_provider.batch.scheduling.concurrency import concurrency_limit, pack_size
from ollama_provider.batch.scheduling.servers import ServerState
from ollama_provider.batch.spec import BatchSpec


@dataclass(frozen=True)
class Server:
    """A server of a run, and the connections to it.

    Attributes:
        state: what the plan knows of it.
        control: checks and loads models.
        client: makes one attempt for a request: it is the plan that retries.
    """

    state: ServerState
    control: ModelControl
    client: AsyncClient


@contextlib.asynccontextmanager
async def connect(
    spec: BatchSpec, settings: Settings, listener: Listener | None, trace_rows: float = 0.0
) -> AsyncIterator[tuple[Server, ...]]:
    """Open the connections to all servers; *trace_rows* is the probability that a request for a row gets a span."""
    timeouts = settings.timeouts.model_copy(update=spec.timeouts.of_requests())
    load_timeouts = timeouts.model_copy(update={"first_token": spec.timeouts.load})
    alone, servers = not settings.other_urls, []
    async with contextlib.AsyncExitStack() as stack:
        for number, own in enumerate(settings.servers):
            patient = own.model_copy(update={"timeouts": load_timeouts})
            single_attempt = own.model_copy(update={"timeouts": timeouts, "max_attempts": 1})
            # A server is ready when it is known that the models of all are the same.
            state = ServerState(number, own.base_url, concurrency_limit(spec), pack_size(spec), ready=alone)
            control = ModelControl(await stack.enter_async_context(AsyncClient(patient, listener=listener)))
            limit = state.concurrency.highest
            client = AsyncClient(single_attempt, listener=listener, concurrency=limit, traced=trace_rows)
            servers.append(Server(state, control, await stack.enter_async_context(client)))
        yield tuple(servers)
