"""The servers of the connections of type *Ollama*, and a test of each connection."""

import asyncio

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from ollama_provider.api.settings import Settings
from ollama_provider.ui.access import CAN_READ_CONNECTIONS, UserDep
from ollama_provider.ui.rendering import page
from ollama_provider.ui.servers import (
    OllamaConnection,
    ServerState,
    find_connection,
    look,
    readable_connections,
    test,
)
from ollama_provider.ui.threads import Cached, Threads, TooSlowError, in_thread

#: Seconds that the page waits for servers. Those that have not answered by then are on it when it is loaded again.
_WAIT = 2.0
#: Connections that are shown.
_CONNECTIONS = 50
#: For servers alone: a page of a batch must not wait behind servers that hang.
_THREADS = Threads(16, "ollama-servers")

router = APIRouter(dependencies=[CAN_READ_CONNECTIONS])
_states: Cached[ServerState] = Cached(10.0, size=1000, times=0, threads=_THREADS)
_tests: Cached[tuple[bool, str]] = Cached(0.0, times=0, threads=_THREADS)


@router.get("/servers")
async def servers(request: Request, user: UserDep) -> HTMLResponse:
    """Show what each server has on disk and in memory."""
    connections = await in_thread(readable_connections, user)
    shown = connections[:_CONNECTIONS]
    found = await asyncio.gather(*(_look(each, server) for each in shown for server in each.servers))
    states = iter(found)
    return page(
        request,
        "servers.html.jinja",
        tab="servers",
        live=None in found,
        connections=[(each, [(server.base_url, next(states)) for server in each.servers]) for each in shown],
        left_out=len(connections) - len(shown),
    )


async def _look(connection: OllamaConnection, server: Settings) -> ServerState | None:
    """Return what a server says; None if it says nothing yet."""
    # With other settings (a new password) it may say something else.
    key = (connection.conn_id, _fingerprint(server))
    try:
        return await _states.get(key, look, server, seconds=_WAIT)
    except TooSlowError:
        return None


def _fingerprint(settings: Settings) -> int:
    secrets = (settings.password, *settings.headers.values())
    return hash((settings.model_dump_json(), *(each and each.get_secret_value() for each in secrets)))


@router.get("/servers/{connection_id:path}/test")
async def test_connection(request: Request, connection_id: str) -> HTMLResponse:
    """Show what the button *Test* of a connection would say."""
    connection = await in_thread(find_connection, connection_id)
    if connection is None:
        raise HTTPException(404, f"There is no connection {connection_id!r} of type Ollama in Airflow's database.")
    passed, text = False, connection.error
    if connection.settings is not None:
        # Whoever presses it twice waits for the first answer.
        passed, text = await _tests.get((connection_id, _fingerprint(connection.settings)), test, connection.settings)
    return page(request, "test.html.jinja", tab="servers", connection=connection, passed=passed, text=text)
