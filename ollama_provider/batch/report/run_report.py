"""What a run does for its report: it keeps the history, writes the page, and says the most important of it in the log.

Nothing of that may fail a run, or slow it. While requests are sent, the page is made anew in a thread, and the more
seldom the longer that takes: a hundredth of the time at most.
"""

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from ollama_provider.batch.errors import BatchError
from ollama_provider.batch.records import Outcome, ServerShare
from ollama_provider.batch.report.gather import Report, gather
from ollama_provider.batch.report.history import History, What, history_for
from ollama_provider.batch.report.page import render
from ollama_provider.batch.report.prompts import ShownPrompts, prompts_for
from ollama_provider.batch.report.runs import read_shards
from ollama_provider.batch.report.stored import store_report
from ollama_provider.batch.report.tables import reasons_table, servers_table
from ollama_provider.batch.spec import Names
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.storage import ObjectStorage, Storage, write

logger = logging.getLogger(__name__)

REPORT = "report.html"

#: Times the seconds that the page took, until it is made again; and seconds at least, in an object store.
_SELDOM, _LEAST_IN_STORE = 100, 60.0


def write_report(storage: Storage, journal: Journal | None = None) -> str:
    """Write the page of a directory, and return where it is.

    Args:
        storage: the directory.
        journal: see `gather`.

    Raises:
        StorageError: the directory cannot be read or written.
    """
    _write(storage, gather(storage, journal))
    return f"{storage.location}/{REPORT}"


def _write(storage: Storage, report: Report) -> None:
    store_report(storage, report)
    write(storage, REPORT, render(report))


@contextlib.contextmanager
def whatever_happens() -> Iterator[None]:
    """Log what goes wrong with a report, whatever a row or a file may hold: the results are there."""
    try:
        yield
    except Exception as error:
        # Not the error's own text, which may quote an answer.
        trace = "\n" + "".join(traceback.format_tb(error.__traceback__))
        logger.warning(
            "The report cannot be written: %s",
            error if isinstance(error, BatchError) else f"an unexpected {type(error).__name__}{trace}",
        )


