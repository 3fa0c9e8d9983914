"""What surrounds a batch in a task: where its rows and results are, its gauges, and how its end becomes Airflow's."""

import contextlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, Asset, ObjectStoragePath, Stats, conf
from jinja2 import TemplateNotFound

from ollama_provider.api.arguments import read_text
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.settings import Settings
from ollama_provider.api.tracing import work_span
from ollama_provider.batch import (
    BatchSpec,
    Progress,
    Rehearsal,
    RehearsalResult,
    StoppedError,
    StopSignal,
    Summary,
    TooManyFailedError,
    candidates,
    compare_batches,
    comparison_as_dict,
    comparison_as_text,
    paths_of,
    rehearsal_as_text,
    run_batch,
)
from ollama_provider.observability import TaskObserver, server_tag
from ollama_provider.operators._storage_paths import earlier_run_folder_name, run_folder_name, storage_path
from ollama_provider.sql import SqlRows

logger = logging.getLogger(__name__)

#: Attributes of the span of a batch, and what `work` has for them.
_ATTRIBUTES = {
    **{f"ollama.batch.{name}": name for name in ("rows", "ok", "failed", "reused")},
    "gen_ai.usage.input_tokens": "prompt_tokens",
    "gen_ai.usage.output_tokens": "tokens",
}

#: Of the batch, and of each of its servers.
_GAUGES = ("done", "ok", "failed", "reused", "tokens_per_second", "concurrency")
_SERVER_GAUGES = ("rows", "tokens_per_second", "concurrency", "seconds_out")


def run_in_task(
    spec: BatchSpec,
    settings: Settings,
    directory: ObjectStoragePath,
    *,
    instance: Any,
    log: logging.Logger,
    stop: StopSignal,
    work: dict[str, Any],
) -> dict[str, Any]:
    """Run a batch as one try of a task; return its summary.

    Args:
        spec: the batch.
        settings: the server, and how to treat it.
        directory: where the results go.
        instance: the task instance. Its XCom gets the summary also when too many rows failed.
        log: of the task.
        stop: ends the batch early, also from a signal handler.
        work: gets what is known of the batch, as it goes on; see `OllamaOperator.work`.

    Raises:
        BatchError: see the tree in `ollama_provider.batch.errors`.
        OllamaError: one that fails every row.
        AirflowException: the batch was stopped.
    """
    tags = {"dag_id": instance.dag_id, "task_id": instance.task_id}

    def gauge(progress: Progress) -> None:
        for name in _GAUGES:
            Stats.gauge(f"ollama.batch.{name}", getattr(progress, name), tags=tags)
        for share in progress.servers:
            server_tags = {**tags, "server": server_tag(share.server)}
            for name in _SERVER_GAUGES:
                Stats.gauge(f"ollama.batch.server.{name}", getattr(share, name), tags=server_tags)
        work.update({name: getattr(progress, name) for name in ("ok", "failed", "reused")})

    with work_span("batch", spec.model) as attributes:
        try:
            summary = run_batch(
                spec,
                settings,
                directory,
                on_progress=gauge,
                stop=stop,
                listener=TaskObserver(log),
                trace_rows=_trace_rows(),
            )
            work |= _known_of(summary)
        except TooManyFailedError as error:
            if error.summary:
                work |= _known_of(error.summary)
                instance.xcom_push(key="return_value", value=error.summary.as_dict())
            raise
        finally:
            attributes |= {name: work[known] for name, known in _ATTRIBUTES.items() if known in work}
    if stop.reason:
        raise AirflowException(
            f"The batch was stopped after {summary.ok + summary.failed} rows. What it has is kept, and the next "
            "try goes on from there."
        )
    return summary.as_dict()


def _trace_rows() -> float:
    """Return the probability that a request for a row gets a span, from Airflow's configuration."""
    share: float = conf.getfloat("ollama", "trace_rows", fallback=0.0)
    if not 0 <= share <= 1:
        raise InvalidRequestError(f"[ollama] trace_rows: {share:g} is not between 0 and 1")
    return share


def _known_of(summary: Summary) -> dict[str, Any]:
    """Return what the lineage of the task says of a run."""
    known = {name: value for name, value in vars(summary).items() if name not in {"provenance", "servers"}}
    if summary.provenance is not None:
        known |= {"model": summary.provenance.model, "digest": summary.provenance.digest}
    if summary.servers:
        known["server"] = ", ".join(share.server for share in summary.servers)
    return known


