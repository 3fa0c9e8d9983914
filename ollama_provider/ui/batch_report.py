"""The page of one batch."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ollama_provider.ui.access import BatchDep
from ollama_provider.ui.rendering import page

router = APIRouter()


@router.get("/batches/{dag_id}/{run_id}/{task_id}/{map_index}")
async def batch_report(request: Request, batch: BatchDep) -> HTMLResponse:
    """Show a batch."""
    return page(request, "batch.html.jinja", tab="batches", batch=batch)
