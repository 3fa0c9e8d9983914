"""Files of a model (weights, adapters), uploaded to the server as blobs unless it already has them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import BadRequestError, BlobNotFoundError, InvalidRequestError
from ollama_provider.api.pulls import PullProgress
from ollama_provider.api.schemas import HeadBlobRequest, PushBlobRequest
from ollama_provider.hooks import OllamaHook
from ollama_provider.observability import Logger, describe_pull, describe_size

#: Bytes per read.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file and the digest of its content.

    Attributes:
        path: the file.
        digest: ``sha256:`` and 64 hex digits.
        size: bytes.
    """

    path: ObjectStoragePath
    digest: str
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Read the file in chunks."""
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk


def paths_in(value: Any) -> list[ObjectStoragePath]:
    """Return the paths that an argument gives: a path or a list of paths; none for None."""
    paths = [] if value is None else [value] if isinstance(value, str | Path | ObjectStoragePath) else list(value)
    return [ObjectStoragePath(path) for path in paths]


def read_blobs(field: str, value: Any) -> dict[str, Blob]:
    """Read files to compute their digests, and return them by file name.

    Args:
        field: name of the argument, for errors.
        value: a path or a list of paths, on any ``ObjectStoragePath``; None for no files.

    Raises:
        InvalidRequestError: a file does not exist, a ``.gguf`` file is not in that format, or two files have the same
            name.
    """
    blobs: dict[str, Blob] = {}
    for path in paths_in(value):
        if path.name in blobs:
            raise InvalidRequestError(f"{field}: there are several files with the name {path.name!r}")
        try:
            blobs[path.name] = _read(field, path)
        except FileNotFoundError:
            raise InvalidRequestError(f"{field}: there is no file {path}") from None
    return blobs


def _read(field: str, path: ObjectStoragePath) -> Blob:
    digest, size = hashlib.sha256(), 0
    for chunk in Blob(path, "", 0).chunks():
        if not size and path.suffix == ".gguf" and not chunk.startswith(b"GGUF"):
            raise InvalidRequestError(f"{field}: {path.name} is not a GGUF file, despite its name")
        digest.update(chunk)
        size += len(chunk)
    return Blob(path, f"sha256:{digest.hexdigest()}", size)


def upload(hook: OllamaHook, blob: Blob, log: Logger) -> None:
    """Upload a blob, unless the server has it from an earlier try or another model.

    The server keeps nothing of an interrupted upload, so such a file is sent again from its beginning.

    Raises:
        InvalidRequestError: the file has changed since its digest was computed.
    """
    try:
        hook.send(HeadBlobRequest(digest=blob.digest))
    except BlobNotFoundError:
        pass
    else:
        log.info("%s: already on the server", blob.path.name)
        return
    try:
        hook.send(PushBlobRequest(digest=blob.digest, size=blob.size, source=lambda: _chunks_with_progress(blob, log)))
    except BadRequestError as error:
        if "digest mismatch" not in error.what:
            raise
        raise InvalidRequestError(
            f"{blob.path.name} changed while it was uploaded. Is another process still writing it?", host=error.host
        ) from None
    log.info("%s: uploaded, %s", blob.path.name, describe_size(blob.size))


def _chunks_with_progress(blob: Blob, log: Logger) -> Iterator[bytes]:
    """Read the file in chunks, and log the progress of the upload every few seconds."""
    progress = PullProgress(blob.path.name, stall=0, now=monotonic())
    sent = 0
    for chunk in blob.chunks():
        sent += len(chunk)
        line: dict[str, object] = {"status": "uploading", "digest": blob.digest, "total": blob.size, "completed": sent}
        if moved := progress.add(line, monotonic()):
            log.info("%s", describe_pull(moved))
        yield chunk
