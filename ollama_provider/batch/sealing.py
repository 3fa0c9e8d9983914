"""Outcomes become parts, and the model is looked at before each of them is sealed.

The rest of the engine's waiting, in a module of its own: when to write, in which thread, and what to do when the
server's model is not the one that the outcomes are put down to.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import ModelChangedError
from ollama_provider.batch.journal import Journal, shared_fields
from ollama_provider.batch.records import Outcome, Provenance

logger = logging.getLogger(__name__)

#: Bytes of outcomes that make a part before its time, and that hold new requests back until it is written.
_PART, _UNSEALED = 8 << 20, 64 << 20
#: Seconds for a look at the digest before a part is sealed; and at the end of a run.
_LOOK, _LAST_LOOK = 10.0, 1.0


class Sealing:
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
        self._full = asyncio.Event()
        #: What the outcomes from here on have in common; None before the server was asked.
        self.provenance: Provenance | None = None
        self._shared = ""

    def put_down_to(self, provenance: Provenance) -> None:
        """Say what the outcomes from here on have in common."""
        self.provenance = provenance
        self._shared = shared_fields(vars(provenance))

    def add(self, number: int, outcome: Outcome, shared: str | None = None) -> None:
        """Take an outcome; see `Journal.add`. *shared* is None for what the run has in common."""
        self._journal.add(number, outcome, self._shared if shared is None else shared)
        if self._journal.unsealed >= _PART:
            self._full.set()

    @property
    def lags(self) -> bool:
        """So much waits to be written that nothing more should be asked."""
        return self._journal.unsealed > _UNSEALED

    async def at_times(self, seconds: float, afterwards: Callable[[], None]) -> None:
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
            OSError: it cannot be written.
        """
        try:
            await self._seal(_LAST_LOOK)
        finally:
            self._writer.shutdown(wait=True)

    async def _seal(self, patience: float) -> None:
        if self._journal.cut_off():
            await self._check_digest(patience)
            await self._write(self._journal.seal)

    async def _write(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def _check_digest(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                digest = await self._look_up_digest()
        except (OllamaError, TimeoutError):
            return  # The server is gone or busy. What came, came before that.
        known = self.provenance
        if known is None or digest is None or digest == known.digest:
            return
        what = (
            f"Model {known.model!r} at {known.server} changed during the run, from digest {known.digest} to {digest}."
        )
        if self._on_digest_change == "stop":
            raise ModelChangedError(f"{what} What it answered before is kept; start again to ask the new one.")
        logger.warning("%s The results from here on are the new one's.", what)
        self.put_down_to(replace(known, digest=digest))
