"""Tasks beside the workers: they end together, and for one reason."""

import asyncio

import pytest

from ollama_provider.batch.scheduling.background import background_tasks
from ollama_provider.batch.stop import StoppedError, StopSignal


async def forever(ended):
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(True)


async def fail(error, cause=None):
    await asyncio.sleep(0)
    raise error from cause


def test_tasks_are_cancelled_at_the_end_of_the_block():
    """They never end by themselves."""
    ended = []

    async def run():
        async with background_tasks() as start:
            start(forever(ended))
            await asyncio.sleep(0)
        return list(ended)

    assert asyncio.run(run()) == [True]


def test_the_first_error_ends_the_block_and_is_raised_itself():
    """Not a group of errors, and with its own cause."""
    ended, error, cause = [], KeyError("first"), ValueError("cause")

    async def run():
        async with background_tasks() as start:
            start(forever(ended))
            start(fail(error, cause))
            start(fail(RuntimeError("second")))
            await asyncio.Event().wait()

    with pytest.raises(KeyError) as raised:
        asyncio.run(run())

    assert raised.value is error
    assert raised.value.__cause__ is cause
    assert ended == [True]


def test_an_error_of_a_group_in_the_block_is_raised_itself():
    """As that of a worker."""
    ended, error = [], KeyError("worker")

    async def run():
        async with background_tasks() as start:
            start(forever(ended))
            async with asyncio.TaskGroup() as workers:
                workers.create_task(fail(error))
                workers.create_task(forever(ended))

    with pytest.raises(KeyError) as raised:
        asyncio.run(run())

    assert raised.value is error
    assert ended == [True, True]


def test_a_cancelled_block_ends_its_tasks():
    """As Ctrl-C cancels it."""
    ended = []

    async def work():
        async with background_tasks() as start:
            start(forever(ended))
            await asyncio.Event().wait()

    async def run():
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert asyncio.run(run())
    assert ended == [True]


@pytest.mark.parametrize("before", [True, False], ids=["set before", "set while waiting"])
def test_a_stop_signal_ends_the_block(before):
    """From whatever thread it is set; and setting it after the event loop has ended does no harm."""
    stop, late = StopSignal(), StopSignal()
    if before:
        stop.set("enough")

    async def run():
        async with background_tasks() as start:
            start(stop.wait())
            start(late.wait())
            await asyncio.to_thread(stop.set, "enough")
            await asyncio.Event().wait()

    with pytest.raises(StoppedError, match="enough"):
        asyncio.run(run())

    late.set("too late")
    assert late.reason == "too late"
