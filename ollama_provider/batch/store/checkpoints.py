"""Outcomes become parts, and the model is looked at before each of them is sealed.

The rest of the engine's waiting, in a module of its own: when to write, in which thread, and what to do when the
server's model is not the one that the outcomes are put down to.

Not to know is not to know that nothing changed: outcomes that came before a look which failed are put down to no
digest. They are found again all the same, since their key holds the digest, and a run that sees another one asks anew.
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

#: Bytes of outcomes that make a part before its time, and that hold new requests back until it is written.
_PART, _UNWRITTEN = 8 << 20, 64 << 20
#: Seconds for a look at the digest before a part is sealed; and at the end of a run.
_LOOK, _LAST_LOOK = 10.0, 1.0


class Checkpoints:
    """Takes outcomes and makes parts of them.

    Args:
        journal: where they go.
        look_up_digest: asks the server which digest the model has now; None if it does not say.
        on_digest_change: see `BatchSpec`.
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
        self._full = asyncio.Event()
        #: What the outcomes from here on have in common; None before the server was asked.
        self.provenance: Provenance | None = None
        self._shared = ""

    def set_provenance(self, provenance: Provenance) -> None:
        """Say what the outcomes from here on have in common."""
        self.provenance = provenance
        self._shared = shared_fields(vars(provenance))

    def add(self, number: int, outcome: Outcome, shared: str | None = None) -> None:
        """Take an outcome; see `Journal.add`. *shared* is None for what the run has in common."""
        self._journal.add(number, outcome, self._shared if shared is None else shared)
        if self._journal.unwritten >= _PART:
            self._full.set()

    @property
    def lags(self) -> bool:
        """So much waits to be written that nothing more should be asked."""
        return self._journal.unwritten > _UNWRITTEN

    async def write_periodically(self, seconds: float, afterwards: Callable[[], None]) -> None:
        """Seal every so many seconds, and when there is enough for a part; for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._full.wait()
            self._full.clear()
            await self._seal(_LOOK)
            afterwards()

    async def close(self) -> None:
        """Seal what there is.

        Raises:
            ModelChangedError: it is another model's work.
            StorageError: it cannot be written.
        """
        try:
            await self._seal(_LAST_LOOK)
        finally:
            self._writer.shutdown(wait=True)

    async def _seal(self, patience: float) -> None:
        if self._journal.end_part():
            await self._look(patience)
            await self._write(self._journal.write_parts)

    async def _write(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def _look(self, patience: float) -> None:
        """Compare the model's digest with the one that what waits to be sealed is put down to.

        Raises:
            ModelChangedError: it is another one, now or when it was looked at before: what waits is never sealed.
        """
        if self._changed is not None:
            raise self._changed
        known = self.provenance
        if known is None or known.digest is None:
            return  # A merge asks nothing; and a server that lists no digest cannot show a change.
        try:
            async with asyncio.timeout(patience):
                digest = await self._look_up_digest()
        except (OllamaError, TimeoutError):
            digest = None
        if digest == known.digest:
            return
        if digest is None:
            logger.warning(
                "The digest of model %r at %s could not be looked at: what was answered since the last look is kept "
                "without one.", known.model, known.server,
            )  # fmt: skip
            await self._put_down_to_nobody(known, self._shared)
            return
        what = (
            f"Model {known.model!r} at {known.server} changed during the run, from digest {known.digest} to {digest}."
        )
        if self._on_digest_change == "stop":
            self._changed = ModelChangedError(
                f"{what} What it answered up to the look before is kept; start again to ask the new one."
            )
            raise self._changed
        logger.warning("%s The results from here on are the new one's.", what)
        self._journal.end_part()  # with what came while we looked
        before = self._shared
        self.set_provenance(replace(known, digest=digest))
        await self._put_down_to_nobody(known, before)

    async def _put_down_to_nobody(self, known: Provenance, shared: str) -> None:
        nobody = shared_fields(vars(replace(known, digest=None)))
        # In the thread that writes, since it may be at work on what waits.
        await self._write(partial(self._journal.replace_shared, shared, nobody))
