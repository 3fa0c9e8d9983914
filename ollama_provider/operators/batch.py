"""A night's work in one task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import TaskGroup
from jinja2 import Environment, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from ollama_provider.api.arguments import read_whole
from ollama_provider.batch import read_argument
from ollama_provider.links import BatchResultsLink
from ollama_provider.operators._base import OllamaOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.schemas import Think
    from ollama_provider.operators._batch_run import BatchRun
    from ollama_provider.sql import SqlRows, SqlTable


class OllamaBatchOperator(OllamaOperator):
    """Send each row of an input to a model, N at a time, and put the results into a directory.

    The memory of the batch is that directory: a row with a good result there is not asked again. So a retry goes on
    where the last try was stopped, a cleared task repairs what failed, and a run with some new rows asks only those.
    ``results.jsonl`` has a row for each row of the input, in its order; ``failed.jsonl`` those that failed, and why;
    ``summary.json`` is written last. XCom gets the summary, also when too many rows failed: ``complete``,
    ``directory``, ``rows``, ``ok``, ``failed``, ``reused``, tokens, seconds, and what explains the numbers later
    (``provenance``: model, digest, server, options). The button *Results* in the UI leads there.

    Args:
        rows: a file or a glob of files on any ``ObjectStoragePath`` (``.jsonl``, ``.csv``, ``.parquet``), or a list of
            these, read as they are needed; or a list of texts or dicts, for instance another task's result; or a
            query, as `ollama_provider.sql.SqlRows`. Texts that all end in such a suffix are files.
        prompt: Jinja template for a row: ``{{ row.text }}`` is its column ``text`` (a row that is only a text has just
            that column). It is rendered for each row, in a sandbox, and not by Airflow. May be the name of a file that
            ends in ``.prompt`` or ``.jinja2``, looked up where Airflow looks for templates.
        into: a table that good results are written into besides, as `ollama_provider.sql.SqlTable`.
        output_path: folder for the results, on any ``ObjectStoragePath``; give each task one of its own.
        resume: who shares results. ``"run"``: the tries of one DAG run; they are in ``output_path/<run id>``.
            ``"task"``: all runs; they are in *output_path* itself, and each run writes ``results.jsonl`` anew. Another
            name: whoever uses it; they are in ``output_path/<name>``. A mapped task adds its map index.
        mode: ``"all"`` asks what has no good result yet; ``"failed_only"`` asks again what failed before, and nothing
            else; ``"merge"`` puts together what the shards have, and asks nothing.
        shard: number (from 0) and how many: only these rows, in the directory of all. Given by
            `sharded`, which makes the tasks of all shards.
        task: what is done with each row: ``"generate"`` (a completion), ``"chat"`` (an answer to *messages*) or
            ``"embed"`` (a vector of *prompt*, into Parquet).
        messages: turns of a chat, with ``role`` and ``content``. A ``content`` that names ``row`` is a template for
            each row, and not rendered by Airflow.
        images: template of the path of a picture for each row (``{{ row.path }}``; several, one a line), on any
            ``ObjectStoragePath``.
        images_from: folder or bucket that the pictures must lie in, with ``..`` and links followed; a path that does
            not begin with ``/`` or a protocol begins in it. Whoever wrote the rows would choose otherwise what the
            worker reads. None is the folder of the input, where that is files.
        output_type: what an answer must look like: a pydantic class, a JSON schema, or ``"json"``. An answer that does
            not fit is asked for again in up to four ways, and then its row has failed, with the raw reply.
        fallback_model: asked, after all others are done, for the rows whose answers did not fit.
        dimensions: numbers of a vector, where the model can do with fewer.
        on_long_text: a text over the context, with ``"embed"``: its row fails (``"dead_letter"``), the server cuts it
            and the result is marked (``"truncate"``), or its overlapping pieces get a row each (``"split"``).
        pack: texts of one request for vectors, or ``"auto"`` to find out by measuring.
        results: ``"jsonl"`` or ``"parquet"``; None is Parquet for vectors, else JSON lines.
        stop_at: the end of the night: a time of day (``"06:00"`` or a `time`: the first one after the DAG run began), a
            moment (a `datetime` or ISO 8601), or how long after the DAG run began (a `timedelta`, or ``"PT6H"``). No
            row is sent then, what is in flight comes back, and the task succeeds with ``complete`` False; the next run
            with the same results goes on (``resume="task"``).
        timezone: of *stop_at*, such as ``"Europe/Berlin"`` or ``"+02:00"``; None is the DAG's.
        unload_after: take the model out of memory at the end.
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

    operator_extra_links = (BatchResultsLink(),)
    template_fields: Sequence[str] = (
        *OllamaOperator.template_fields,
        "rows",
        "into",
        "system",
        "output_path",
        "resume",
        "mode",
        "task",
        "messages",
        "images",
        "images_from",
        "fallback_model",
        "dimensions",
        "on_long_text",
        "pack",
        "results",
        "stop_at",
        "timezone",
        "unload_after",
        "id_column",
        "options",
        "keep_alive",
        "think",
        "concurrency",
        "requests_per_minute",
        "max_attempts",
        "max_failed_rows",
        "max_failed_ratio",
        "max_outage",
        "on_truncation",
        "allow_cut",
        "on_broken_row",
        "on_digest_change",
        "load_timeout",
        "checkpoint_every",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "rows": "json",
        "system": "md",
        "options": "json",
        "messages": "json",
    }
    #: Made by each try.
    _run: "BatchRun | None" = None
    hook_overrides = ("auto_pull", "first_token_timeout", "idle_timeout", "total_timeout")
    list_fields = ("rows",)

    def __init__(
        self,
        *,
        rows: "str | Iterable[str | Mapping[str, Any]] | SqlRows",
        output_path: str,
        into: "SqlTable | None" = None,
        prompt: str = "{{ row.text }}",
        resume: str = "run",
        mode: Literal["all", "failed_only", "merge"] = "all",
        shard: Sequence[int] | None = None,
        task: Literal["generate", "chat", "embed"] = "generate",
        messages: Sequence[Mapping[str, str]] | None = None,
        images: str | None = None,
        images_from: Any = None,
        output_type: Any = None,
        fallback_model: str | None = None,
        dimensions: int | None = None,
        on_long_text: Literal["dead_letter", "truncate", "split"] = "dead_letter",
        pack: int | Literal["auto"] = "auto",
        results: Literal["jsonl", "parquet"] | None = None,
        stop_at: str | time | datetime | timedelta | None = None,
        timezone: str | tzinfo | None = None,
        unload_after: bool = False,
        id_column: str | None = None,
        system: str | None = None,
        options: dict[str, Any] | None = None,
        keep_alive: float | str | None = None,
        think: "Think" = False,
        concurrency: int | Literal["auto"] = "auto",
        requests_per_minute: float | None = None,
        max_attempts: int = 3,
        max_failed_rows: int | None = None,
        max_failed_ratio: float | None = None,
        max_outage: float = 1800.0,
        on_truncation: Literal["dead_letter", "fail", "flag"] = "dead_letter",
        allow_cut: bool = False,
        on_broken_row: Literal["fail", "dead_letter"] = "fail",
        on_digest_change: Literal["stop", "continue"] = "stop",
        load_timeout: float = 1800.0,
        checkpoint_every: float = 10.0,
        auto_pull: bool | None = None,
        first_token_timeout: float | None = None,
        idle_timeout: float | None = None,
        total_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.into = into
        self.output_path = output_path
        self.prompt = prompt
        self.resume = resume
        self.mode = mode
        self.shard = shard
        self.task = task
        self.messages = messages
        self.images = images
        self.images_from = images_from
        self.output_type = output_type
        self.fallback_model = fallback_model
        self.dimensions = dimensions
        self.on_long_text = on_long_text
        self.pack = pack
        self.results = results
        self.stop_at = stop_at
        self.timezone = timezone
        self.unload_after = unload_after
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
        # What is wrong however it is rendered is an error of the DAG file. (A mapped task is made by its worker.)
        if not getattr(self, "_BaseOperator__from_mapped", False):
            for name in self.template_fields:
                if _is_final(value := getattr(self, name)):
                    read_argument(name, value)

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a template field, but neither a list of rows nor a template for each row.

        A ``{{`` in a document is no template, and a text of *messages* or *images* that names ``row`` is the batch's.
        """
        if content is self.rows and isinstance(content, list | tuple):
            from ollama_provider.batch import paths_of  # a DAG file is parsed all the time

            if paths_of(content) is None:
                return content

        def render(content: Any) -> Any:
            return super(OllamaBatchOperator, self).render_template(content, *args, **kwargs)

        if content is self.messages or content is self.images:
            return _render_around_rows(content, render)
        return render(content)

    @staticmethod
    def own_arguments() -> Sequence[str]:
        """Return the names of the arguments that no other operator has."""
        named = signature(OllamaBatchOperator.__init__).parameters.values()
        return [argument.name for argument in named if argument.kind is Parameter.KEYWORD_ONLY]

    def perform(self, context: "Context") -> dict[str, Any]:
        """Run the batch; return its summary."""
        # Here, since a DAG file is parsed all the time and runs no batch.
        from ollama_provider.operators._batch_run import BatchRun

        self._run = BatchRun(self, context)
        return self._run.summary()

    def on_kill(self) -> None:
        """Stop: close the requests, keep what there is. Airflow kills the process some seconds later."""
        if self._run:
            self._run.stop.set("the task was killed")


def _is_final(value: Any) -> bool:
    """Return whether a value is one already, and not a template, another task's output or the like."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value and not value.endswith(tuple(OllamaOperator.template_ext))
    return value is None or isinstance(value, bool | int | float | time | date | timedelta | tzinfo)


def _render_around_rows(content: Any, render: Callable[[Any], Any]) -> Any:
    """Render the texts in *content* but those that name ``row``: they are rendered for each row, by the batch."""
    if isinstance(content, str):
        return render(content) if "{" in content and not _names_row(content) else content
    if isinstance(content, list | tuple):
        return [_render_around_rows(element, render) for element in content]
    if isinstance(content, dict):
        return {key: _render_around_rows(value, render) for key, value in content.items()}
    return render(content)


def _names_row(text: str) -> bool:
    try:
        return "row" in find_undeclared_variables(Environment().parse(text))  # noqa: S701  # nothing is rendered
    except TemplateSyntaxError:
        # The batch says what is wrong with it.
        return True


class ShardedBatch(TaskGroup):
    """The tasks of a batch that many workers share: ``shards``, which are mapped, and ``merge`` after them.

    What comes before the group comes before every shard, and what comes after it after the merge.
    """

    @property
    def merge(self) -> OllamaBatchOperator:
        """The last task: its XCom is the summary of all."""
        task: OllamaBatchOperator = self.children[f"{self.group_id}.merge"]
        return task

    @property
    def output(self) -> Any:
        """The summary of all, for another task's argument."""
        return self.merge.output


def sharded(count: int, *, task_id: str, **arguments: Any) -> ShardedBatch:
    """Return the tasks of a batch that many workers share, as a task group.

    Args:
        count: of the shards, each a mapped task ``<task_id>.shards``; how many run at a time is Airflow's
            (``max_active_tis_per_dagrun``).
        task_id: of the group. Its last task, ``<task_id>.merge``, puts together what the shards have asked; *output* of
            the group is its XCom, the summary of all.
        arguments: of `OllamaBatchOperator`.

    Raises:
        InvalidRequestError: *count* is no number from 1 on.
    """
    count = read_whole("count", count, least=1)
    group = ShardedBatch(group_id=task_id)
    with group:
        merge = OllamaBatchOperator(**{**arguments, "task_id": "merge", "mode": "merge"})
        shards = [[number, count] for number in range(count)]
        OllamaBatchOperator.partial(task_id="shards", **arguments).expand(shard=shards) >> merge
    return group
