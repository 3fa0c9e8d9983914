"""Where the outcome of a row goes as soon as it is known."""

import logging
import traceback
from pathlib import Path

from ollama_provider.api.errors import OllamaError, UnforeseenError
from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.report.run_report import RunReport
from ollama_provider.batch.requests.preflight import RunSetup
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.results.progress import Counters
from ollama_provider.batch.store.checkpoints import Checkpoints
from ollama_provider.batch.store.lines import shared_fields

logger = logging.getLogger(__name__)


class OutcomeRecorder:
    """Gives outcomes of one server to the checkpoints and counts them.

    Args:
        checkpoints: keep the outcomes.
        counters: count them.
        setup: of the requests to the server.
        report: takes the prompts that it shows.
    """

    def __init__(self, checkpoints: Checkpoints, counters: Counters, setup: RunSetup, report: RunReport) -> None:
        self._checkpoints = checkpoints
        self._counters = counters
        self._setup = setup
        self._report = report
        self._host = setup.provenance.server
        self._fallback = "" if setup.fallback is None else shared_fields(vars(setup.fallback))
        self._logged: set[str] = set()

    def record(self, item: WorkItem, outcome: Outcome, *, asked: bool = True) -> bool:
        """Record the outcome of a row. An outcome that cannot be stored becomes a failed row.

        Args:
            item: of the row.
            outcome: of the row.
            asked: it comes from the server, so the row is asked again if the server's model turns out to have changed.

        Returns:
            Whether the row has a good result.

        Raises:
            StorageError: the directory cannot be written.
        """
        shared = self._fallback if item.variant.fallback else None
        again = item if asked else None
        try:
            self._checkpoints.add(item.number, outcome, server=self._host, shared=shared, item=again)
        except StorageError:
            raise
        except Exception as error:  # an answer may hold anything
            known = error if isinstance(error, OllamaError) else self.unforeseen(error, "storing its result")
            outcome = self._setup.validator.reject(item, known, None, 0.0)
            self._checkpoints.add(item.number, outcome, server=self._host, shared=shared, item=again)
        self._counters.add(outcome)
        if self._report.shows_prompts:
            self._report.keep_prompt(outcome, self._setup.task.readable(item.prompt) if item.prompt else "")
        return outcome.status == "ok"

    def unforeseen(self, error: Exception, doing: str) -> UnforeseenError:
        """Return the error of a row for an exception that only a bug can raise, in our code or in the user's.

        The first of a kind is logged with its traceback. Neither log nor error has the exception's own text, which may
        quote the prompt or the answer.

        Args:
            error: that was raised.
            doing: what was done for the row just then.
        """
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "an unknown place"
        kind = f"{type(error).__name__} in {place}"
        if kind not in self._logged:
            self._logged.add(kind)
            logger.error(
                "A row failed with an unexpected %s, while %s. Please report this. Rows that fail in the same way are "
                "not logged again.\n%s",
                kind,
                doing,
                "".join(traceback.format_tb(error.__traceback__)),
            )
        return UnforeseenError(f"{kind}, while {doing}", host=self._host, model=self._setup.task.model)
