"""Paths as people write them."""

from pathlib import Path

from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError


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
