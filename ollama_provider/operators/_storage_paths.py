"""Paths on any storage, and the names of the folders of DAG runs."""

import re
from hashlib import blake2b
from pathlib import Path

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError

#: Matches the run ids that Airflow generates, and the names of their folders.
_GENERATED_ID = re.compile(r"[a-z_]+__\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+\d\d:\d\d(_[A-Za-z0-9]+)?")
_GENERATED_FOLDER = re.compile(_GENERATED_ID.pattern.replace(":", "_").replace(r"\+", "_"))
#: Longest name of a folder, in characters; file systems allow 255.
_MAX_LENGTH = 200


def storage_path(text: str) -> ObjectStoragePath:
    """Return a path on any storage; without a scheme it is a local one.

    A relative path starts in the working directory. (Airflow 2 by itself would start it at the root.)

    Raises:
        InvalidRequestError: no installed package supports its protocol.
    """
    try:
        return ObjectStoragePath(text if "://" in text else str(Path(text).absolute()))
    except (ImportError, ValueError) as error:
        raise InvalidRequestError(f"{text}: {error}") from None


def run_folder_name(run_id: str) -> str:
    """Return the name of a DAG run's folder. It is unique for each run id, and never leads outside its parent.

    In a run id that Airflow has generated, ``:`` and ``+`` become ``_``: ``scheduled__2026-01-01T00_00_00_00_00``. In
    other run ids, only ASCII letters, digits, ``_``, ``-`` and ``.`` are kept. Other characters and a dot at the
    beginning become ``~`` and two hexadecimal digits for each byte: ``a:b`` becomes ``a~3Ab``. A long name is cut and
    ends with a hash.
    """
    if _GENERATED_ID.fullmatch(run_id):
        return re.sub("[:+]", "_", run_id)
    name = re.sub(r"^\.|[^A-Za-z0-9_.-]", _escaped, run_id)
    if _GENERATED_FOLDER.fullmatch(name):
        name = re.sub("^.", _escaped, name)
    if len(name) > _MAX_LENGTH:
        name = f"{name[:_MAX_LENGTH]}~~{blake2b(run_id.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
    return name or "~"


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"~{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def earlier_run_folder_name(run_id: str) -> str:
    """Return the name that earlier versions gave to that folder. It was not unique."""
    return re.sub(r"[^\w.-]", "_", run_id)
