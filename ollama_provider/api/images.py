"""Pictures (and sounds) that a model can take: what they are, how large they may be, and how a file is read for one."""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from ollama_provider.api.errors import InvalidRequestError

#: Bytes of one picture at most: a photograph of 50 megapixels fits, and models scale it down to about one.
LIMIT = 20_000_000

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
    """Return what a model must be able to do, to take these: ``vision``, ``audio``, or both."""
    return {"vision" if kind_of(image) == "image" else "audio" for image in images}


def kind_of(data: bytes) -> str | None:
    """Return ``"image"`` or ``"audio"``; None for what no model takes."""
    return next((kind for pattern, kind in _KINDS if pattern.match(data)), None)


def read_image_file(file: Any, place: str, as_path: Callable[[str], Any]) -> bytes:
    """Return the bytes of a picture or sound in a file.

    Args:
        file: an object that behaves like a `pathlib.Path`, or a text that names one.
        place: what errors call it; the file's name is put behind.
        as_path: makes a path of a text.

    Raises:
        InvalidRequestError: it is not there, cannot be read, or see `check_image`.
        OSError: the store fails, which may pass.
    """
    place = f"{place} ({PurePosixPath(str(file)).name})"
    try:
        path = as_path(file) if isinstance(file, str) else file
        size = path.stat().st_size
        if size > LIMIT:
            raise _too_large(size, place)
        return check_image(path.read_bytes(), place)
    except FileNotFoundError:
        raise InvalidRequestError(f"{place}: there is no such file") from None
    except (IsADirectoryError, PermissionError, ImportError, ValueError) as error:
        # ImportError, ValueError: no driver for the protocol. What else goes wrong may pass, and is let through.
        raise InvalidRequestError(f"{place}: it cannot be read: {error}") from None


def check_image(data: bytes, place: str) -> bytes:
    """Return *data*, if a model can take it.

    Raises:
        InvalidRequestError: it is not PNG, JPEG, WebP, WAV or MP3, or larger than `LIMIT`.
    """
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
