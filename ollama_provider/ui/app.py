"""The page as a FastAPI app, which Airflow's API server mounts."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from ollama_provider.ui import batch_report, overview, rows, servers_page, static_files
from ollama_provider.ui.access import LOGGED_IN
from ollama_provider.ui.rendering import page
from ollama_provider.ui.threads import TooSlowError

#: What a browser may do with an answer: show it, in Airflow's frame and no other, with our own style and script.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
#: Of answers that show nothing; a sentence where Airflow gives a word or two.
_REFUSALS = {
    401: ("Not logged in", "Log in to Airflow, and load this page again."),
    403: (
        "Not allowed",
        "Ask an administrator for the right to read task instances of the DAG, or connections for the servers.",
    ),
    404: ("Not found", ""),
    503: ("Not yet", ""),
}

# No pages of the API's documentation: these are for people.
app = FastAPI(title="Ollama", dependencies=[LOGGED_IN], openapi_url=None, docs_url=None, redoc_url=None)
app.include_router(static_files.router)
app.include_router(overview.router)
app.include_router(batch_report.router)
app.include_router(rows.router)
app.include_router(servers_page.router)


@app.middleware("http")
async def add_headers(request: Request, call_next: Any) -> Response:
    """Add the headers that all answers have."""
    response: Response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


@app.exception_handler(StarletteHTTPException)
async def refuse(request: Request, error: HTTPException) -> Response:
    """Say in a sentence why there is nothing to see."""
    title, sentence = _REFUSALS.get(error.status_code, (f"HTTP {error.status_code}", ""))
    return page(request, "refused.html.jinja", status=error.status_code, title=title, detail=sentence or error.detail)


@app.exception_handler(TooSlowError)
async def refuse_for_now(request: Request, error: TooSlowError) -> Response:  # noqa: ARG001  # FastAPI's signature
    """Say that what is asked for takes longer than a request may."""
    return await refuse(request, HTTPException(503, "There is no answer yet. Load this page again in a minute."))


@app.exception_handler(RequestValidationError)
async def refuse_address(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001  # FastAPI's signature
    """Say that an address, such as one whose map index is no number, leads nowhere."""
    return await refuse(request, HTTPException(404, "There is no page with this address."))
