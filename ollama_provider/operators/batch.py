"""Many rows in one task: OllamaBatchOperator, and `sharded` for several workers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import TaskGroup, XComArg
from jinja2 import Environment, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from ollama_provider.api.arguments import read_whole
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch import (
    GROUPS,
    ArgumentGroup,
    Embedding,
    FailurePolicy,
    InputOptions,
    Pace,
    Rehearsal,
    StopSignal,
    Timeouts,
    Window,
    is_final,
    paths_of,
    read_argument,
    refuse_contradictions,
)
from ollama_provider.links import RESULTS, BatchResultsLink, batch_page_url, has_page
from ollama_provider.operators._base import OllamaOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.schemas import Think
    from ollama_provider.batch import BatchSpec
    from ollama_provider.sql import SqlRows, SqlTable


class OllamaBatchOperator(OllamaOperator):
    """Send each row of an input to a model, several at a time, and write the results into a directory.

    The directory is the batch's memory: a row that has a good result there is not sent again. So a retry goes on where
    the last try stopped, a cleared task sends only the failed rows, and a run with some new rows sends only those.
    ``results.jsonl`` has a row for each row of the input, in its order; ``failed.jsonl`` has those that failed, with
    the reason; ``summary.json`` is written last. XCom gets the summary, also when too many rows failed: ``complete``,
    ``directory``, ``rows``, ``ok``, ``failed``, ``reused``, tokens, seconds, and what explains the numbers later
    (``provenance``: model, digest, server, options). The button *Results* in the UI leads there. The event of an asset
    among ``outlets`` has ``complete``, ``directory``, ``rows``, ``ok``, ``failed``, ``model`` and ``digest``.

    Arguments that belong together are values of `ollama_provider.batch` (`FailurePolicy`, `Pace`, `Window`,
    `Embedding`, `Timeouts`, `InputOptions`, `Rehearsal`). They never change, so several tasks and DAGs can share
    one; templates work inside them.

    Args:
        rows: a file or a glob of files on any ``ObjectStoragePath`` (``.jsonl``, ``.json``, ``.csv``, ``.tsv``,
            ``.parquet``, and but for Parquet the same with ``.gz``, ``.bz2``, ``.xz`` or ``.zst``), or a list of these,
            read as they are needed; or a list of texts or dicts, or a table of pandas or Arrow, for instance another
            task's result; or a query, as `ollama_provider.sql.SqlRows`. Texts that all end in such a suffix are files.
            A document (``.txt``, ``.md``, ``.html``, ``.pdf``, ``.docx``) is a row with ``path``, ``name``, ``text``
            and ``modified``; several are one glob, or path objects.
        input_options: an `InputOptions`, or a dict of its arguments: how text is read out of the files, such as
            ``{"delimiter": ";", "encoding": "latin-1"}``.
        prompt: Jinja template for a row: ``{{ row.text }}`` is its column ``text`` (a row that is only a text has just
            that column). It is rendered for each row, in a sandbox, and not by Airflow. May be the name of a file that
            ends in ``.prompt`` or ``.jinja2``, looked up where Airflow looks for templates.
        variables: values that are the same for all rows, by their names, for *prompt*, *messages* and *images*:
            ``{"day": "{{ ds }}"}`` is ``{{ day }}`` beside ``{{ row.text }}``. The values are rendered by Airflow, so
            that a prompt knows the run it is in, and may be outputs of other tasks.
        output_path: folder for the results, on any ``ObjectStoragePath``; give each task one of its own.
        resume: who shares results. ``"run"``: the tries of one DAG run; they are in ``output_path/<run id>``.
            ``"task"``: all runs; they are in *output_path* itself, and each run writes ``results.jsonl`` anew. Another
            name: whoever uses it; they are in ``output_path/<name>``. A mapped task adds its map index.
        mode: ``"all"`` sends the rows without a good result; ``"failed_only"`` sends the rows that failed before,
            and no others; ``"merge"`` merges the results of the shards, and sends nothing; ``"rehearse"`` sends 20 rows
            from all over the input, and XCom gets what the night will be like. A `Rehearsal` instead sends another
            number, shows the answers, or compares models and prompts.
        shard: number (from 0) and how many: only these rows, in the directory of all. Given by `sharded`, which makes
            the tasks of all shards.
        messages: messages of a chat instead of *prompt*, with ``role`` and ``content``. A ``content`` that names
            ``row`` or one of *variables* is a template for each row, and not rendered by Airflow.
        embedding: an `Embedding`: ask for the vector of *prompt* instead of an answer, into Parquet. ``Embedding()``
            has the defaults.
        images: template of the path of an image for each row (``{{ row.path }}``; several, one a line), on any
            ``ObjectStoragePath``.
        images_from: folder or bucket that the images must lie in, with ``..`` and links followed. A path that does not
            begin with ``/`` or a protocol begins in it. Without it whoever wrote the rows could choose what the worker
            reads. None is the folder of the input, where that is files.
        output_type: what an answer must look like: a pydantic class, a JSON schema, or ``"json"``. An answer that does
            not fit is asked for again in up to four ways; then its row has failed, with the raw reply.
        results: ``"jsonl"`` or ``"parquet"``; None is Parquet for vectors, else JSON lines.
        into: a table that good results are also written into, as `ollama_provider.sql.SqlTable`.
        id_column: column whose value is carried through to the results.
        keep_columns: names of columns that go into the results, as ``row``; ``"all"`` is every one. Nothing is asked
            again when they change.
        system: system message for all rows.
        options: the model's options, laid over the connection's. ``num_ctx``, where it is not given, is chosen from the
            first rows.
        keep_alive: how long the model stays in memory afterwards: seconds, ``"5m"``, 0 to unload, -1 for no limit.
        think: reasoning on or off, or how much; off by default.
        failures: a `FailurePolicy`: what makes a row fail, what is tried again, and how many failed rows are tolerated.
            By default none is.
        pace: a `Pace`: requests at a time, requests per minute, seconds between checkpoints.
        window: a `Window`: when the batch must be off the server, and whether it unloads the model.
        timeouts: a `Timeouts`: for the load of the model and for one attempt.
        report_prompts: show the beginnings of prompts in ``report.html``: those of the rows that it shows. The
            directory has no rendered prompts otherwise.
        auto_pull: pull the model if the server lacks it; None is the connection's setting.
    """

    operator_extra_links = (BatchResultsLink(),)
    template_fields: Sequence[str] = (
        *OllamaOperator.template_fields,
        "rows",
        # Before the templates of the rows: their names decide which texts those are.
        "variables",
        "input_options",
        "output_path",
        "resume",
        "mode",
        "messages",
        "embedding",
        "images",
        "images_from",
        "results",
        "into",
        "id_column",
        "keep_columns",
        "system",
        "options",
        "keep_alive",
        "think",
        "failures",
        "pace",
        "window",
        "timeouts",
        "report_prompts",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "rows": "json",
        "variables": "json",
        "system": "md",
        "options": "json",
        "messages": "json",
    }
    hook_overrides = ("auto_pull",)
    list_fields = ("rows",)

    def __init__(
        self,
        *,
        rows: "str | Iterable[str | Mapping[str, Any]] | SqlRows",
        output_path: str,
        input_options: InputOptions | dict[str, Any] | None = None,
        prompt: str = "{{ row.text }}",
        variables: Mapping[str, Any] | None = None,
        resume: str = "run",
        mode: Literal["all", "failed_only", "merge", "rehearse"] | Rehearsal | dict[str, Any] = "all",
        shard: Sequence[int] | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        embedding: Embedding | None = None,
        images: str | None = None,
        images_from: Any = None,
        output_type: Any = None,
        results: Literal["jsonl", "parquet"] | None = None,
        into: "SqlTable | None" = None,
        id_column: str | None = None,
        keep_columns: Literal["all"] | Sequence[str] | None = None,
        system: str | None = None,
        options: dict[str, Any] | None = None,
        keep_alive: float | str | None = None,
        think: "Think" = False,
        failures: FailurePolicy | None = None,
        pace: Pace | None = None,
        window: Window | None = None,
        timeouts: Timeouts | None = None,
        report_prompts: bool = False,
        auto_pull: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # No parameter, because then ``default_args={"deferrable": True}`` for the other tasks of a DAG would reach it.
        if "deferrable" in kwargs:
            raise InvalidRequestError(
                "deferrable: a batch cannot wait in the triggerer, because it sends requests and writes results all "
                "the time. Leave it out. A pool or a queue keeps a night's batch from taking the slots of other tasks, "
                "and window=Window(stop_at=…) ends it in the morning"
            )
        super().__init__(**kwargs)
        self.rows = rows
        self.output_path = output_path
        self.input_options = input_options
        self.prompt = prompt
        self.variables = variables
        self.resume = resume
        self.mode = mode
        self.shard = shard
        self.messages = messages
        self.embedding = embedding
        self.images = images
        self.images_from = images_from
        self.output_type = output_type
        self.results = results
        self.into = into
        self.id_column = id_column
        self.keep_columns = keep_columns
        self.system = system
        self.options = options
        self.keep_alive = keep_alive
        self.think = think
        self.failures = failures
        self.pace = pace
        self.window = window
        self.timeouts = timeouts
        self.report_prompts = report_prompts
        self.auto_pull = auto_pull
        #: Stops the batch of this try from `on_kill`; each try has its own.
        self._stop = StopSignal()
        #: Where the results of this try go, and the file of them.
        self._directory: Any = None
        self._results: Any = None
        # A mapped task is made by its worker, from arguments that are rendered.
        if not getattr(self, "_BaseOperator__from_mapped", False):
            self._check_arguments()

    def _check_arguments(self) -> None:
        """Refuse, while the DAG file is parsed, what is wrong whatever the templates give."""
        given = {name: getattr(self, name) for name in self.template_fields}
        for name, value in given.items():
            if is_final(value, self.template_ext) or (
                name in {"variables", "mode", *GROUPS} and isinstance(value, Mapping | list | tuple)
            ):
                given[name] = read_argument(name, value)
        _refuse_rows_in_variables(given["variables"])
        refuse_contradictions({"output_type": self.output_type, **given})
        _wait_for_outputs(self, given)

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a template field, but neither a list of rows nor a template for each row.

        A ``{{`` in a document is no template, and a text of *messages* or *images* that names ``row`` or a variable of
        the batch is the batch's.
        """
        if content is self.rows and isinstance(content, list | tuple) and paths_of(content) is None:
            return content

        def render(content: Any) -> Any:
            return super(OllamaBatchOperator, self).render_template(content, *args, **kwargs)

        if isinstance(content, ArgumentGroup):
            return content.render(render)
        if content is self.messages or content is self.images:
            variables = self.variables if isinstance(self.variables, Mapping) else {}
            return _render_around_rows(content, render, {"row", *variables})
        return render(content)

    def perform(self, context: "Context") -> dict[str, Any]:
        """Run the batch; return its summary."""
        # Imported here, since a DAG file is parsed all the time and runs no batch.
        from ollama_provider.operators._batch_run import (
            describe_assets,
            read_prompt,
            rehearse_in_task,
            results_directory,
            run_in_task,
        )

        self._stop = StopSignal()
        instance = context["ti"]
        directory = results_directory(self.output_path, self.resume, instance, is_shard=self.shard is not None)
        self.work, self._directory = {}, directory
        # First of all, so that the button *Results* works also where something is wrong.
        self.log.info("The results go to %s", directory)
        instance.xcom_push(key=RESULTS, value=str(directory))
        # Asked now, since it may be refused: no setting of the page may fail a batch at its end.
        page = batch_page_url(instance) if has_page() else ""
        try:
            spec, settings, mode = self._spec(context), self.hook.settings, read_argument("mode", self.mode)
            if spec.mode == "rehearse":
                rehearsal = mode if isinstance(mode, Rehearsal) else Rehearsal()
                rehearsal.check()
                prompts = {
                    name: read_prompt(name, self.template_ext, self.get_template_env())
                    for name in rehearsal.prompts or ()
                }
                return rehearse_in_task(spec, rehearsal, prompts, settings, directory, log=self.log, stop=self._stop)
            self._results = directory / f"results.{spec.format}"
            summary = run_in_task(
                spec, settings, directory, instance=instance, log=self.log, stop=self._stop, work=self.work
            )
        finally:
            if page:
                self.log.info("Page: %s", page)
        describe_assets(self.outlets, context["outlet_events"], summary)
        return summary

    def reads(self) -> list[Any]:
        """Return the files or the query of the rows, and the folder of the images; for a merge, also what it merges."""
        from ollama_provider.operators._batch_run import locate
        from ollama_provider.sql import SqlRows

        rows = [self.rows] if isinstance(self.rows, SqlRows) else paths_of(self.rows) or []
        images = [self.images_from] if self.images and self.images_from else []
        merged = [self._directory] if self.mode == "merge" else []
        return [locate(source) for source in (*rows, *images, *merged)]

    def writes(self) -> list[tuple[Any, int | None]]:
        """Return the results and the table; for a shard the directory of all shards, whose results are the merge's."""
        if self.work is None or self._results is None:
            return []
        if self.shard is not None:
            return [(self._directory, None)]
        table = [] if self.into is None else [(self.into, self.work.get("written"))]
        # A batch that is not complete has written no such file, or one without the rows that were left alone.
        return [(self._results, self.work.get("rows") if self.work.get("complete") else None), *table]

    def _spec(self, context: "Context") -> "BatchSpec":
        """Return what the batch is to do, with the connection's defaults.

        Raises:
            InvalidRequestError: an argument is wrong.
        """
        from ollama_provider.api.schemas import GenerateRequest, Options
        from ollama_provider.batch import BatchSpec
        from ollama_provider.operators._batch_run import locate, locate_rows, read_prompt

        given = {field.name: getattr(self, field.name) for field in fields(BatchSpec) if field.name != "due"}
        # A request lays the connection's defaults under these, and refuses what is wrong.
        request = self.hook.request(GenerateRequest, model=self.model, options=self.options, keep_alive=self.keep_alive)
        window: Window = read_argument("window", self.window) or Window()
        mode = read_argument("mode", self.mode)
        return BatchSpec.read(
            given
            | {
                "model": request.model,
                "mode": "rehearse" if isinstance(mode, Rehearsal) else mode,
                "options": request.options or Options(),
                "keep_alive": request.keep_alive,
                "rows": locate_rows(self.rows, context["ti"].run_id),
                "prompt": read_prompt(self.prompt, self.template_ext, self.get_template_env()),
                "images_from": locate(read_argument("images_from", self.images_from)),
                "window": replace(window, timezone=self.dag.timezone) if window.timezone is None else window,
                # A retry belongs to the same night. A cleared DAG run begins anew.
                "due": getattr(context.get("dag_run"), "start_date", None),
                "shard": None if self.shard is None else tuple(self.shard),
            }
        )

    def on_kill(self) -> None:
        """Stop the batch: close its requests and write a last checkpoint. Airflow kills the process seconds later."""
        self._stop.set("the task was killed")