def describe_assets(outlets: Iterable[Any], events: Mapping[Any, Any], summary: Mapping[str, Any]) -> None:
    """Add what a batch has done to the events of the assets that its task updates.

    Args:
        outlets: of the task. What is no asset is left alone.
        events: ``outlet_events`` of the task's context.
        summary: of the batch.
    """
    provenance = summary["provenance"] or {}
    extra = {name: summary[name] for name in ("complete", "directory", "rows", "ok", "failed")}
    extra |= {name: provenance.get(name) for name in ("model", "digest")}
    for outlet in outlets:
        if isinstance(outlet, Asset):
            events[outlet].extra.update(extra)


def rehearse_in_task(
    spec: BatchSpec,
    rehearsal: Rehearsal,
    prompts: Mapping[str, str],
    settings: Settings,
    directory: ObjectStoragePath,
    *,
    log: logging.Logger,
    stop: StopSignal,
) -> dict[str, Any]:
    """Rehearse a batch as one try of a task; log what the night will be like, and return it as plain data.

    Args:
        spec: the batch.
        rehearsal: how many rows, which models to compare, and whether prompt and answers are shown.
        prompts: to compare, by their names; none if those are not compared.
        settings: the server, and how to treat it.
        directory: where the answers go.
        log: of the task.
        stop: ends the rehearsal early, also from a signal handler.

    Raises:
        BatchError: see the tree in `ollama_provider.batch.errors`.
        OllamaError: one that fails every row.
        AirflowException: the rehearsal was stopped.
    """
    texts = rehearsal.show_texts
    specs = candidates(spec, rehearsal.models or (), prompts)
    found: dict[str, RehearsalResult] = {}
    with contextlib.suppress(StoppedError):
        found = compare_batches(specs, settings, directory, rehearsal.sample, stop=stop, listener=TaskObserver(log))
    if stop.reason:
        raise AirflowException("The rehearsal was stopped. The answers that it has are kept.")
    if rehearsal.models or prompts:
        log.info("%s", comparison_as_text(found, texts=texts))
        return comparison_as_dict(found, texts=texts)
    (result,) = found.values()
    log.info("%s", rehearsal_as_text(result, texts=texts))
    return result.as_dict(prompt=texts, answers=texts)


def results_directory(output_path: Any, resume: Any, instance: Any, *, is_shard: bool) -> ObjectStoragePath:
    """Return where the results of a task go.

    Args:
        output_path: argument of the operator.
        resume: argument of the operator: ``"run"``, ``"task"`` or a name.
        instance: the task instance.
        is_shard: the task does one of the shards of a batch, which share a directory. Other mapped tasks do not.

    Raises:
        InvalidRequestError: *resume* is no name.
    """
    resume = read_text("resume", resume)
    path = storage_path(read_text("output_path", output_path))
    if resume == "run":
        path = _folder_of_run(path, instance.run_id)
    elif resume != "task":
        if not re.fullmatch(r"\w[\w.-]*", resume):
            raise InvalidRequestError(f"resume: {resume!r} is neither 'run', 'task' nor a name for a folder")
        path /= resume
    return path if instance.map_index < 0 or is_shard else path / str(instance.map_index)


def _folder_of_run(path: ObjectStoragePath, run_id: str) -> ObjectStoragePath:
    # A run id has a time in it. Many object stores have trouble with colons and plus signs.
    folder, earlier = path / run_folder_name(run_id), path / earlier_run_folder_name(run_id)
    if folder.name != earlier.name and earlier.name.strip(".") and earlier.exists() and not folder.exists():
        logger.warning(
            "%s may have results of this run by an earlier version, which gave one folder to several run ids. It "
            "is left alone: rename it to %s if they are this run's.", earlier, folder.name,
        )  # fmt: skip
    return folder


def locate(path: Any) -> Any:
    """Return a text as a path on any storage; a path, and None, as they are."""
    return storage_path(path) if isinstance(path, str) else path


def locate_rows(rows: Any, run_id: str) -> Any:
    """Return the rows with their paths on any storage. A query is run once in a DAG run, which *run_id* names."""
    if isinstance(rows, str):
        return storage_path(rows)
    if isinstance(rows, list | tuple) and paths_of(rows):
        return [locate(path) for path in rows]
    return replace(rows, occasion=run_id) if isinstance(rows, SqlRows) else rows


def read_prompt(prompt: Any, suffixes: Sequence[str], environment: Any) -> str:
    """Return the prompt's template, out of its file if it names one.

    Args:
        prompt: argument of the operator.
        suffixes: of files with a template.
        environment: where Airflow looks for templates.

    Raises:
        InvalidRequestError: there is no such file.
    """
    template = read_text("prompt", prompt)
    if not template.endswith(tuple(suffixes)):
        return template
    try:
        source, *_ = environment.loader.get_source(environment, template)
    except TemplateNotFound:
        raise InvalidRequestError(
            f"prompt: there is no file {template!r} in the DAG's folder or its template_searchpath"
        ) from None
    return str(source)
