"""One run of a batch: what those who feed it, send its requests and finish it work on together."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ollama_provider.batch.results.files import RowOrder
from ollama_provider.batch.results.progress import Counters, Progress, ProgressMeter
from ollama_provider.batch.results.table import TableWriter, WrittenKeys
from ollama_provider.batch.scheduling.concurrency import Climb, Fixed, FixedPack, PackSize
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.spec import BatchSpec, Names, Shard
from ollama_provider.batch.store import manifest
from ollama_provider.batch.store.checkpoints import Checkpoints
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.manifest import Manifest
from ollama_provider.batch.store.storage import Storage


@dataclass(kw_only=True)
class Run:
    """Where a run stands.

    Attributes:
        spec: what to do.
        shard: which of the batch; None for a whole one.
        names: where it keeps what is not an outcome.
        storage: the directory.
        manifest: what the directory is for, and which pass over the input it is in.
        journal: what is known of each key.
        checkpoints: writes outcomes into parts.
        table_writer: writes good results into a table; None where there is none.
        order: the rows that were read.
        plan: what is asked next.
        climb: how many requests may be in flight.
        pack: how many texts share a request.
        counters: what came of the rows.
        meter: how fast it goes.
        clock: seconds that never go back.
    """

    spec: BatchSpec
    shard: Shard | None
    names: Names
    storage: Storage
    manifest: Manifest
    journal: Journal
    checkpoints: Checkpoints
    table_writer: TableWriter | None
    order: RowOrder
    plan: Plan
    climb: Climb | Fixed
    pack: PackSize | FixedPack
    meter: ProgressMeter
    clock: Callable[[], float]
    counters: Counters = field(default_factory=Counters)

    def progress(self, state: str) -> Progress:
        """Return how it goes now; *state* is one word for it."""
        self.counters.resolve(self.journal.state)
        return self.meter.read(
            self.clock(),
            ok=self.plan.ok + self.counters.reused,
            failed=self.plan.failed + self.counters.failed_before,
            reused=self.counters.reused,
            asked=self.plan.ok + self.plan.failed,
            tokens=self.counters.tokens,
            concurrency=self.plan.bound(self.climb.target),
            state=state,
        )

    async def close(self) -> None:
        """End, without writing what is not written."""
        if self.table_writer is not None:
            await self.table_writer.close()
        self.order.close()


async def open_run(
    spec: BatchSpec,
    storage: Storage,
    *,
    pause: Callable[[float], None],
    look_up_digest: Callable[[], Awaitable[str | None]],
) -> Run:
    """Return a run in its beginning, with all that earlier ones left in the directory.

    Args:
        spec: what to do.
        storage: the directory.
        pause: waits so many seconds; may raise to give up.
        look_up_digest: asks the server which digest the model has now; None if it does not say.

    Raises:
        StorageError: what is there is damaged, or was made by a later version of this package.
    """
    clock = asyncio.get_running_loop().time
    meter = ProgressMeter(clock())
    shard = spec.the_shard()
    names = Names() if shard is None else shard.names
    current = manifest.for_run(storage, spec.mode, names)
    journal = await asyncio.to_thread(
        Journal,
        storage,
        current.pass_number,
        shard=None if shard is None else shard.name,
        keep_replies=spec.output_type is not None,
    )
    table_writer = None
    # What shards have asked goes into the table with the merge, which knows the place of each row.
    if spec.into is not None and shard is None:
        written = await asyncio.to_thread(WrittenKeys, storage, spec.into.target)
        table_writer = TableWriter(spec.into, written, storage, journal, max_outage=spec.limits.max_outage, pause=pause)
    return Run(
        spec=spec,
        shard=shard,
        names=names,
        storage=storage,
        manifest=current,
        journal=journal,
        checkpoints=Checkpoints(journal, look_up_digest=look_up_digest, on_digest_change=spec.on_digest_change),
        table_writer=table_writer,
        order=RowOrder(with_ids=spec.id_column is not None),
        plan=Plan(spec.limits, interval=60 / spec.requests_per_minute if spec.requests_per_minute else 0.0),
        climb=_climb(spec),
        pack=_pack(spec),
        meter=meter,
        clock=clock,
    )


def _climb(spec: BatchSpec) -> Climb | Fixed:
    if spec.concurrency != "auto":
        return Fixed(spec.concurrency)
    # A server works on one text for a vector at a time: the second request is there when the first is done.
    return Climb() if spec.task != "embed" else Fixed(2)


def _pack(spec: BatchSpec) -> PackSize | FixedPack:
    if spec.pack != "auto":
        return FixedPack(spec.pack)
    return PackSize() if spec.task == "embed" else FixedPack()
