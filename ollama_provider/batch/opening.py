"""What a run works with: the directory of a batch with its lock, and what earlier runs left in it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ollama_provider.batch.errors import (
    StorageError,
    SystemRefusedError,
)
from ollama_provider.batch.records import ServerShare
from ollama_provider.batch.report.run_report import RunReport
from ollama_provider.batch.requests import preflight
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.progress import Counters, Progress, ProgressMeter
from ollama_provider.batch.results.table import TableWriter, WrittenKeys
from ollama_provider.batch.scheduling.availability import leave_out_changed
from ollama_provider.batch.scheduling.connections import Server
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.spec import BatchSpec, Names, Shard
from ollama_provider.batch.stop import StopSignal
from ollama_provider.batch.store import manifest as manifests
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.checkpoints import Checkpoints
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.manifest import Manifest
from ollama_provider.batch.store.storage import Storage, open_storage


@contextlib.contextmanager
def open_directory(directory: Any, shard: Shard | None) -> Iterator[tuple[Storage, shards.RunLock]]:
    """Open the directory of a batch, and its lock, which is not taken yet; close both at the end.

    Args:
        directory: see `ollama_provider.batch.store.storage.open_storage`.
        shard: that the run does; None for a whole batch.

    Raises:
        StorageError: it cannot be used.
        SystemRefusedError: raised in the block for what the operating system refuses elsewhere.
    """
    storage = open_storage(directory)
    lock = shards.RunLock(storage, shard)
    try:
        yield storage, lock
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise SystemRefusedError(
            f"The operating system refused something outside of the directory: {reason} ({type(error).__name__})."
        ) from error
    finally:
        with contextlib.suppress(StorageError):
            lock.release()
        storage.close()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all phases of a run work with.

    Attributes:
        spec: what to do.
        storage: the directory.
        shard: which part of the batch; None for a whole one.
        names: of the files that the run keeps beside the outcomes.
        manifest: the directory's, as the run found it.
        journal: knows the outcome of each key.
        checkpoints: store outcomes.
        order: the rows in the order of the input.
        table: writes good results into a table; None where there is none.
        scheduler: decides which request is sent next.
        servers: of the connection, in its order.
        counters: count rows.
        meter: measures pace.
        on_progress: called with the progress.
        stop: ends the run early.
        report: keeps the history, and writes the page.
    """

    spec: BatchSpec
    storage: Storage
    shard: Shard | None
    names: Names
    manifest: Manifest
    journal: Journal
    checkpoints: Checkpoints
    order: RowOrder
    table: TableWriter | None
    scheduler: Scheduler
    servers: Sequence[Server]
    counters: Counters
    meter: ProgressMeter
    on_progress: Callable[[Progress], None]
    stop: StopSignal
    report: RunReport

    @staticmethod
    def now() -> float:
        """Return the seconds of the event loop's clock, which never goes back."""
        return asyncio.get_running_loop().time()

    def progress(self, state: str) -> Progress:
        """Return how it goes now; *state* is one word for it."""
        plan, counters, now = self.scheduler.plan, self.counters, self.now()
        counters.resolve(self.journal.state)
        return self.meter.read(
            now,
            ok=plan.ok + counters.reused,
            failed=plan.failed + counters.failed_before,
            reused=counters.reused,
            asked=plan.ok + plan.failed,
            tokens=counters.tokens,
            concurrency=self.scheduler.in_flight_limit,
            state=state,
            servers=self.shares(now),
        )

    def shares(self, now: float) -> tuple[ServerShare, ...]:
        """Return what each server did so far; nothing for a merge, which asks none."""
        if self.spec.mode == "merge":
            return ()
        return tuple(server.state.share(now, now - self.meter.began) for server in self.servers)

    def sample_history(self) -> None:
        """Add the numbers of now to the history. That of a merge is the history of the shards."""
        if self.spec.mode == "merge":
            return
        plan, now = self.scheduler.plan, self.now()
        self.report.sample(
            now,
            rows=plan.ok + plan.failed,
            tokens=self.counters.tokens,
            in_flight=plan.in_flight,
            servers=self.shares(now),
        )

    def places(self, keys: Collection[str]) -> dict[str, tuple[int, Any]]:
        """Return index and id of the first row with each of these keys, of those that this run has read."""
        wanted = {self.journal.find(bytes.fromhex(key))[0]: key for key in keys}
        found: dict[str, tuple[int, Any]] = {}
        for index, number, fields in self.order.rows():
            if key := wanted.pop(number, None):
                found[key] = index, json.loads(b"{%b}" % fields)["id"]
                if not wanted:
                    break
        return found


@contextlib.asynccontextmanager
async def open_run(
    spec: BatchSpec,
    storage: Storage,
    servers: Sequence[Server],
    on_progress: Callable[[Progress], None],
    stop: StopSignal,
) -> AsyncIterator[Run]:
    """Read what earlier runs left in the directory.

    Raises:
        StorageError: it is damaged, or was made by a later version of this package.
    """
    meter = ProgressMeter(Run.now())
    shard = spec.the_shard()
    names = spec.names
    manifest = manifests.for_run(storage, spec.mode, names)
    journal = await asyncio.to_thread(
        Journal,
        storage,
        manifest.pass_number,
        shard=None if shard is None else shard.name,
        keep_replies=spec.output_type is not None,
    )
    model, _ = preflight.split_model(spec.model)
    failures, per_minute = spec.failures, spec.pace.requests_per_minute
    plan = Plan(failures, [server.state for server in servers], 60 / per_minute if per_minute else 0.0)
    scheduler, counters = Scheduler(plan), Counters()
    controls = {server.state.name: server.control for server in servers}
    checkpoints = Checkpoints(
        journal,
        look_up_digest=lambda server: controls[server].digest(model),
        on_digest_change=failures.on_digest_change,
        leave_out=None if len(servers) == 1 else partial(leave_out_changed, scheduler, counters),
    )
    order = RowOrder(with_fields=spec.id_column is not None or spec.keep_columns is not None)
    table = None
    if spec.into is not None:
        written = await asyncio.to_thread(WrittenKeys, storage, spec.into.target, shard)
        table = TableWriter(
            spec.into,
            written,
            storage,
            journal,
            vectors=spec.embedding is not None,
            max_outage=failures.max_outage,
            pause=stop.pause,
        )
    report = await asyncio.to_thread(
        RunReport,
        storage,
        names,
        manifest.pass_number,
        merges=spec.mode == "merge",
        page=names == Names(),
        shows_prompts=spec.report_prompts,
        clock=meter.began,
    )
    try:
        yield Run(
            spec=spec,
            storage=storage,
            shard=shard,
            names=names,
            manifest=manifest,
            journal=journal,
            checkpoints=checkpoints,
            order=order,
            table=table,
            scheduler=scheduler,
            servers=servers,
            counters=counters,
            meter=meter,
            on_progress=on_progress,
            stop=stop,
            report=report,
        )
    finally:
        if table is not None:
            await table.close()
        order.close()
        # Nothing of a run goes on after it: another one may have the directory then.
        await asyncio.to_thread(report.thread.shutdown)
