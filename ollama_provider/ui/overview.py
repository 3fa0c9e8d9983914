"""The newest batches of the DAGs that a user may see."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ollama_provider.ui.access import CAN_READ_TASKS, UserDep, readable_dags
from ollama_provider.ui.batches import newest_batches
from ollama_provider.ui.rendering import page

#: Batches that are shown.
_COUNT = 50

router = APIRouter()


# Not ``async``: it waits for Airflow's database alone, in the thread pool of the API server, like Airflow's own pages.
@router.get("/", dependencies=[CAN_READ_TASKS])
def overview(request: Request, user: UserDep) -> HTMLResponse:
    """Show the newest batches."""
    batches = newest_batches(readable_dags(user), _COUNT)
    return page(request, "batches.html.jinja", tab="batches", batches=batches)
