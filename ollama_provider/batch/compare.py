"""A comparison: several models or prompts, each rehearsed with the same rows of the same input."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from os import PathLike
from typing import Any

from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch.arguments import Rehearsal
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.opening import open_directory
from ollama_provider.batch.rehearsal.result import RehearsalResult
from ollama_provider.batch.rehearse import found_earlier, keep, rehearse_sample, sample_for
from ollama_provider.batch.results.progress import Progress
from ollama_provider.batch.scheduling.connections import connect
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.stop import StoppedError, StopSignal


def candidates(
    spec: BatchSpec, models: Sequence[str], prompts: Mapping[str, str | PathLike[str]]
) -> dict[str, BatchSpec]:
    """Return each of the models with each of the prompts, by a name that tells them apart.

    Args:
        spec: everything else.
        models: none is that of *spec*.
        prompts: by their names; none is that of *spec*.

    Raises:
        InputError: a model is given twice, or prompts beside messages.
    """
    if len(set(models)) < len(models):
        raise InputError(f"models: one is given twice: {', '.join(models)}.")
    if prompts and spec.messages is not None:
        raise InputError("prompts, messages: a batch has a prompt or messages; leave one of them out.")
    named: Mapping[str, str | PathLike[str]] = prompts or {"": spec.prompt}
    found = {}
    for model, (name, prompt) in product(models or [spec.model], named.items()):
        parts = [*([model] if len(models) > 1 or not name else []), *([name] if name else [])]
        found[", ".join(parts)] = replace(spec, model=model, prompt=prompt)
    return found


def compare_batches(
    specs: Mapping[str, BatchSpec],
    settings: Settings,
    directory: Any,
    sample: int = Rehearsal.sample,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: StopSignal | None = None,
    listener: Listener | None = None,
) -> dict[str, RehearsalResult]:
    """Rehearse several batches with the same rows, one after the other.

    The input is read once. All answers are kept in the directory, and the report there shows them side by side. The
    batch that is chosen finds its own there.

    Args:
        specs: the batches by their names, with the same rows; see `candidates`.
        settings: the servers, and how to treat them.
        directory: of the batch.
        sample: how many rows.
        on_progress: called every second.
        stop: ends the comparison early, within some seconds. What is there is returned.
        listener: told of the client's events.

    Returns:
        What was found of each; of those that were not reached, since it was stopped, nothing.

    Raises:
        BatchError: see `rehearse_batch`.
        OllamaError: a model is missing or cannot do what is asked: that is known before the first row; or see
            `rehearse_batch`.
        StoppedError: it was told to stop before the first request.
    """
    stop = stop or StopSignal()
    asyncio.run(_check(list(specs.values()), settings))
    found: dict[str, RehearsalResult] = {}
    with open_directory(directory, None) as (storage, lock):
        samples = sample_for(list(specs.values()), sample, storage, lock, stop)
        earlier = found_earlier(storage)
        for (name, spec), some in zip(specs.items(), samples, strict=True):
            try:
                found[name] = rehearse_sample(
                    spec, some, settings, storage, lock, stop=stop, on_progress=on_progress, listener=listener,
                    earlier=earlier,
                )  # fmt: skip
            except StoppedError:
                if not found:
                    raise
            else:
                keep(storage, found[name], found if len(specs) > 1 else {})
            if stop.reason:
                break
    return found


async def _check(specs: Sequence[BatchSpec], settings: Settings) -> None:
    """Check that the server has all models, and that they can do what is asked."""
    if settings.other_urls:  # one that is away now may be back when its turn comes
        return
    async with connect(specs[0], settings, None) as (server,):
        for spec in specs:
            await server.control.check(spec)
