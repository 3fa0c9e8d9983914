"""Reads the images (and sounds) of a request, from bytes, base64 or a file, and checks their format.

A text that is not base64 counts as a path only if the DAG names a folder with *images_from*. The images may come from
templates and other tasks' results, and whoever writes that data could otherwise make the worker read any file.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.arguments import read_list
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.images import check_image, kind_of, read_image_file
from ollama_provider.operators._storage_paths import storage_path

if TYPE_CHECKING:
    from ollama_provider.batch import ImageFolder

_DATA_URL = re.compile(r"^data:[^,]*;base64,")


def read_images(images: Any, *, images_from: Any = None, place: str = "images") -> list[bytes]:
    """Return the bytes of each image or sound.

    Args:
        images: one image or a list. Each is bytes; base64 text, also as a ``data:`` URL; an ``ObjectStoragePath`` or
            ``pathlib.Path``; or, with *images_from*, the path of a file or object in that folder. The list may be the
            text that a template has made of it.
        images_from: folder or bucket that paths given as text must lie in.
        place: name of the list in errors.

    Raises:
        InvalidRequestError: one is none of these; is not PNG, JPEG, WebP, WAV or MP3; is larger than 20 MB; does not
            exist; or lies outside the folder. The text names its place in the list and the file, if it is one.
    """
    if isinstance(images, str):
        images = images if (listed := read_list(images)) is None else listed
    values = [images] if isinstance(images, bytes | bytearray | str | Path | ObjectStoragePath) else images
    if not isinstance(values, list | tuple):
        raise InvalidRequestError(f"{place}: a list is needed, not {type(images).__name__}")
    folder = _folder(images_from)
    return [_read(value, f"{place}.{number}", folder) for number, value in enumerate(values)]


def _folder(images_from: Any) -> "ImageFolder | None":
    if not images_from:
        return None
    from ollama_provider.batch import ImageFolder  # loaded only when it is needed

    return ImageFolder(storage_path(images_from) if isinstance(images_from, str) else images_from)


def _read(value: Any, place: str, folder: "ImageFolder | None") -> bytes:
    if isinstance(value, str):
        data = _decode(value)
        if data is not None and (kind_of(data) or folder is None):
            return check_image(data, place)
        if folder is None:
            raise InvalidRequestError(
                f"{place}: this text is not base64. If it names a file, set images_from to the folder or bucket of "
                "such files, or pass an ObjectStoragePath"
            )
        return folder.read(value, place)
    if isinstance(value, Path | ObjectStoragePath):
        from ollama_provider.batch import local_path

        return read_image_file(local_path(value) or value, place)
    if isinstance(value, bytes | bytearray):
        return check_image(bytes(value), place)
    raise InvalidRequestError(f"{place}: bytes, base64 or a path is needed, not {type(value).__name__}")


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(_DATA_URL.sub("", text.strip()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters outside ASCII
        return None
