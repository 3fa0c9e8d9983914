"""Where the images that data names must lie.

The path of an image may come from a row, a template or another task's result. Whoever wrote that text would choose what
the worker reads and the model describes: any picture of the machine, an address inside the network (``http://…``), a
device that never ends. So the DAG names a folder or a bucket, and nothing outside of it is read.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.images import read_image_file
from ollama_provider.batch.store.storage import as_path, local_path


class ImageFolder:
    """A folder, local or in an object store, out of which images are read by the names that data gives.

    Args:
        root: a path, a URL, or an object that behaves like a `pathlib.Path`.
    """

    def __init__(self, root: Any) -> None:
        local = local_path(root)
        self._local = None if local is None else Path(os.path.realpath(local))
        self._remote = as_path(root) if local is None and isinstance(root, str) else root
        self._root = root

    def read(self, name: str, place: str) -> bytes:
        """Return the image of that name.

        Args:
            name: a path or URL within the folder, or a path that begins there.
            place: what errors call it; the file's name is put behind.

        Raises:
            InvalidRequestError: it does not lie in the folder, ``..`` and links followed; or see `read_image_file`.
            OSError: the store fails, which may pass.
        """
        try:
            path = self._remote_path(name) if self._local is None else self._local_path(name, self._local)
        except (ValueError, OSError):  # a NUL, a name that is too long, links in a circle
            path = None
        if path is None:
            raise InvalidRequestError(
                f"{place}: it does not lie in {self._root}, and only what does is read; images_from names the folder"
            )
        return read_image_file(path, place)

    @staticmethod
    def _local_path(name: str, root: Path) -> Path | None:
        local = local_path(name)
        if local is None:
            return None
        # Where it really is, with all links followed; there is none to follow in what is opened then.
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
        # A server may read %2e as a dot; fsspec reads what stands behind "::" as another address.
        if "::" in name or ".." in unquote(name).replace("\\", "/").split("/"):
            return None
        path = self._remote.joinpath(*(part for part in name.split("/") if part not in {"", "."}))
        protocol, address = _address(str(path))
        return path if protocol == root[0] and address.startswith(f"{root[1]}/") else None


def _address(url: str) -> tuple[str, str]:
    """Return protocol and place of a URL, without the connection that Airflow puts before an ``@``."""
    protocol, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return protocol, (host.rpartition("@")[2] + slash + path).strip("/")
