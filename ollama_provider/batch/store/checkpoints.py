"""Checkpoints: outcomes are written into parts, and the model's digest is compared before each of them is written.

Every outcome is recorded with the digest of the model that gave it. If the digest cannot be read, it is unknown whether
the model has changed since the last comparison. The outcomes since then are recorded without a digest. Later runs find
them all the same, since their key contains the digest; a run that sees another digest asks again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Literal

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import ModelChangedError
from ollama_provider.batch.records import Outcome, Provenance
from ollama_provider.batch.store.journal import Journal, shared_fields

logger = logging.getLogger(__name__)

#: Bytes of outcomes that make a checkpoint before its time, and bytes that hold new requests back until it is written.
_PART, _UNWRITTEN = 8 << 20, 64 << 20
#: Seconds for reading the digest at a checkpoint, and at the end of a run.
_DIGEST_TIMEOUT, _LAST_DIGEST_TIMEOUT = 10.0, 1.0


class Checkpoints:
    """Takes outcomes and writes them into parts.

    Args:
        journal: where the outcomes go.
        look_up_digest: asks the server for the model's current digest; None if the server lists none.
        on_digest_change: see `FailurePolicy`.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        look_up_digest: Callable[[], Awaitable[str | None]],
        on_digest_change: Literal["stop", "continue"],
    ) -> None:
        self._journal = journal
        self._look_up_digest = look_up_digest
        self._on_digest_change = on_digest_change
        self._writer = ThreadPoolExecutor(1, "batch-parts")
        self._changed: ModelChangedError | None = None
        self._part_is_full = asyncio.Event()
        #: What the outcomes from here on have in common; None before the server was asked.
        self.provenance: Provenance | None = None
        self._shared = ""

    def set_provenance(self, provenance: Provenance) -> None:
        """Set what the outcomes from here on have in common."""
        self.provenance = provenance
        self._shared = shared_fields(vars(provenance))

    def add(self, number: int, outcome: Outcome, shared: str | None = None) -> None:
        """Add an outcome to the next checkpoint.

        Args:
            number: of the key, from `Journal.find`.
            outcome: of that key.
            shared: see `Journal.add`; None for what the run has in common.

        Raises:
            RejectedReplyError: the outcome cannot be written as JSON.
        """
        self._journal.add(number, outcome, self._shared if shared is None else shared)
        if self._journal.unwritten >= _PART:
            self._part_is_full.set()

    @property
    def lags(self) -> bool:
        """Whether so much waits to be written that no new requests should be sent."""
        return self._journal.unwritten > _UNWRITTEN

    async def write_periodically(self, seconds: float, afterwards: Callable[[], None]) -> None:
        """Write a checkpoint every so many *seconds*, or earlier when a part is full, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._part_is_full.wait()
            self._part_is_full.clear()
            await self._write(_DIGEST_TIMEOUT)
            afterwards()

    async def close(self) -> None:
        """Write the last checkpoint.

        Raises:
            ModelChangedError: the outcomes are those of another model.
            StorageError: it cannot be written.
        """
        try:
            await self._write(_LAST_DIGEST_TIMEOUT)
        finally:
            self._writer.shutdown(wait=True)

    async def _write(self, digest_timeout: float) -> None:
        if self._journal.end_part():
            await self._compare_digest(digest_timeout)
            await self._in_thread(self._journal.write_parts)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def _compare_digest(self, seconds: float) -> None:
        """Compare the model's digest with the one that the waiting outcomes are recorded with.

        Raises:
            ModelChangedError: the model is another one, now or at an earlier comparison. The waiting outcomes are never
                written then.
        """
        if self._changed is not None:
            raise self._changed
        known = self.provenance
        if known is None or known.digest is None:
            return  # A merge sends no requests, and a server that lists no digest cannot show a change.
        try:
            async with asyncio.timeout(seconds):
                digest = await self._look_up_digest()
        except (OllamaError, TimeoutError):
            digest = None
        if digest == known.digest:
            return
        if digest is None:
            logger.warning(
                "The digest of model %r at %s could not be read: the answers since the last checkpoint are kept "
                "without a digest.", known.model, known.server,
            )  # fmt: skip
            await self._remove_digest(known, self._shared)
            return
        change = (
            f"Model {known.model!r} at {known.server} changed during the run, from digest {known.digest} to {digest}."
        )
        if self._on_digest_change == "stop":
            self._changed = ModelChangedError(
                f"{change} The answers up to the last checkpoint are kept; start again to ask the new model."
            )
            raise self._changed
        logger.warning("%s The results from here on are those of the new model.", change)
        self._journal.end_part()  # with the outcomes that came during the comparison
        before = self._shared
        self.set_provenance(replace(known, digest=digest))
        await self._remove_digest(known, before)

    async def _remove_digest(self, known: Provenance, shared: str) -> None:
        without = shared_fields(vars(replace(known, digest=None)))
        # In the thread of the writer, since it may be writing these parts.
        await self._in_thread(partial(self._journal.replace_shared, shared, without))
