"""What Airflow does with a task that defers, without a scheduler and a triggerer."""

import asyncio
import json
from importlib import import_module
from typing import Any

from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.triggers.base import BaseTrigger


def stored(trigger: BaseTrigger) -> BaseTrigger:
    """Return the trigger that another process makes of what Airflow's database keeps."""
    row = Trigger.from_object(trigger)
    module, _, name = row.classpath.rpartition(".")
    return getattr(import_module(module), name)(**row.kwargs)


async def fired(trigger: BaseTrigger) -> Any:
    """Run a trigger to its one event and return the payload, as it arrives."""
    payloads = [event.payload async for event in trigger.run()]
    await trigger.cleanup()
    (payload,) = payloads
    return json.loads(json.dumps(payload, allow_nan=False))


class Pushed(dict[str, Any]):
    """A task instance, as far as an operator looks at it: the XComs that were pushed."""

    def xcom_push(self, key: str, value: Any) -> None:
        self[key] = value


def complete(task: Any) -> Any:
    """Execute a task; where it defers, run the trigger and go on with the event."""
    context = {"ti": Pushed()}
    try:
        return task.execute(context)
    except TaskDeferred as deferred:
        payload = asyncio.run(fired(stored(deferred.trigger)))
        return task.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": payload}, context)
