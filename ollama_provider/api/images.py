"""Images (and sounds) for a model: their kinds, the limit of their size, and reading them from files."""

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas.base import printable

#: Bytes of one picture at most: a photograph of 50 megapixels fits, and models scale it down to about one.
LIMIT = 20_000_000
#: Bytes read at a time.
_PIECE = 1 << 20
#: Errors that a retry cannot change: an impossible name, a circle of links, a socket.
_PERMANENT = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL}

_KINDS = (
    (re.compile(rb"\x89PNG\r\n"), "image"),
    (re.compile(rb"\xff\xd8\xff"), "image"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image"),
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "audio"),
    (re.compile(rb"ID3|\xff[\xfb\xf3\xf2]"), "audio"),
)
_OTHERS = (
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"GIF8"), "a GIF"),
    (re.compile(rb"BM"), "a BMP"),
    (re.compile(rb"II\*\x00|MM\x00\*"), "a TIFF"),
    (re.compile(rb"....ftyp(heic|heix|mif1|avif)", re.DOTALL), "a HEIC or AVIF"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video"),
    (re.compile(rb"PK\x03\x04"), "a ZIP or Office file"),
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL), "an SVG"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page"),
)


def capabilities_for(images: Iterable[bytes]) -> set[str]:
    """Return the capabilities that a model needs for these: ``vision``, ``audio``, or both."""
    return {"vision" if kind_of(image) == "image" else "audio" for image in images}


def kind_of(data: bytes) -> str | None:
    """Return ``"image"`` or ``"audio"``; None for anything else."""
    return next((kind for pattern, kind in _KINDS if pattern.match(data)), None)


def read_image_file(path: Any, place: str) -> bytes:
    """Return the bytes of an image or sound in a file. No more than `LIMIT` bytes are read.

    Args:
        path: a local `pathlib.Path`, or a path of an object store that behaves like one.
        place: how errors refer to it; the file's name is added.

    Raises:
        InvalidRequestError: it does not exist, is no regular file, cannot be read, or `check_image` refuses it.
        OSError: the store failed; a retry may succeed.
    """
    name = PurePosixPath(str(path)).name.encode("utf-8", "backslashreplace").decode()
    place = f"{place} ({printable(name[:100])})"
    try:
        # In some versions the paths of an object store are a Path, too.
        local = isinstance(path, Path) and not hasattr(type(path), "fs")
        data = _read_local(path, place) if local else _read_stored(path, place)
    except FileNotFoundError:
        raise InvalidRequestError(f"{place}: there is no such file") from None
    except IsADirectoryError:
        raise InvalidRequestError(f"{place}: it cannot be read: it is a folder") from None
    except (PermissionError, ImportError, ValueError) as error:
        # ImportError, ValueError: no driver for the protocol. A retry may help against other errors, which are raised.
        raise InvalidRequestError(f"{place}: it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except OSError as error:
        if error.errno not in _PERMANENT:
            raise
        raise InvalidRequestError(f"{place}: it cannot be read: {error.strerror}") from None
    return check_image(data, place)


def _read_local(path: Path, place: str) -> bytes:
    # Without O_NONBLOCK, opening a pipe without a writer would block.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(found.st_mode):
            raise InvalidRequestError(f"{place}: it cannot be read: it is no regular file")
        if found.st_size > LIMIT:
            raise _too_large(f"it has {found.st_size / 1e6:.1f} MB", place)
        return _read_all(file, place)


def _read_stored(path: Any, place: str) -> bytes:
    try:
        with path.open("rb") as file:
            return _read_all(file, place)
    except (OSError, InvalidRequestError, ImportError, ValueError):
        raise
    except Exception as error:
        # Libraries of object stores have errors of their own, whose texts may contain signed URLs.
        raise OSError(f"{place}: the store's library raised {type(error).__name__}") from error


def _read_all(file: Any, place: str) -> bytes:
    data = bytearray()
    while piece := file.read(min(_PIECE, LIMIT + 1 - len(data))):
        data += piece
        if len(data) > LIMIT:
            raise _too_large(f"it has more than {LIMIT / 1e6:.0f} MB", place)
    return bytes(data)


def check_image(data: bytes, place: str) -> bytes:
    """Return *data* if it is an image or sound that a model accepts.

    Raises:
        InvalidRequestError: it is not PNG, JPEG, WebP, WAV or MP3, or larger than `LIMIT`.
    """
    if len(data) > LIMIT:
        raise _too_large(f"it has {len(data) / 1e6:.1f} MB", place)
    if kind_of(data) is None:
        found = next((name for pattern, name in _OTHERS if pattern.match(data)), "something else" if data else "empty")
        raise InvalidRequestError(
            f"{place}: this is {found}, and a model takes PNG, JPEG or WebP (some also WAV or MP3)"
        )
    return data


def _too_large(found: str, place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{place}: {found}, and {LIMIT / 1e6:.0f} MB is the most that is sent. Scale it down: models see about one "
        "megapixel"
    )
