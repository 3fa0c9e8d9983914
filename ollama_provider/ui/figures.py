"""Where a batch stands, in a few figures: from its summary, and while there is none from its directory."""

from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ollama_provider.batch import read_runs
from ollama_provider.ui.batches import Batch
from ollama_provider.ui.directories import UnreadableError, read_directory
from ollama_provider.ui.threads import Cached, TooSlowError

#: Seconds that a list of batches waits for a directory.
_WAIT = 3.0


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Figures:
    """Where a batch stands; None is unknown. What is no number is refused: a file may hold anything.

    Attributes:
        rows: of the input.
        ok, failed: rows so far.
        rows_per_second: asked in this run.
        seconds_left: at this pace.
        trouble: why nothing is known, in a sentence.
    """

    rows: int | None = None
    ok: int = 0
    failed: int = 0
    rows_per_second: float | None = None
    seconds_left: float | None = None
    trouble: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.rows or self.ok or self.failed)


async def figures(batch: Batch) -> Figures:
    """Return where a batch stands."""
    if batch.summary is not None:
        return of_summary(batch.summary)
    try:
        return await _progress.get(batch.directory, read_directory, batch.directory, _read, seconds=_WAIT)
    except (UnreadableError, TooSlowError) as error:
        return Figures(trouble=str(error))


_progress: Cached[Figures] = Cached(seconds=3)


def of_summary(summary: dict[str, Any]) -> Figures:
    """Return the figures of a summary. See `ollama_provider.batch.Summary`."""
    ok, failed, seconds = (summary.get(name) or 0 for name in ("ok", "failed", "seconds"))
    asked = ok + failed - (summary.get("reused") or 0)
    return Figures(summary.get("rows"), ok, failed, asked / seconds if seconds else None, summary.get("seconds_left"))


def _read(storage: Any) -> Figures:
    found = read_runs(storage).numbers()
    names = ("rows", "ok", "failed", "rows_per_second", "seconds_left")
    return Figures(**{name: found[name] for name in names if name in found})
