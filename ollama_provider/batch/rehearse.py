"""A rehearsal: some rows from all over the input are asked before the night, as the night would ask them.

It is a run of the same engine in the same directory, but only of a sample of the rows, and it writes neither results
nor a table. Its answers are stored like all others and have the same keys, so the night does not ask these rows again.
What failed in it is asked again by the night, and by the next rehearsal. What it keeps for itself is in ``rehearsal/``.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ollama_provider.api.events import Listener
from ollama_provider.api.settings import Settings
from ollama_provider.batch.arguments import Rehearsal, Window
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.opening import Run, open_directory, open_run
from ollama_provider.batch.records import Provenance, Query, Row
from ollama_provider.batch.rehearsal import forecast
from ollama_provider.batch.rehearsal.calls import Call, Calls, Parallel, parallel
from ollama_provider.batch.rehearsal.result import Memory, RehearsalResult, RehearsedRow, rehearsed_row
from ollama_provider.batch.report.run_report import whatever_happens, write_report
from ollama_provider.batch.requests import preflight
from ollama_provider.batch.results.progress import Progress
from ollama_provider.batch.rows.reader import RowReader
from ollama_provider.batch.rows.sampling import RowSample, sample_rows
from ollama_provider.batch.rows.snapshot import fetch_once
from ollama_provider.batch.scheduling.background import renewing
from ollama_provider.batch.scheduling.connections import Server, connect
from ollama_provider.batch.sending import request_all, unload
from ollama_provider.batch.spec import REHEARSAL_NAMES, BatchSpec
from ollama_provider.batch.stop import StopSignal
from ollama_provider.batch.store.journal import PartReader, State
from ollama_provider.batch.store.shards import RunLock
from ollama_provider.batch.store.storage import Storage, write

logger = logging.getLogger(__name__)

#: Seconds between two looks, while rows are read, whether the run shall stop.
_LOOK = 0.5


def rehearse_batch(
    spec: BatchSpec,
    settings: Settings,
    directory: Any,
    sample: int = Rehearsal.sample,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: StopSignal | None = None,
    listener: Listener | None = None,
) -> RehearsalResult:
    """Ask some rows from all over the input, and return what the whole batch will be like.

    Failed rows do not end it, whatever *spec* tolerates, and its window does not count. It writes into no table.

    Args:
        spec: the batch; its *mode* is ignored.
        settings: the servers, and how to treat them.
        directory: of the batch.
        sample: how many rows.
        on_progress: called every second.
        stop: ends the rehearsal early, within some seconds. What is there is returned.
        listener: told of the client's events.

    Raises:
        BatchError: see the tree in `ollama_provider.batch.errors`; a `DirectoryBusyError` while the batch itself runs.
        OllamaError: one that fails every row.
        StoppedError: it was told to stop before the first request.
    """
    stop = stop or StopSignal()
    with open_directory(directory, None) as (storage, lock):
        (some,) = sample_for([spec], sample, storage, lock, stop)
        result = rehearse_sample(
            spec, some, settings, storage, lock, stop=stop, on_progress=on_progress, listener=listener,
            earlier=found_earlier(storage),
        )  # fmt: skip
        keep(storage, result, {})
    return result


def sample_for(
    specs: Sequence[BatchSpec], count: int, storage: Storage, lock: RunLock, stop: StopSignal
) -> list[RowSample[int]]:
    """Return for each of several batches with the same rows the same sample, with the lengths of its own prompts.

    The input is read once. It may be one that can be read only once, or one that grows meanwhile.

    Args:
        specs: the batches, one at least.
        count: how many rows.
        storage: the directory, where the rows of a query are kept.
        lock: of the directory; it is taken.
        stop: ends the reading.

    Raises:
        BatchError: the directory is busy, or the input cannot be read.
        StoppedError: *stop* was set.
    """
    if any(spec.shard is not None for spec in specs):
        raise InputError("shard: a rehearsal is one of the whole batch; leave it out.")
    lock.take(stop.pause)
    rows, options = specs[0].rows, specs[0].input_options
    if isinstance(rows, Query):
        rows = fetch_once(rows, storage, stop.pause, lock.renew)
    prompts = [RowReader(spec, ()) for spec in specs]
    some = sample_rows(
        rows, options, count, lambda row: [_length(each.prompt(row)) for each in prompts], _checks(stop, lock)
    )
    of_each = [
        tuple(length for lengths in some.lengths if (length := lengths[number]) is not None)
        for number in range(len(specs))
    ]
    return [RowSample(some.rows, some.total, some.exact, some.looked_at, lengths) for lengths in of_each]


def rehearse_sample(
    spec: BatchSpec,
    sample: RowSample[int],
    settings: Settings,
    storage: Storage,
    lock: RunLock,
    *,
    on_progress: Callable[[Progress], None] | None,
    stop: StopSignal,
    listener: Listener | None,
    earlier: Mapping[str, Any],
) -> RehearsalResult:
    """Ask the rows of a sample, and return what the whole batch will be like; see `rehearse_batch`.

    Args:
        spec: the batch.
        sample: of its rows.
        settings: the servers, and how to treat them.
        storage: the directory.
        lock: of the directory, which is ours.
        on_progress: called every second.
        stop: ends the rehearsal early.
        listener: told of the client's events.
        earlier: what the last rehearsal found; see `found_earlier`.
    """
    calls, prompts = Calls(time.monotonic, listener), RowReader(spec, ())
    asked = asyncio.run(
        _ask(
            _as_rehearsal(spec),
            [each.row for each in sample.rows],
            settings,
            storage,
            lock,
            on_progress=on_progress or (lambda _: None),
            stop=stop,
            listener=calls,
        )
    )
    texts = [prompts.prompt(each.row) for each in sample.rows]
    return _conclude(spec, sample, texts, asked, calls.ended, earlier=earlier)


def found_earlier(storage: Storage) -> dict[str, Any]:
    """Return what the last rehearsal in a directory found; empty if there was none.

    Raises:
        StorageError: the directory cannot be read.
    """
    try:
        found = json.loads(storage.read(REHEARSAL_NAMES.summary) or b"{}")
    except ValueError:  # a copy may be damaged
        return {}
    return found if isinstance(found, dict) else {}


def keep(storage: Storage, result: RehearsalResult, compared: Mapping[str, RehearsalResult]) -> None:
    """Write what a rehearsal found, and the report that shows it.

    Args:
        storage: the directory.
        result: what was found last.
        compared: what was found of each batch, by its name, where several are compared; else empty.

    Raises:
        StorageError: the directory cannot be written.
    """
    found = result.as_dict(prompt=False, answers=True)
    if compared:
        found["compared"] = {name: each.as_dict(prompt=False, answers=True) for name, each in compared.items()}
    write(storage, REHEARSAL_NAMES.summary, f"{json.dumps(found, indent=2, default=str)}\n".encode())
    with whatever_happens():
        logger.info("Report: %s", write_report(storage))


def _length(prompt: str | None) -> int | None:
    return None if prompt is None else len(prompt.encode(errors="replace"))


def _checks(stop: StopSignal, lock: RunLock) -> Callable[[], None]:
    """Return what ends the reading of many rows, and shows meanwhile that this run is alive."""
    due = 0.0

    def check() -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + _LOOK
            stop.check()
            lock.renew()

    return check


def _as_rehearsal(spec: BatchSpec) -> BatchSpec:
    """Return the batch for a run that no row ends, at any time of day, without a table."""
    failures = spec.failures
    return replace(
        spec,
        mode="rehearse",
        into=None,
        keep_columns=None,
        report_prompts=False,
        window=Window(unload_after=spec.window.unload_after),
        failures=replace(
            failures,
            max_failed_rows=None,
            max_failed_ratio=1.0,
            on_broken_row="dead_letter",
            on_truncation="dead_letter" if failures.on_truncation == "fail" else failures.on_truncation,
        ),
    )


@dataclass(frozen=True)
class _Asked:
    """What came of the rows.

    Attributes:
        lines: the outcome of each row as a line of a part; None where there is none.
        ids: of the rows.
        fresh: which rows were asked now; the outcomes of others were there.
        stopped: why not all rows were asked; empty if they were.
        provenance: None if there was no row.
        server: URL of the first one.
        directory: where they are.
        memory: None where no server says.
    """

    lines: list[dict[str, Any] | None]
    ids: list[Any]
    fresh: list[bool]
    stopped: str
    provenance: Provenance | None
    server: str
    directory: str
    memory: Memory | None


async def _ask(
    spec: BatchSpec,
    rows: Sequence[Row],
    settings: Settings,
    storage: Storage,
    lock: RunLock,
    *,
    on_progress: Callable[[Progress], None],
    stop: StopSignal,
    listener: Listener,
) -> _Asked:
    """Send requests for the rows, and return what came of them."""
    async with (
        renewing(lock) as renewal,
        connect(spec, settings, listener) as servers,
        open_run(spec, storage, servers, on_progress, stop) as run,
    ):
        try:
            reason = await request_all(run, RowReader(spec, rows), rows, renewal, closing=None)
            memory = await _memory(spec, servers)
        finally:
            await unload(spec, servers)
        on_progress(run.progress("rehearsed"))
        found = await asyncio.to_thread(_outcomes, run, len(rows))
        return _Asked(
            *found,
            stopped="" if None not in found[0] else reason,
            provenance=run.checkpoints.provenance,
            server=servers[0].state.name,
            directory=storage.location,
            memory=memory,
        )


async def _memory(spec: BatchSpec, servers: Sequence[Server]) -> Memory | None:
    """Return where the model is, at the server with the smallest part of it in the memory of GPUs."""
    name, _ = preflight.split_model(spec.model)
    found = [await server.control.in_memory(name) for server in servers if server.state.in_service]
    known = [Memory(each.size, each.size_vram, each.size_vram >= each.size) for each in found if each and each.size]
    return min(known, key=lambda each: each.in_vram / each.size, default=None)


def _outcomes(run: Run, count: int) -> tuple[list[dict[str, Any] | None], list[Any], list[bool]]:
    lines: list[dict[str, Any] | None] = [None] * count
    ids: list[Any] = [None] * count
    fresh = [False] * count
    parts = PartReader(run.storage, run.journal)
    try:
        for index, number, fields in run.order.rows():
            ids[index] = json.loads(b"{%b}" % fields)["id"]
            if run.journal.state(number) in {State.OK, State.FAILED}:
                lines[index] = json.loads(parts.line(*run.journal.place(number)))
                fresh[index] = run.journal.is_from_this_run(number)
    finally:
        parts.close()
    return lines, ids, fresh


def _conclude(
    spec: BatchSpec,
    sample: RowSample[int],
    prompts: Sequence[str | None],
    asked: _Asked,
    calls: Sequence[Call],
    *,
    earlier: Mapping[str, Any],
) -> RehearsalResult:
    """Make of the answers what is told of the night."""
    rows = [
        rehearsed_row(
            each.why,
            each.row.place,
            row_id,
            line,
            length=_length(prompt),
            fresh=fresh,
            vectors=spec.embedding is not None,
        )
        for each, prompt, row_id, line, fresh in zip(
            sample.rows, prompts, asked.ids, asked.lines, asked.fresh, strict=True
        )
    ]
    context = forecast.context_use(spec, _num_ctx(spec, asked), rows, sample)
    provenance = asked.provenance
    return RehearsalResult(
        model=preflight.split_model(spec.model)[0],
        digest=None if provenance is None else provenance.digest,
        server=asked.server if provenance is None else provenance.server,
        server_version="" if provenance is None else provenance.server_version,
        directory=asked.directory,
        prompt=next((prompt for prompt in prompts if prompt is not None), None),
        rows=tuple(rows),
        total=sample.total,
        counted=sample.exact,
        looked_at=sample.looked_at,
        prompt_tokens=forecast.spread([row.prompt_tokens for row in rows if row.prompt_tokens]),
        tokens=forecast.spread([row.tokens for row in rows if row.tokens]),
        night=forecast.night(spec, sample, rows, calls, _at_a_time(rows, asked, calls, earlier)),
        context=context,
        memory=asked.memory,
        failures=forecast.failures(rows),
        failing=forecast.failing(rows, context, spec),
        stopped=asked.stopped,
    )


def _num_ctx(spec: BatchSpec, asked: _Asked) -> int | None:
    return spec.options.num_ctx or (None if asked.provenance is None else asked.provenance.num_ctx)


def _at_a_time(
    rows: Sequence[RehearsedRow], asked: _Asked, calls: Sequence[Call], earlier: Mapping[str, Any]
) -> Parallel | None:
    """Return how many requests were worked on; as an earlier rehearsal saw it, if this one had few rows to ask."""
    if 2 * sum(row.fresh for row in rows) < len(rows) and asked.provenance is not None:
        for found in (earlier, *earlier.get("compared", {}).values()):
            night = found.get("night") or {}
            if night.get("requests_at_a_time") and found.get("digest") == asked.provenance.digest:
                return Parallel(night["requests_at_a_time"], night["waited"])
    return parallel(calls)
