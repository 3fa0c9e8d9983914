"""What OllamaBatchOperator does when it runs: its arguments become a batch, the batch's ends become Airflow's."""

import logging
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath, Stats
from jinja2 import TemplateNotFound

from ollama_provider.api.arguments import is_null, read_text
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas import GenerateRequest, Options
from ollama_provider.batch import (
    BatchSpec,
    Limits,
    Progress,
    Rows,
    StopSignal,
    TooManyFailedError,
    paths_of,
    read_argument,
    run_batch,
)
from ollama_provider.links import RESULTS
from ollama_provider.observability import TaskObserver
from ollama_provider.operators._storage_paths import earlier_run_folder_name, run_folder_name, storage_path
from ollama_provider.sql import SqlRows

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.operators.batch import OllamaBatchOperator

logger = logging.getLogger(__name__)

_GAUGES = ("done", "ok", "failed", "reused", "tokens_per_second", "concurrency")


class BatchRun:
    """One try of a task.

    Args:
        task: with its templates rendered.
        context: of the task.

    Attributes:
        stop: ends the batch early, from a signal handler too.
    """

    def __init__(self, task: "OllamaBatchOperator", context: "Context") -> None:
        self._task = task
        self._instance = context["ti"]
        # Cleared, a DAG run begins anew; retried, a task does not make it.
        self._began = getattr(context.get("dag_run"), "start_date", None)
        self.stop = StopSignal()

    def summary(self) -> dict[str, Any]:
        """Run the batch to its end.

        Raises:
            BatchError: see the tree in `ollama_provider.batch.errors`.
            OllamaError: one that fails every row.
            AirflowException: it was stopped.
        """
        task, directory = self._task, self.directory()
        task.log.info("The results go to %s", directory)
        self._instance.xcom_push(key=RESULTS, value=str(directory))
        try:
            summary = run_batch(
                self.spec(),
                task.hook.settings,
                directory,
                on_progress=self._measure,
                stop=self.stop,
                listener=TaskObserver(task.log),
            )
        except TooManyFailedError as error:
            if error.summary:
                self._instance.xcom_push(key="return_value", value=error.summary.as_dict())
            raise
        if self.stop.reason:
            raise AirflowException(
                f"The batch was stopped after {summary.ok + summary.failed} rows. What it has is kept, and the next "
                "try goes on from there."
            )
        return summary.as_dict()

    def directory(self) -> ObjectStoragePath:
        """Return where the results go.

        Raises:
            InvalidRequestError: *resume* is no name.
        """
        resume = read_text("resume", self._task.resume)
        path = storage_path(read_text("output_path", self._task.output_path))
        if resume == "run":
            path = self._folder_of_run(path)
        elif resume != "task":
            if not re.fullmatch(r"\w[\w.-]*", resume):
                raise InvalidRequestError(f"resume: {resume!r} is neither 'run', 'task' nor a name for a folder")
            path /= resume
        # Shards share a directory; other mapped tasks do not.
        alone = self._instance.map_index < 0 or self._task.shard is not None
        return path if alone else path / str(self._instance.map_index)

    def _folder_of_run(self, path: ObjectStoragePath) -> ObjectStoragePath:
        # A run id has a time in it, and colons and plus signs are trouble in many a store.
        run_id = self._instance.run_id
        folder, earlier = path / run_folder_name(run_id), path / earlier_run_folder_name(run_id)
        if folder.name != earlier.name and earlier.name.strip(".") and earlier.exists() and not folder.exists():
            logger.warning(
                "%s may have results of this run by an earlier version, which gave one folder to several run ids. It "
                "is left alone: rename it to %s if they are this run's.", earlier, folder.name,
            )  # fmt: skip
        return folder

    def spec(self) -> BatchSpec:
        """Return what the batch is to do, with the connection's defaults.

        Raises:
            InvalidRequestError: an argument is wrong.
        """
        task = self._task
        fields_ = {field.name for kind in (BatchSpec, Limits) for field in fields(kind)}
        # Its own arguments: Airflow has a retry_delay as well.
        given = {name: getattr(task, name) for name in task.own_arguments() if name in fields_}
        images_from = read_argument("images_from", task.images_from)
        # A request knows how defaults are laid under options, and refuses what is wrong.
        shared = task.hook.request(
            GenerateRequest,
            model=task.model,
            options=task.options,
            keep_alive=task.keep_alive,
        )
        return BatchSpec.read(
            given
            | {
                "model": shared.model,
                "options": shared.options or Options(),
                "keep_alive": shared.keep_alive,
                "rows": self.rows(),
                "prompt": self.read_prompt(),
                "images_from": storage_path(images_from) if isinstance(images_from, str) else images_from,
                "timezone": task.dag.timezone if is_null(task.timezone) else task.timezone,
                "due": self._began,
                "shard": None if task.shard is None else tuple(task.shard),
            }
        )

    def rows(self) -> Rows:
        """Return the rows: a query is asked once in a DAG run."""
        rows: Rows = self._task.rows
        if isinstance(rows, str):
            rows = storage_path(rows)
        elif isinstance(rows, list | tuple) and paths_of(rows):
            rows = [storage_path(path) if isinstance(path, str) else path for path in rows]
        return replace(rows, occasion=self._instance.run_id) if isinstance(rows, SqlRows) else rows

    def read_prompt(self) -> str:
        """Return the prompt's template, out of its file if it names one.

        Raises:
            InvalidRequestError: there is no such file.
        """
        task = self._task
        prompt = read_text("prompt", task.prompt)
        if not prompt.endswith(tuple(task.template_ext)):
            return prompt
        environment = task.get_template_env()
        try:
            source, *_ = environment.loader.get_source(environment, prompt)
        except TemplateNotFound:
            raise InvalidRequestError(
                f"prompt: there is no file {prompt!r} in the DAG's folder or its template_searchpath"
            ) from None
        return str(source)

    def _measure(self, progress: Progress) -> None:
        tags = {"dag_id": self._task.dag_id, "task_id": self._task.task_id}
        for name in _GAUGES:
            Stats.gauge(f"ollama.batch.{name}", getattr(progress, name), tags=tags)
