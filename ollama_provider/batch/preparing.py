"""Before the first row: what the server and the model are, and what is fixed for a run."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from ollama_provider.batch import preflight, rounds
from ollama_provider.batch.control import Control
from ollama_provider.batch.preflight import Findings
from ollama_provider.batch.run import Run


async def prepare(run: Run, sample: Sequence[str], host: str, control: Control) -> Findings:
    """Return what is fixed for the run, and put its outcomes down to that.

    Args:
        run: in its beginning.
        sample: the first prompts.
        host: base URL of the server.
        control: asks the server; not for a merge, which has what its shards had fixed.

    Raises:
        InputError: there is nothing to merge, or it was made with other settings.
        ModelChangedError: a digest is not the demanded one.
        OllamaError: the server does not say, or a model cannot do what is asked.
    """
    if run.spec.mode == "merge":
        return _merged(run)
    name, _ = preflight.split_model(run.spec.model)
    found = preflight.conclude(run.spec, sample, run.round.num_ctx, host, await control.learn(name))
    run.round = replace(run.round, num_ctx=found.num_ctx)
    run.sealing.put_down_to(found.provenance)
    if run.spec.fallback_model is None:
        return found
    name, _ = preflight.split_model(run.spec.fallback_model)
    replies = await control.learn(name)
    fallback = preflight.fallback_of(run.spec.fallback_model, found.task, found.provenance, replies, host)
    return replace(found, fallback=fallback)


def _merged(run: Run) -> Findings:
    provenance = rounds.merged_provenance(run.storage, run.round, run.spec.common())
    task = preflight.task_of(run.spec)
    run.sealing.put_down_to(provenance)
    return Findings(
        task,
        preflight.keys_of(task, provenance.digest),
        preflight.judge_of(run.spec, task, provenance.server, provenance.server_version),
        provenance,
        run.round.num_ctx,
    )


async def begin(run: Run) -> None:
    """Write down what the run is about to do.

    Raises:
        InputError: it is a shard's, and beside it are shards of a batch with other settings.
    """
    provenance = run.sealing.provenance
    run.round = replace(
        run.round,
        settings=run.spec.settings(),
        common=run.spec.common(),
        provenance=None if provenance is None else vars(provenance),
    )
    await asyncio.to_thread(rounds.begin, run.storage, run.round, run.names)
