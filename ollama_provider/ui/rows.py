"""The good and the failed rows of a batch as tables, and its files as downloads."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from os import SEEK_END
from pathlib import PurePath
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from ollama_provider.batch import FileKind, open_file, read_rows
from ollama_provider.ui.access import BatchDep
from ollama_provider.ui.batches import Batch
from ollama_provider.ui.directories import UnreadableError, opened, read_directory
from ollama_provider.ui.rendering import page
from ollama_provider.ui.threads import TooSlowError, in_thread

#: Bytes of a download that are in memory at a time.
_CHUNK = 1 << 18
_TYPES = {".json": "application/json", ".jsonl": "application/jsonl", ".parquet": "application/vnd.apache.parquet"}

_READERS = {"good": partial(read_rows, status="ok"), "failed": partial(read_rows, status="failed")}

router = APIRouter(prefix="/batches/{dag_id}/{run_id}/{task_id}/{map_index}")


@router.get("/rows/{which}")
async def rows(
    request: Request,
    batch: BatchDep,
    which: Literal["good", "failed"],
    *,
    cursor: Annotated[str, Query(max_length=100)] = "",
    search: Annotated[str, Query(max_length=200)] = "",
    reason: Annotated[str, Query(max_length=100)] = "",
) -> HTMLResponse:
    """Show some of the good or of the failed rows.

    Args:
        request: which is answered.
        batch: of the URL.
        which: rows.
        cursor: see `read_rows`.
        search: see there.
        reason: see there; of failed rows.
    """
    given: dict[str, Any] = {"cursor": cursor, "search": search.strip(), "reason": reason.strip()}
    found, trouble = None, ""
    try:
        found = await in_thread(read_directory, batch.directory, partial(_READERS[which], **given))
    except UnreadableError as error:
        trouble = str(error)
    except TooSlowError:
        trouble = "The directory is slow, and still being read. Load this page again in a minute."
    reasons = {row.reason for row in found.rows if row.reason} if found else set()
    # The summary has those of one run, and so not always all.
    if batch.summary and isinstance(errors := batch.summary.get("errors"), dict):
        reasons |= errors.keys()
    return page(
        request, "rows.html.jinja", tab="batches", batch=batch, found=found, trouble=trouble, reasons=sorted(reasons),
        which=which, **given,
    )  # fmt: skip


@router.get("/files/{name}")
async def download(batch: BatchDep, name: FileKind) -> Response:
    """Return a file of the batch. The summary is that of the task; the files are those of the directory."""
    if name == "summary" and batch.summary is not None:
        content = json.dumps(batch.summary, indent=2) + "\n"
        return Response(content, media_type=_TYPES[".json"], headers=_attached(batch, "summary.json"))
    file = _File()
    try:
        await in_thread(file.open, batch.directory, name)
    except UnreadableError as error:
        raise HTTPException(404, str(error)) from error
    # Airflow compresses what has no encoding, in the event loop that answers all requests.
    headers = _attached(batch, file.name) | {"Content-Encoding": "identity", "Content-Length": str(file.size)}
    return StreamingResponse(file.pieces(), media_type=_TYPES[PurePath(file.name).suffix], headers=headers)


def _attached(batch: Batch, name: str) -> dict[str, str]:
    names = (re.sub(r"[^\w.-]+", "_", each, flags=re.ASCII) for each in (batch.dag_id, batch.task_id, name))
    return {"Content-Disposition": f'attachment; filename="{"-".join(names)}"'}


class _File:
    """A file that is sent in pieces, each read in a thread.

    Attributes:
        name: of the file in the directory.
        size: in bytes.
    """

    def __init__(self) -> None:
        self.name = ""
        self.size = 0
        self._left = ExitStack()

    def open(self, location: str, kind: FileKind) -> None:
        """Open a file of a directory.

        Args:
            location: URL of the directory.
            kind: which file.

        Raises:
            UnreadableError: it cannot be read, or is not there.
        """
        with ExitStack() as stack:
            storage = stack.enter_context(opened(location))
            self.name, file = open_file(storage, kind)
            self._file: BinaryIO = stack.enter_context(file)
            self.size = self._file.seek(0, SEEK_END)
            self._file.seek(0)
            self._left = stack.pop_all()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Return its content."""
        while piece := await in_thread(self._read):
            yield piece

    def _read(self) -> bytes:
        return self._file.read(_CHUNK)

    def __del__(self) -> None:
        """Close it when nobody needs it any more: neither the request nor a thread that still reads for it.

        Closing waits for such a thread. If the request closed it, the event loop would wait as long as the disk hangs.
        """
        self._left.close()
