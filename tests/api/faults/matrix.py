"""Sends every operation into a fault, from both clients, and compares what comes of it."""

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pytest

from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import AttemptFailed, Event
from ollama_provider.api.settings import Settings
from ollama_provider.api.timeouts import MAX_LINE_BYTES
from tests.api.faults.fault import Fault, Outcome
from tests.api.faults.operations import OPERATIONS, PASSWORD, SECRETS, Operation
from tests.api.faults.server import Server, Stage

#: Bytes that a server can send before a client has read them.
BUFFERS = 16 * 2**20
#: One of so many variants of a fault is retried.
RETRIED = 5
#: Seconds after which a case has failed, whatever it waits for.
LONGEST = 20.0


@dataclass(frozen=True)
class Result:
    """What came of a request.

    Attributes:
        operation: what was sent.
        raised: what the caller got; None if there was a reply.
        attempts: how often the request was sent.
        earlier: errors of the attempts before the last one.
    """

    operation: Operation
    raised: BaseException | None
    attempts: int
    earlier: tuple[OllamaError, ...]


def operations(fault: Fault, variant: str) -> list[Operation]:
    """Return the operations that can meet a fault."""
    return [operation for operation in OPERATIONS if fault.has(variant, operation)]


def settings_for(fault: Fault, variant: str, place: dict[str, Any]) -> Settings:
    """Return the settings of a client that meets a fault."""
    # One retry shows whether there is one. The variants of a fault have that in common, so not all of them are retried.
    retried = [*fault.scripts, *fault.places].index(variant) % RETRIED == 0
    return Settings(**place, **fault.settings, password=PASSWORD, max_attempts=2 if retried else 1, auto_pull=False)


def with_client(fault: Fault, variant: str, settings: Settings) -> list[Result]:
    """Send all operations through one `Client`."""
    events: list[Event] = []

    def send(client: Client, operation: Operation) -> BaseException | None:
        request = operation.limited(**fault.limits)
        try:
            if operation.streamed:
                with client.stream(request) as replies:
                    for _ in replies:
                        pass
            else:
                client.send(request)
        except Exception as error:
            return error
        return None

    todo, at_once = operations(fault, variant), _at_once(fault)
    with Client(settings, listener=events.append, concurrency=at_once) as client, ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(send, client, operation) for operation in todo]
        late = wait(waiting, LONGEST).not_done
        client.close()
        raised = [TimeoutError() if future in late else future.result() for future in waiting]
    return list(_results(todo, raised, events))


async def with_async_client(fault: Fault, variant: str, settings: Settings) -> list[Result]:
    """Send all operations through one `AsyncClient`."""
    events: list[Event] = []

    async def send(client: AsyncClient, operation: Operation) -> BaseException | None:
        request = operation.limited(**fault.limits)
        try:
            async with asyncio.timeout(LONGEST):
                if operation.streamed:
                    async with client.stream(request) as replies:
                        async for _ in replies:
                            pass
                else:
                    await client.send(request)
        except Exception as error:
            return error
        return None

    todo, at_once = operations(fault, variant), _at_once(fault)
    async with AsyncClient(settings, listener=events.append, concurrency=at_once) as client:
        raised = await asyncio.gather(*(send(client, operation) for operation in todo))
    return list(_results(todo, raised, events))


def _at_once(fault: Fault) -> int:
    """Return how many requests are sent at the same time: all where time passes; else one, which is cheaper."""
    return len(OPERATIONS) if fault.slow or fault.places else 1


def _results(todo: list[Operation], raised: list[BaseException | None], events: list[Event]) -> Iterator[Result]:
    failed = [event for event in events if isinstance(event, AttemptFailed)]
    for operation, error in zip(todo, raised, strict=True):
        earlier = tuple(event.error for event in failed if (event.path, event.model) == operation.key)
        yield Result(operation, error, len(earlier) + 1, earlier)


def differences(fault: Fault, result: Result, settings: Settings) -> Iterator[str]:
    """Yield how a result differs from what the fault's table says."""
    operation, expected = result.operation, fault.outcome[result.operation.group]
    for error in (*result.earlier, result.raised):
        yield from _faults_of(error, expected, operation, settings.base_url)
    if result.attempts != min(_attempts(fault, expected, operation), settings.max_attempts):
        yield f"sent {result.attempts} times"


def _faults_of(error: BaseException | None, expected: Outcome, operation: Operation, host: str) -> Iterator[str]:
    if error is None or not expected.error:
        if error is not None or expected.error:
            yield repr(error)
        return
    if type(error) not in expected.error:
        yield repr(error)
    elif error.host != host or host not in str(error) or error.model != operation.key[1]:
        yield f"does not say where: {error}"
    if found := [text for text in _told(error) for secret in SECRETS if secret in text]:
        yield f"tells a secret: {found[0]}"


def _told(error: BaseException | None) -> Iterator[str]:
    """Yield all that a traceback shows of an error."""
    while error is not None:
        yield from (str(error), repr(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _attempts(fault: Fault, expected: Outcome, operation: Operation) -> int:
    begun = operation.streamed and operation.group in fault.handed_on
    return 2 if expected.again and operation.request.repeatable and not begun else 1


def variants(faults: Iterable[Fault]) -> list[Any]:
    """Return the parameters of a test of faults: each variant of each fault."""
    return [
        pytest.param(fault, variant, id=f"{fault.what} {variant}".strip())
        for fault in faults
        for variant in (*fault.scripts, *fault.places)
    ]


def check(fault: Fault, variant: str, server: Server) -> None:
    """Send all operations into a fault, from both clients, and check what comes of each."""
    stage = server.play(fault.scripts[variant]) if fault.scripts else None
    settings = settings_for(fault, variant, {"base_url": stage.url} if stage else fault.places[variant](server))
    results = {
        "Client": with_client(fault, variant, settings),
        "AsyncClient": asyncio.run(with_async_client(fault, variant, settings)),
    }
    found = [
        f"{client}, {result.operation.name}: {difference}"
        for client, sent in results.items()
        for result in sent
        for difference in differences(fault, result, settings)
    ]
    if stage is not None:
        found += _taken(fault, stage)

    assert not found, "\n".join(found)


def _taken(fault: Fault, stage: Stage) -> Iterator[str]:
    """Yield which operations took more bytes than their bound, and what the buffers hold."""
    for operation in OPERATIONS:
        name = operation.name
        request = operation.limited(**fault.limits)
        bound = min(request.max_bytes, MAX_LINE_BYTES) if request.streamed else request.max_bytes
        if stage.sent[name] > (bound + BUFFERS) * stage.requests[name]:
            yield f"{name} took {stage.sent[name]} bytes in {stage.requests[name]} requests"
