"""A night's work in one task."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath, Stats
from jinja2 import TemplateNotFound

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas import GenerateRequest, Options, Think
from ollama_provider.batch.engine import run_batch
from ollama_provider.batch.errors import TooManyFailedError
from ollama_provider.batch.plan import Limits
from ollama_provider.batch.progress import Progress
from ollama_provider.batch.spec import BatchSpec, StopSignal
from ollama_provider.observability import TaskObserver
from ollama_provider.operators._base import OllamaOperator, one_of
from ollama_provider.operators._paths import storage_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_GAUGES = ("done", "ok", "failed", "reused", "tokens_per_second", "concurrency")


class OllamaBatchOperator(OllamaOperator):
    """Send each row of an input to a model, N at a time, and put the results into a directory.

    The memory of the batch is that directory: a row with a good result there is not asked again. So a retry goes on
    where the last try was stopped, a cleared task repairs what failed, and a run with some new rows asks only those.
    ``results.jsonl`` has a row for each row of the input, in its order; ``failed.jsonl`` those that failed, and why;
    ``summary.json`` is written last. XCom gets the summary, also when too many rows failed: ``complete``,
    ``directory``, ``rows``, ``ok``, ``failed``, ``reused``, tokens, seconds, and what explains the numbers later
    (``provenance``: model, digest, server, options).

    Args:
        rows: a file or a glob of files on any ``ObjectStoragePath`` (``.jsonl``, ``.csv``, ``.parquet``), read as they
            are needed; or a list of texts or dicts, for instance another task's result.
        prompt: Jinja template for a row: ``{{ row.text }}`` is its column ``text`` (a row that is only a text has just
            that column). It is rendered for each row, in a sandbox, and not by Airflow. May be the name of a file that
            ends in ``.prompt`` or ``.jinja2``, looked up where Airflow looks for templates.
        output_path: folder for the results, on any ``ObjectStoragePath``; give each task one of its own.
        resume: who shares results. ``"run"``: the tries of one DAG run; they are in ``output_path/<run id>``.
            ``"task"``: all runs; they are in *output_path* itself, and each run writes ``results.jsonl`` anew. Another
            name: whoever uses it; they are in ``output_path/<name>``. A mapped task adds its map index.
        mode: ``"failed_only"`` asks again what failed before, and nothing else.
        id_column: column whose value is carried through to the results.
        system: system message for all rows.
        options: the model's options, laid over the connection's. ``num_ctx``, where it is not given, is chosen from the
            first rows.
        keep_alive: how long the model stays in memory afterwards: seconds, ``"5m"``, 0 to unload, -1 for ever.
        think: reasoning on or off, or how much; off by default.
        concurrency: requests in flight, or ``"auto"`` to find out by measuring.
        requests_per_minute: never more than that.
        max_attempts: attempts for a row; an outage of the server uses up none.
        max_failed_rows: so many failed rows leave the task green; without this and the next, none does.
        max_failed_ratio: the same as a share of all rows (0.01 is 1 %).
        max_outage: seconds without any answer after which the task fails.
        on_truncation: a prompt over the context fails its row (``"dead_letter"``), or the task (``"fail"``), or is cut
            by the server and marked in the result (``"flag"``).
        allow_cut: an answer that ended at ``num_predict`` is good.
        on_broken_row: a line that cannot be read stops the task (``"fail"``) or fails alone (``"dead_letter"``).
        on_digest_change: what to do when the server's model changes during the run: ``"stop"`` or ``"continue"``.
        load_timeout: seconds for the first load of the model.
        checkpoint_every: seconds between two sealed parts, which is what a crash can lose.
        auto_pull: pull the model if the server lacks it; None is the connection's setting.
        first_token_timeout: seconds for queue and prompt of a row; None is the connection's setting.
        idle_timeout: seconds between two pieces of an answer; None is the connection's setting.
        total_timeout: seconds for one attempt in all; None is the connection's setting.
    """

    template_fields: Sequence[str] = (
        *OllamaOperator.template_fields,
        "rows",
        "system",
        "output_path",
        "resume",
        "options",
        "keep_alive",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"rows": "json", "system": "md", "options": "json"}
    #: Made by each try.
    _stop: StopSignal | None = None
    hook_overrides = ("auto_pull", "first_token_timeout", "idle_timeout", "total_timeout")

    def __init__(
        self,
        *,
        rows: str | Iterable[str | Mapping[str, Any]],
        output_path: str,
        prompt: str = "{{ row.text }}",
        resume: str = "run",
        mode: Literal["all", "failed_only"] = "all",
        id_column: str | None = None,
        system: str | None = None,
        options: dict[str, Any] | None = None,
        keep_alive: float | str | None = None,
        think: Think = False,
        concurrency: int | Literal["auto"] = "auto",
        requests_per_minute: float | None = None,
        max_attempts: int = Limits.max_attempts,
        max_failed_rows: int | None = None,
        max_failed_ratio: float | None = None,
        max_outage: float = Limits.max_outage,
        on_truncation: Literal["dead_letter", "fail", "flag"] = "dead_letter",
        allow_cut: bool = False,
        on_broken_row: Literal["fail", "dead_letter"] = "fail",
        on_digest_change: Literal["stop", "continue"] = "stop",
        load_timeout: float = BatchSpec.load_timeout,
        checkpoint_every: float = BatchSpec.checkpoint_every,
        auto_pull: bool | None = None,
        first_token_timeout: float | None = None,
        idle_timeout: float | None = None,
        total_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.output_path = output_path
        self.prompt = prompt
        self.resume = resume
        self.mode = mode
        self.id_column = id_column
        self.system = system
        self.options = options
        self.keep_alive = keep_alive
        self.think = think
        self.concurrency = concurrency
        self.requests_per_minute = requests_per_minute
        self.max_attempts = max_attempts
        self.max_failed_rows = max_failed_rows
        self.max_failed_ratio = max_failed_ratio
        self.max_outage = max_outage
        self.on_truncation = on_truncation
        self.allow_cut = allow_cut
        self.on_broken_row = on_broken_row
        self.on_digest_change = on_digest_change
        self.load_timeout = load_timeout
        self.checkpoint_every = checkpoint_every
        self.auto_pull = auto_pull
        self.first_token_timeout = first_token_timeout
        self.idle_timeout = idle_timeout
        self.total_timeout = total_timeout

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a template field, but not a list of rows: a ``{{`` in a document is no template."""
        if content is self.rows and isinstance(content, list | tuple):
            return content
        return super().render_template(content, *args, **kwargs)

    def perform(self, context: "Context") -> dict[str, Any]:
        """Run the batch; return its summary."""
        directory = self.directory(context)
        self.log.info("The results go to %s", directory)
        self._stop = stop = StopSignal()
        try:
            summary = run_batch(
                self.spec(),
                self.hook.settings,
                directory,
                on_progress=self.measure,
                stop=stop,
                listener=TaskObserver(self.log),
            )
        except TooManyFailedError as error:
            if error.summary:
                context["ti"].xcom_push(key="return_value", value=error.summary.as_dict())
            raise
        if stop.reason:
            raise AirflowException(
                f"The batch was stopped after {summary.ok + summary.failed} rows. What it has is kept, and the next "
                "try goes on from there."
            )
        return summary.as_dict()

    def on_kill(self) -> None:
        """Stop: close the requests, keep what there is. Airflow kills the process some seconds later."""
        if self._stop:
            self._stop.set("the task was killed")

    def directory(self, context: "Context") -> ObjectStoragePath:
        """Return where the results go.

        Raises:
            InvalidRequestError: *resume* is no name.
        """
        instance = context["ti"]
        path = storage_path(self.output_path)
        if self.resume == "run":
            # A run id has a time in it, and colons and plus signs are trouble in many a store.
            path /= re.sub(r"[^\w.-]", "_", instance.run_id)
        elif self.resume != "task":
            if not re.fullmatch(r"\w[\w.-]*", self.resume):
                raise InvalidRequestError(f"resume: {self.resume!r} is neither 'run', 'task' nor a name for a folder")
            path /= self.resume
        return path if instance.map_index < 0 else path / str(instance.map_index)

    def spec(self) -> BatchSpec:
        """Return what the batch is to do, with the connection's defaults.

        Raises:
            InvalidRequestError: an argument is wrong.
        """
        one_of("mode", self.mode, "all", "failed_only")
        one_of("on_truncation", self.on_truncation, "dead_letter", "fail", "flag")
        one_of("on_broken_row", self.on_broken_row, "fail", "dead_letter")
        one_of("on_digest_change", self.on_digest_change, "stop", "continue")
        if self.concurrency != "auto" and (not isinstance(self.concurrency, int) or self.concurrency < 1):
            raise InvalidRequestError(f"concurrency: {self.concurrency!r} is neither 'auto' nor a number from 1 on")
        # A request knows how defaults are laid under options, and refuses what is wrong.
        shared = self.hook.request(
            GenerateRequest,
            model=self.model,
            system=self.system,
            options=self.options,
            keep_alive=self.keep_alive,
            think=self.think,
        )
        return BatchSpec(
            model=shared.model,
            rows=storage_path(self.rows) if isinstance(self.rows, str) else self.rows,
            prompt=self.read_prompt(),
            system=shared.system,
            id_column=self.id_column,
            options=shared.options or Options(),
            keep_alive=shared.keep_alive,
            think=self.think,
            mode=self.mode,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            limits=Limits(
                max_attempts=self.max_attempts,
                max_failed_rows=self.max_failed_rows,
                max_failed_ratio=self.max_failed_ratio,
                max_outage=self.max_outage,
            ),
            on_truncation=self.on_truncation,
            allow_cut=self.allow_cut,
            on_broken_row=self.on_broken_row,
            on_digest_change=self.on_digest_change,
            load_timeout=self.load_timeout,
            checkpoint_every=self.checkpoint_every,
        )

    def read_prompt(self) -> str:
        """Return the prompt's template, out of its file if it names one.

        Raises:
            InvalidRequestError: there is no such file.
        """
        if not self.prompt.endswith(tuple(self.template_ext)):
            return self.prompt
        environment = self.get_template_env()
        try:
            source, *_ = environment.loader.get_source(environment, self.prompt)
        except TemplateNotFound:
            raise InvalidRequestError(
                f"prompt: there is no file {self.prompt!r} in the DAG's folder or its template_searchpath"
            ) from None
        return str(source)

    def measure(self, progress: Progress) -> None:
        """Send the progress to Airflow's metrics."""
        tags = {"dag_id": self.dag_id, "task_id": self.task_id}
        for name in _GAUGES:
            Stats.gauge(f"ollama.batch.{name}", getattr(progress, name), tags=tags)
