"""Style, script and icon of the page."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from ollama_provider.batch import STYLE

_FOLDER = Path(__file__).parent / "static"
_FILES = {
    "report.css": (STYLE, "text/css"),
    "icon.svg": (_FOLDER / "icon.svg", "image/svg+xml"),
    "page.css": (_FOLDER / "page.css", "text/css"),
    "page.js": (_FOLDER / "page.js", "text/javascript"),
}

router = APIRouter()


@router.get("/static/{name}")
async def static_file(name: str) -> FileResponse:
    """Return one of the files."""
    if name not in _FILES:
        raise HTTPException(404, f"There is no {name} here.")
    path, media_type = _FILES[name]
    # The address of a file has the version of the package in it.
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": "private, max-age=86400"})
