"""Templates into answers."""

from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from ollama_provider import __version__
from ollama_provider.batch import report_environment
from ollama_provider.links import PAGE

_TEMPLATES = Path(__file__).parent / "templates"


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page of a template in ``templates/``.

    Besides *values*, a template knows ``root`` and ``airflow``: the addresses of this page and of Airflow's UI, without
    a slash at their ends.

    Args:
        request: which is answered.
        template: file name.
        status: of the answer.
        values: for the template.
    """
    root = str(request.scope["root_path"]).rstrip("/")  # it has a slash if the path has a line feed
    text = (
        report_environment(_TEMPLATES)
        .get_template(template)
        .render(values, root=root, airflow=root.removesuffix(f"/{PAGE}"), version=__version__)
    )
    return HTMLResponse(text, status)
