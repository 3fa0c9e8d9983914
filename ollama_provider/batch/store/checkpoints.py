"""Checkpoints: the part of the outcomes since the last one is sealed, after the model's digest was compared.

Every outcome is recorded with the digest of the model that gave it. If the digest cannot be read, it is unknown whether
the model has changed since the last comparison. The outcomes since then are recorded without a digest. Later runs find
them all the same, since their key contains the digest; a run that sees another digest asks again.

If the digest at one of several servers has changed, that server is left out of the run. What it answered since the last
comparison is discarded and asked again at the others, or kept without a digest. The rest is sealed.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from typing import Any, Literal

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import ModelChangedError
from ollama_provider.batch.records import Outcome, Provenance
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import shared_fields

logger = logging.getLogger(__name__)

#: Bytes of outcomes that make a checkpoint before its time, and bytes that hold new requests back until it is made.
_PART, _UNSEALED = 8 << 20, 64 << 20
#: Seconds between the first checkpoints of a run: 1, 2 and 5 s after its start. In an object store nothing is kept
#: before, and a run that dies soon, each time, would come no further.
_EARLY = (1.0, 1.0, 3.0)
#: Seconds for reading the digest at a checkpoint, and at the end of a run.
_DIGEST_TIMEOUT, _LAST_DIGEST_TIMEOUT = 10.0, 1.0


#: What is to be asked again, and its outcome, which is discarded.
Discarded = tuple[Any, Outcome]
LeaveOut = Callable[[str, str, Sequence[Discarded]], Exception | None]


class Checkpoints:
    """Takes outcomes, and seals the parts that they are in.

    Args:
        journal: where the outcomes go.
        look_up_digest: asks the server with that URL for the model's current digest; None if the server lists none.
        on_digest_change: see `FailurePolicy`.
        leave_out: sends nothing more to the server with that URL, for that reason, and asks the items of discarded
            outcomes again; returns the error that ends the run if no server is left. None where there is one server.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        look_up_digest: Callable[[str], Awaitable[str | None]],
        on_digest_change: Literal["stop", "continue"],
        leave_out: LeaveOut | None = None,
    ) -> None:
        self._journal = journal
        self._look_up_digest = look_up_digest
        self._on_digest_change = on_digest_change
        self._leave_out = leave_out
        self._keeps_items = leave_out is not None and on_digest_change == "stop"
        self._no_server: Exception | None = None
        # The end of the input makes a checkpoint, too, where there are several servers.
        self._making = asyncio.Lock()
        # To force a part to the disk, or to upload it, takes long; to append an outcome takes microseconds.
        self._sealer = ThreadPoolExecutor(1, "batch-parts")
        self._changed: ModelChangedError | None = None
        self._part_is_full = asyncio.Event()
        #: What the outcomes of each server have in common from here on, by its URL; empty before a server was asked.
        self.provenances: dict[str, Provenance] = {}
        self._shared: dict[str, str] = {}
        #: Servers with outcomes since their digest was last compared, and those outcomes if they may be discarded.
        self._to_compare: defaultdict[str, list[Discarded]] = defaultdict(list)

    @property
    def provenance(self) -> Provenance | None:
        """What the outcomes of the first server have in common; None before a server was asked."""
        return next(iter(self.provenances.values()), None)

    def set_provenance(self, provenance: Provenance) -> None:
        """Set what the outcomes of a server have in common from here on."""
        self.provenances[provenance.server] = provenance
        self._shared[provenance.server] = shared_fields(vars(provenance))

    def add(
        self, number: int, outcome: Outcome, *, server: str = "", shared: str | None = None, item: Any = None
    ) -> None:
        """Append an outcome to the open part: in a local directory it survives a kill of the process from now on.

        Args:
            number: of the key, from `Journal.find`.
            outcome: of that key.
            server: URL of the server that it comes from; empty for one of an earlier run.
            shared: see `Journal.add`; None for what all outcomes of the server have in common.
            item: what is asked again if the outcome is discarded alone; None for an outcome of no request.

        Raises:
            RejectedReplyError: the outcome cannot be written as JSON.
            StorageError: it cannot be written.
        """
        self._journal.add(number, outcome, self._shared[server] if shared is None else shared)
        answered = self._to_compare[server]
        if self._keeps_items and item is not None:
            answered.append((item, outcome))
        if self._journal.unsealed >= _PART:
            self._part_is_full.set()

    @property
    def lags(self) -> bool:
        """Whether so much waits to be sealed that no new requests should be sent."""
        return self._journal.unsealed > _UNSEALED

    async def make_periodically(self, seconds: float, afterwards: Callable[[], None]) -> None:
        """Make a checkpoint every so many *seconds*, or earlier when a part is full, until cancelled."""
        for pause in _pauses(seconds):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._part_is_full.wait()
            self._part_is_full.clear()
            await self._make(_DIGEST_TIMEOUT)
            afterwards()

    async def make_last(self) -> None:
        """Make a checkpoint while the rows that it may discard can still be asked again.

        Raises:
            NoServerError: no server is left.
            StorageError: it cannot be written.
        """
        await self._make(_LAST_DIGEST_TIMEOUT)

    async def close(self) -> None:
        """Make the last checkpoint.

        Raises:
            ModelChangedError: the outcomes are those of another model.
            NoServerError: the same, where there are several servers, and none is left.
            StorageError: it cannot be written.
        """
        try:
            await self._make(_LAST_DIGEST_TIMEOUT)
        finally:
            self._sealer.shutdown(wait=True)

    async def _make(self, digest_timeout: float) -> None:
        async with self._making:
            if not self._journal.end_part():
                return
            try:
                await self._compare_digests(digest_timeout)
            except ModelChangedError:
                self._journal.end_part()  # with the outcomes that came during the comparison
                await self._in_thread(self._journal.discard_parts)
                raise
            await self._in_thread(self._journal.seal_parts)
            if self._no_server is not None:
                raise self._no_server

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._sealer, work)

    async def _compare_digests(self, seconds: float) -> None:
        """Compare the model's digest at each server with the one that the waiting outcomes are recorded with.

        Raises:
            ModelChangedError: a model is another one, now or at an earlier comparison. The waiting outcomes are
                removed then.
        """
        if self._changed is not None:
            raise self._changed
        servers, self._to_compare = self._to_compare, defaultdict(list)
        # A merge sends no requests, and a server that lists no digest cannot show a change.
        known = [
            provenance
            for server in sorted(servers)
            if (provenance := self.provenances.get(server)) and provenance.digest is not None
        ]
        try:
            found = await asyncio.gather(*(self._digest(provenance.server, seconds) for provenance in known))
            for provenance, digest in zip(known, found, strict=True):
                answered = servers.pop(provenance.server)
                if digest != provenance.digest:
                    await self._on_difference(provenance, digest, answered)
        except asyncio.CancelledError:  # at the end of the run, which makes the last checkpoint
            for server, answered in servers.items():
                self._to_compare[server] += answered
            raise

    async def _digest(self, server: str, seconds: float) -> str | None:
        try:
            async with asyncio.timeout(seconds):
                return await self._look_up_digest(server)
        except (OllamaError, TimeoutError):
            return None

    async def _on_difference(self, known: Provenance, digest: str | None, answered: list[Discarded]) -> None:
        before = self._shared[known.server]
        if digest is None:
            logger.warning(
                "The digest of model %r at %s could not be read: the answers since the last checkpoint are kept "
                "without a digest.", known.model, known.server,
            )  # fmt: skip
            await self._remove_digest(known, before)
            return
        change = (
            f"Model {known.model!r} at {known.server} changed during the run, from digest {known.digest} to {digest}."
        )
        if self._leave_out is not None:
            await self._change_at_one(self._leave_out, known, change, answered)
            return
        if self._on_digest_change == "stop":
            self._changed = ModelChangedError(
                f"{change} The answers up to the last checkpoint are kept; start again to ask the new model."
            )
            raise self._changed
        logger.warning("%s The results from here on are those of the new model.", change)
        self._journal.end_part()  # with the outcomes that came during the comparison
        self.set_provenance(replace(known, digest=digest))
        await self._remove_digest(known, before)

    async def _change_at_one(
        self, leave_out: LeaveOut, known: Provenance, change: str, answered: list[Discarded]
    ) -> None:
        self._journal.end_part()  # with the outcomes that came during the comparison
        discarded = answered + self._to_compare.pop(known.server, [])
        for _, outcome in discarded:
            number, _ = self._journal.find(bytes.fromhex(outcome.key))
            self._journal.mark_requested(number)
        if self._on_digest_change == "continue":
            then = "What it answered since the last checkpoint is kept without a digest."
        else:
            then = f"The {len(discarded)} rows that it answered since the last checkpoint are asked again elsewhere."
        self._no_server = leave_out(known.server, f"{change} {then}", discarded) or self._no_server
        if self._on_digest_change == "continue":
            await self._remove_digest(known, self._shared[known.server])
        else:
            keys = frozenset(outcome.key.encode("ascii") for _, outcome in discarded)
            await self._change_parts(partial(self._journal.remove, keys))

    async def _remove_digest(self, known: Provenance, shared: str) -> None:
        without = shared_fields(vars(replace(known, digest=None)))
        await self._change_parts(partial(self._journal.replace_shared, shared, without))

    async def _change_parts(self, work: Callable[[], None]) -> None:
        # In the thread that seals, since it may be sealing these parts; and in any case, since the last checkpoint of a
        # run that is ended meanwhile does not compare these outcomes again.
        await asyncio.shield(self._in_thread(work))


def _pauses(seconds: float) -> Iterator[float]:
    """Return the seconds before each checkpoint of a run."""
    return (min(pause, seconds) for pause in chain(_EARLY, repeat(seconds)))
