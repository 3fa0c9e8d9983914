"""The folder that images must be in, if data names them.

The path of an image may come from a row, a template or the result of another task. Without a limit, the author of that
text would choose what the worker reads and the model describes: any image of the machine, an address inside the network
(``http://…``), a device without end. So the DAG names a folder or a bucket, and nothing outside of it is read.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.images import read_image_file
from ollama_provider.batch.store.storage import as_path, local_path


class ImageFolder:
    """A folder, local or in an object store, and the images in it, by the names that data gives them.

    Args:
        root: a path, a URL, or an object that behaves like a `pathlib.Path`.
    """

    def __init__(self, root: Any) -> None:
        local = local_path(root)
        self._local = None if local is None else Path(os.path.realpath(local))
        self._remote = as_path(root) if local is None and isinstance(root, str) else root
        self._root = root

    def read(self, name: str, place: str) -> bytes:
        """Return the content of an image.

        Args:
            name: a path or URL within the folder, or a path relative to it.
            place: what error texts call the image, such as ``images.0``; the name of the file is added.

        Raises:
            InvalidRequestError: the image is not in the folder, after ``..`` and links are followed; or it is not an
                image, see `read_image_file`.
            OSError: the store fails; another attempt may succeed.
        """
        try:
            path = self._remote_path(name) if self._local is None else self._local_path(name, self._local)
        except (ValueError, OSError):  # a NUL, a name that is too long, links in a circle
            path = None
        if path is None:
            raise InvalidRequestError(
                f"{place}: it is not in {self._root}, and only images in that folder are read; images_from names it"
            )
        return read_image_file(path, place)

    @staticmethod
    def _local_path(name: str, root: Path) -> Path | None:
        local = local_path(name)
        if local is None:
            return None
        # The real path, with all links followed: there is no link left in what is opened.
        real = Path(os.path.realpath(root / local))
        return real if real.is_relative_to(root) else None

    def _remote_path(self, name: str) -> Any:
        root = _address(str(self._remote))
        if "://" in name:
            protocol, address = _address(name)
            if protocol != root[0] or not address.startswith(f"{root[1]}/"):
                return None
            name = address[len(root[1]) :]
        elif name.startswith("/"):
            return None
        # A server may read %2e as a dot, and fsspec reads what follows "::" as another address.
        if "::" in name or ".." in unquote(name).replace("\\", "/").split("/"):
            return None
        path = self._remote.joinpath(*(part for part in name.split("/") if part not in {"", "."}))
        protocol, address = _address(str(path))
        return path if protocol == root[0] and address.startswith(f"{root[1]}/") else None


def _address(url: str) -> tuple[str, str]:
    """Return protocol and path of a URL, without the connection that Airflow puts before an ``@``."""
    protocol, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return protocol, (host.rpartition("@")[2] + slash + path).strip("/")
