"""Pictures (and sounds) for a model: from bytes, base64 or a file, and nothing else than what a model can see.

A text that is no picture is taken for a path only where the DAG says so: `images` is rendered from templates and other
tasks' results, and a path in there would let whoever wrote that data choose what the worker reads.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError

#: Bytes of one picture at most: a photograph of 50 megapixels fits, and models scale it down to about one.
LIMIT = 20_000_000

_DATA_URL = re.compile(r"^data:[^,]*;base64,")
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


def read_images(images: Any, *, allow_paths: bool, place: str = "images") -> list[bytes]:
    """Return the bytes of each picture or sound.

    Args:
        images: one or a list of: bytes; base64 text, also as a ``data:`` URL; an ``ObjectStoragePath`` or
            ``pathlib.Path``; with *allow_paths* also a text that names a file or an object (``s3://aws@bucket/x.png``).
        allow_paths: read files that a text names.
        place: what errors call the list.

    Raises:
        InvalidRequestError: one of them is none of these, is not PNG, JPEG, WebP, WAV or MP3, is larger than `LIMIT`,
            or is not there. The text names its place and, where it is a file, the file's name.
    """
    values = [images] if isinstance(images, bytes | bytearray | str | Path | ObjectStoragePath) else images
    if not isinstance(values, list | tuple):
        raise InvalidRequestError(f"{place}: a list is needed, not {type(images).__name__}")
    return [_read(value, f"{place}.{number}", allow_paths) for number, value in enumerate(values)]


def capabilities_for(images: Iterable[bytes]) -> set[str]:
    """Return what a model must be able to do, to take these: ``vision``, ``audio``, or both."""
    return {"vision" if kind_of(image) == "image" else "audio" for image in images}


def kind_of(data: bytes) -> str | None:
    """Return ``"image"`` or ``"audio"``; None for what no model takes."""
    return next((kind for pattern, kind in _KINDS if pattern.match(data)), None)


def _read(value: Any, place: str, allow_paths: bool) -> bytes:
    if isinstance(value, str):
        data = _decoded(value)
        if data is not None and (kind_of(data) or not allow_paths):
            return _checked(data, place)
        if not allow_paths:
            raise InvalidRequestError(
                f"{place}: this text is not base64. If it names a file, set allow_image_paths=True, which lets whoever "
                "wrote the text choose what the worker reads, or give an ObjectStoragePath"
            )
        return _read_file(value, place)
    if isinstance(value, Path | ObjectStoragePath):
        return _read_file(value, place)
    if isinstance(value, bytes | bytearray):
        return _checked(bytes(value), place)
    raise InvalidRequestError(f"{place}: bytes, base64 or a path is needed, not {type(value).__name__}")


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(_DATA_URL.sub("", text.strip()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
        return None


def _read_file(file: str | Path | ObjectStoragePath, place: str) -> bytes:
    place = f"{place} ({PurePosixPath(str(file)).name})"
    try:
        path = ObjectStoragePath(file) if isinstance(file, str) else file
        size = path.stat().st_size
        if size > LIMIT:
            raise _too_large(size, place)
        return _checked(path.read_bytes(), place)
    except FileNotFoundError:
        raise InvalidRequestError(f"{place}: there is no such file") from None
    except (IsADirectoryError, PermissionError, ImportError, ValueError) as error:
        # ImportError, ValueError: no driver for the protocol. What else goes wrong may pass, and is let through.
        raise InvalidRequestError(f"{place}: it cannot be read: {error}") from None


def _checked(data: bytes, place: str) -> bytes:
    if len(data) > LIMIT:
        raise _too_large(len(data), place)
    if kind_of(data) is None:
        found = next((name for pattern, name in _OTHERS if pattern.match(data)), "something else" if data else "empty")
        raise InvalidRequestError(
            f"{place}: this is {found}, and a model takes PNG, JPEG or WebP (some also WAV or MP3)"
        )
    return data


def _too_large(size: int, place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{place}: it has {size / 1e6:.1f} MB, and {LIMIT / 1e6:.0f} MB is the most that is sent. Scale it down: "
        "models see about one megapixel"
    )
