"""Paths as people write them."""

import re
from hashlib import blake2b
from pathlib import Path

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError

#: What Airflow names a run by itself, and the folder of such a run.
_USUAL = re.compile(r"[a-z_]+__\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+\d\d:\d\d(_[A-Za-z0-9]+)?")
_USUAL_FOLDER = re.compile(_USUAL.pattern.replace(":", "_").replace(r"\+", "_"))
#: Characters of a folder's name; file systems take 255.
_LONGEST = 200


def storage_path(text: str) -> ObjectStoragePath:
    """Return a path of any store; without a scheme it is one of this machine.

    A relative one begins in the working directory, as everywhere else; Airflow 2 alone would begin it at the root.

    Raises:
        InvalidRequestError: nothing here knows its protocol.
    """
    try:
        return ObjectStoragePath(text if "://" in text else str(Path(text).absolute()))
    except (ImportError, ValueError) as error:
        raise InvalidRequestError(f"{text}: {error}") from None


def run_folder_name(run_id: str) -> str:
    """Return the name of the folder of a DAG run: another one for each run id, and never one that leads elsewhere.

    A run id that Airflow made keeps its form, with ``_`` for ``:`` and ``+``: ``scheduled__2026-01-01T00_00_00_00_00``.
    In all others what is no letter, digit, ``_``, ``-`` or ``.`` of ASCII, and a dot at the beginning, is ``~`` and two
    hexadecimal digits for each byte: ``a:b`` is ``a~3Ab``. A long one is cut and ends with a hash.
    """
    if _USUAL.fullmatch(run_id):
        return re.sub("[:+]", "_", run_id)
    name = re.sub(r"^\.|[^A-Za-z0-9_.-]", _escaped, run_id)
    if _USUAL_FOLDER.fullmatch(name):
        name = re.sub("^.", _escaped, name)
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}~~{blake2b(run_id.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
    return name or "~"


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"~{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def earlier_run_folder_name(run_id: str) -> str:
    """Return the name that earlier versions gave to that folder, which other runs may have had as well."""
    return re.sub(r"[^\w.-]", "_", run_id)
