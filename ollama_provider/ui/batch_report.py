"""The page of one batch: its report, as it is at the moment."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ollama_provider.batch import Report, gather, report_values
from ollama_provider.ui.access import BatchDep
from ollama_provider.ui.directories import UnreadableError, read_directory
from ollama_provider.ui.figures import of_summary
from ollama_provider.ui.rendering import page
from ollama_provider.ui.threads import Cached, TooSlowError

router = APIRouter()

_reports: Cached[Report] = Cached(seconds=5, size=20)


@router.get("/batches/{dag_id}/{run_id}/{task_id}/{map_index}")
async def batch_report(request: Request, batch: BatchDep) -> HTMLResponse:
    """Show the report of a batch; if its directory cannot be read, the numbers of its summary."""
    shown: dict[str, Any] = {"tab": "batches", "live": batch.is_running, "batch": batch}
    try:
        report = await _reports.get(batch.directory, read_directory, batch.directory, gather)
    except UnreadableError as error:
        shown["trouble"] = str(error)
    except TooSlowError:
        shown["trouble"] = "The directory is large or slow, and still being read. Load this page again in a minute."
    else:
        return page(request, "batch.html.jinja", **shown, **report_values(report))
    known = of_summary(batch.summary) if batch.summary else None
    return page(request, "unreadable_batch.html.jinja", **shown, figures=known)
