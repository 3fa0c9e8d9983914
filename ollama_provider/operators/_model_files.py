"""Files on their way to the server: known by their SHA-256, sent only where it does not have them."""

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

#: Bytes read at a time.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file, by its content.

    Attributes:
        path: where it is.
        digest: ``sha256:`` and 64 hex digits.
        size: bytes.
    """

    path: ObjectStoragePath
    digest: str
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Read the file."""
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece


def read_blobs(field: str, value: Any) -> dict[str, Blob]:
    """Return files by name, each read once to know its digest.

    Args:
        field: the argument they were given as, for errors.
        value: a path or a list of paths, on any ``ObjectStoragePath``; None is none.

    Raises:
        InvalidRequestError: one is not there, is called ``.gguf`` and is none, or has the name of another.
    """
    paths = [] if value is None else [value] if isinstance(value, str | Path | ObjectStoragePath) else list(value)
    found: dict[str, Blob] = {}
    for path in map(ObjectStoragePath, paths):
        if path.name in found:
            raise InvalidRequestError(f"{field}: there are several files of the name {path.name!r}")
        try:
            found[path.name] = _read(field, path)
        except FileNotFoundError:
            raise InvalidRequestError(f"{field}: there is no file {path}") from None
    return found


def _read(field: str, path: ObjectStoragePath) -> Blob:
    digest, size = hashlib.sha256(), 0
    for piece in Blob(path, "", 0).pieces():
        if not size and path.suffix == ".gguf" and not piece.startswith(b"GGUF"):
            raise InvalidRequestError(f"{field}: {path.name} is not a GGUF file, whatever its name says")
        digest.update(piece)
        size += len(piece)
    return Blob(path, f"sha256:{digest.hexdigest()}", size)


def upload(hook: OllamaHook, blob: Blob, log: Logger) -> None:
    """See to it that the server has a blob.

    What it has, from an earlier try or another model, is not sent again; of an upload that broke off it keeps nothing.

    Raises:
        InvalidRequestError: the file is no longer what it was when its digest was taken.
    """
    try:
        hook.send(HeadBlobRequest(digest=blob.digest))
    except BlobNotFoundError:
        pass
    else:
        log.info("%s: the server has it already", blob.path.name)
        return
    try:
        hook.send(PushBlobRequest(digest=blob.digest, size=blob.size, source=lambda: _told(blob, log)))
    except BadRequestError as error:
        if "digest mismatch" not in error.what:
            raise
        raise InvalidRequestError(
            f"{blob.path.name} changed while it was uploaded. Is somebody still writing it?", host=error.host
        ) from None
    log.info("%s: uploaded, %s", blob.path.name, describe_size(blob.size))


def _told(blob: Blob, log: Logger) -> Iterator[bytes]:
    """Read the file, and tell every few seconds how far it is."""
    progress = PullProgress(blob.path.name, stall=0, now=monotonic())
    sent = 0
    for piece in blob.pieces():
        sent += len(piece)
        line: dict[str, object] = {"status": "uploading", "digest": blob.digest, "total": blob.size, "completed": sent}
        if moved := progress.add(line, monotonic()):
            log.info("%s", describe_pull(moved))
        yield piece
