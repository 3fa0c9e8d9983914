"""Pictures (and sounds) for a model: from bytes, base64 or a file, and nothing else than what a model can see.

A text that is no picture is taken for a path only where the DAG says so: `images` is rendered from templates and other
tasks' results, and a path in there would let whoever wrote that data choose what the worker reads.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.images import LIMIT, capabilities_for, check_image, kind_of, read_image_file

__all__ = ["LIMIT", "capabilities_for", "read_images"]

_DATA_URL = re.compile(r"^data:[^,]*;base64,")


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


def _read(value: Any, place: str, allow_paths: bool) -> bytes:
    if isinstance(value, str):
        data = _decoded(value)
        if data is not None and (kind_of(data) or not allow_paths):
            return check_image(data, place)
        if not allow_paths:
            raise InvalidRequestError(
                f"{place}: this text is not base64. If it names a file, set allow_image_paths=True, which lets whoever "
                "wrote the text choose what the worker reads, or give an ObjectStoragePath"
            )
        return read_image_file(value, place, ObjectStoragePath)
    if isinstance(value, Path | ObjectStoragePath):
        return read_image_file(value, place, ObjectStoragePath)
    if isinstance(value, bytes | bytearray):
        return check_image(bytes(value), place)
    raise InvalidRequestError(f"{place}: bytes, base64 or a path is needed, not {type(value).__name__}")


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(_DATA_URL.sub("", text.strip()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
        return None
