"""The page of one batch: its report, with the numbers of now."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ollama_provider.batch import report_values, stored_report
from ollama_provider.ui.access import BatchDep
from ollama_provider.ui.directories import UnreadableError, read_directory
from ollama_provider.ui.figures import figures
from ollama_provider.ui.rendering import page
from ollama_provider.ui.threads import Cached, TooSlowError, in_thread

_NO_REPORT = (
    "There is no report yet. A run writes it every half minute and at its end; shards leave it to the merge. For a run "
    "that was killed, or one of an earlier version, python -m ollama_provider.batch --report writes it."
)

router = APIRouter()


@router.get("/batches/{dag_id}/{run_id}/{task_id}/{map_index}")
async def batch_report(request: Request, batch: BatchDep) -> HTMLResponse:
    """Show the report of a batch; where there is none that can be read, its figures."""
    shown: dict[str, Any] = {"tab": "batches", "live": batch.is_running, "batch": batch}
    try:
        report = await _reports.get(batch.directory, read_directory, batch.directory, _values)
        trouble = _NO_REPORT
    except (UnreadableError, TooSlowError) as error:
        report, trouble = None, str(error)
    if report is None:
        shown |= {"trouble": trouble, "figures": await figures(batch)}
        return page(request, "batch_figures.html.jinja", **shown)
    if batch.is_rehearsal and report["report"].rehearsal:
        report = report | {"rehearsal_first": True}
    # In a thread, since a report is up to a megabyte of text.
    return await in_thread(lambda: page(request, "batch.html.jinja", **shown, **report))


_reports: Cached[dict[str, Any] | None] = Cached(seconds=3, size=20)


def _values(storage: Any) -> dict[str, Any] | None:
    report = stored_report(storage)
    return None if report is None else report_values(report)
