"""The newest batches of the DAGs that a user may see."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from ollama_provider.ui.access import CAN_READ_TASKS, UserDep, readable_dags
from ollama_provider.ui.batches import Batch, newest_batches
from ollama_provider.ui.figures import figures
from ollama_provider.ui.rendering import page

#: Batches that are shown.
_COUNT = 50

router = APIRouter()


# A dependency that is not ``async`` runs in a thread: it waits for Airflow's database.
def _newest(user: UserDep) -> list[Batch]:
    return newest_batches(readable_dags(user), _COUNT)


@router.get("/", dependencies=[CAN_READ_TASKS])
async def overview(request: Request, batches: Annotated[list[Batch], Depends(_newest)]) -> HTMLResponse:
    """Show the newest batches."""
    shown = list(zip(batches, await asyncio.gather(*map(figures, batches)), strict=True))
    live = any(batch.is_running for batch in batches)
    return page(request, "batches.html.jinja", tab="batches", live=live, batches=shown)