def _wait_for_outputs(task: Any, arguments: Mapping[str, Any]) -> None:
    """Make the tasks whose outputs are in a group upstream of *task*; Airflow itself does not look into a group."""
    for group in arguments.values():
        if isinstance(group, ArgumentGroup):
            XComArg.apply_upstream_relationship(task, list(group.unknown().values()))


def _render_around_rows(content: Any, render: Callable[[Any], Any], names: set[str]) -> Any:
    """Render the texts in *content* but those that use one of *names*: they are rendered for each row, by the batch."""
    if isinstance(content, str):
        return render(content) if "{" in content and not _uses(content, names, if_broken=True) else content
    if isinstance(content, list | tuple):
        return [_render_around_rows(element, render, names) for element in content]
    if isinstance(content, dict):
        return {key: _render_around_rows(value, render, names) for key, value in content.items()}
    return render(content)


def _refuse_rows_in_variables(variables: Any) -> None:
    """Refuse a variable that uses ``row``: Airflow would render it without a row, as nothing."""
    for name, value in variables.items() if isinstance(variables, Mapping) else ():
        if isinstance(value, str) and "{" in value and _uses(value, {"row"}, if_broken=False):
            raise InvalidRequestError(
                f"variables.{name}: it uses row, but is rendered once, before there are rows; write that in the prompt"
            )


def _uses(text: str, names: set[str], *, if_broken: bool) -> bool:
    """Return whether a template uses one of *names*; *if_broken* for one with an error, which rendering will tell."""
    try:
        found = find_undeclared_variables(Environment().parse(text))  # noqa: S701  # nothing is rendered
    except TemplateSyntaxError:
        return if_broken
    return not names.isdisjoint(found)


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
        task_id: of the group. Its last task, ``<task_id>.merge``, merges the results of the shards; *output* of the
            group is its XCom, the summary of all.
        arguments: of `OllamaBatchOperator`. *outlets* are those of the merge alone.

    Raises:
        InvalidRequestError: *count* is no number from 1 on.
    """
    count = read_whole("count", count, least=1)
    group = ShardedBatch(group_id=task_id)
    with group:
        merge = OllamaBatchOperator(**{**arguments, "task_id": "merge", "mode": "merge"})
        numbers = [[number, count] for number in range(count)]
        # An asset is updated when all results are there, and not by each shard.
        of_shards = {name: value for name, value in arguments.items() if name != "outlets"}
        shards = OllamaBatchOperator.partial(task_id="shards", **of_shards).expand(shard=numbers)
        _wait_for_outputs(shards, arguments)
        shards >> merge
    return group