class RunReport:
    """The history and the page of one run.

    Args:
        storage: the directory.
        names: of the files of the run.
        pass_number: over the input. History and prompts go on with each run of the same pass.
        merges: the run merges the shards, so it goes on with what these have kept.
        page: whether to write the page: a shard leaves that to the merge.
        shows_prompts: whether to keep the prompts of the rows that the page shows. Without it, those that an earlier
            run has kept are removed.
        clock: seconds of the clock by which `sample` is told the time, now.

    Attributes:
        thread: for `refresh`. Always the same one, since the memory allocator keeps for each thread as much as that has
            needed at a time, and here that are megabytes. Whoever ends the run waits for it.
    """

    def __init__(
        self,
        storage: Storage,
        names: Names,
        pass_number: int,
        *,
        merges: bool,
        page: bool,
        shows_prompts: bool,
        clock: float,
    ) -> None:
        self._storage = storage
        self._names = names
        self._page = page
        self.thread = ThreadPoolExecutor(1, "batch-report")
        self._took = 0.0
        # Two threads may not write the page at once: a run may end while it is being refreshed.
        self._writing = Lock()
        # One look at the time of day: it may be set while the run goes on.
        self._offset = time.time() - clock
        self._reasons: dict[str, str] = {}
        self._history = History(pass_number)
        self._prompts = ShownPrompts(pass_number) if shows_prompts else None
        try:
            self._go_on(merges=merges)
        except BatchError as error:
            logger.warning("The report does not show earlier runs: %s", error)
        self._history.begin(clock + self._offset)
        self.save()

    def _go_on(self, *, merges: bool) -> None:
        """Go on with what earlier runs have kept; remove prompts that are not wanted any more."""
        storage, names, pass_number = self._storage, self._names, self._history.pass_number
        if self._prompts is None:
            storage.delete(names.prompts)
        else:
            self._prompts = prompts_for(storage, names.prompts, pass_number)
        self._history = history_for(storage, names.history, pass_number)
        if merges and (shards := read_shards(storage)):
            self._history = shards.history
            self._history.pass_number = pass_number
            if self._prompts is not None:
                self._prompts.merge(shards.prompts)

    def sample(self, clock: float, *, rows: int, tokens: int, in_flight: int, servers: Sequence[ServerShare]) -> None:
        """Add what was done since the last call to the history.

        Args:
            clock: the time.
            rows: with an outcome of the run so far.
            tokens: of the run so far.
            in_flight: requests in flight now.
            servers: their shares so far.
        """
        now = clock + self._offset
        out = sum(share.seconds_out for share in servers) / len(servers) if servers else 0.0
        self._history.add(now, rows=rows, tokens=tokens, in_flight=in_flight, out=out)
        for share in servers:
            if share.reason and not self._reasons.get(share.server):
                self._history.note(now, "outage", f"{share.server}: {share.reason}")
            self._reasons[share.server] = share.reason

    @property
    def shows_prompts(self) -> bool:
        """Whether `keep_prompt` has anything to do."""
        return self._prompts is not None

    def keep_prompt(self, outcome: Outcome, prompt: str) -> None:
        """Keep the prompt of a row, if that is wanted and the page shows the row.

        Args:
            outcome: of the row.
            prompt: as people read it; empty if it could not be rendered.
        """
        if self._prompts is not None:
            self._prompts.add(outcome, prompt, time.time())

    def save(self) -> None:
        """Write history and prompts. What goes wrong is logged."""
        try:
            self._history.save(self._storage, self._names.history)
            if self._prompts is not None:
                self._prompts.save(self._storage, self._names.prompts)
        except BatchError as error:
            logger.warning("The history for the report cannot be written: %s", error)

    @property
    def seldom(self) -> float:
        """Seconds to wait at least before the next `refresh`."""
        return max(_SELDOM * self._took, _LEAST_IN_STORE if isinstance(self._storage, ObjectStorage) else 0.0)

    def refresh(self, journal: Journal) -> None:
        """Write the page as it is now. What goes wrong is left to the next time: a part may just be removed.

        Args:
            journal: of the run. Another index of the same rows would take as much memory again.
        """
        if not self._page:
            return
        began = time.thread_time()
        with self._writing:
            try:
                write_report(self._storage, journal)
            except Exception as error:  # as at the end
                logger.debug("The report was not refreshed: %s", type(error).__name__)
        self._took = time.thread_time() - began

    def end(
        self,
        clock: float,
        what: What,
        reason: str,
        *,
        servers: Sequence[ServerShare] = (),
        places: Callable[[Collection[str]], Mapping[str, tuple[int, Any]]] = lambda _: {},
        journal: Journal | None = None,
    ) -> None:
        """Note the end of the run, write history and page, and log the share of each server and why rows failed.

        What goes wrong is logged.

        Args:
            clock: the time.
            what: ``ended`` or ``failed``.
            reason: why it ended.
            servers: their shares. A single one is not logged: all rows are its.
            places: returns index and id of the rows with these keys. The directory has them once a batch is complete.
            journal: of the run, if it is complete.
        """
        self._history.note(clock + self._offset, what, reason)
        self.save()
        if len(servers) > 1:
            logger.info("The servers of this run:\n%s", servers_table(servers))
        if not self._page:
            return
        with whatever_happens(), self._writing:
            report = gather(self._storage, journal)
            if report.reasons:
                unknown = {row.key for each in report.reasons for row in each.rows if row.index is None}
                table = reasons_table(report.reasons, places(unknown) if unknown else {})
                logger.warning("Failed rows: %d\n%s", sum(each.count for each in report.reasons), table)
            _write(self._storage, report)
            logger.info("Report: %s/%s", self._storage.location, REPORT)
