"""``report.json``: the report as data, for a page elsewhere, which then need not read all rows."""

import json
import time
from dataclasses import replace
from functools import cache

from pydantic import TypeAdapter, ValidationError

from ollama_provider.batch.report.gather import Report
from ollama_provider.batch.report.runs import read_runs
from ollama_provider.batch.store.disk import storage_errors
from ollama_provider.batch.store.storage import Storage, write

_NAME = "report.json"
#: Bytes that are read of it. One has less than a megabyte.
_MOST = 4_000_000


def store_report(storage: Storage, report: Report) -> None:
    """Write a report.

    Raises:
        StorageError: the directory cannot be written.
    """
    write(storage, _NAME, json.dumps(report.as_dict()).encode())


def stored_report(storage: Storage) -> Report | None:
    """Return the report that was written last, with the numbers of now; None if there is none that can be read.

    What failed and the rows to look at are as old as the report, which a run writes every half minute.

    Raises:
        StorageError: the directory cannot be read.
    """
    with storage_errors(storage.location, "read"):
        file = storage.open(_NAME)
        if file is None:
            return None
        with file:
            content = file.read(_MOST)
    try:
        report = _reader().validate_json(content)
    except ValidationError:  # cut, or of another version
        return None
    now = read_runs(storage).numbers()
    if now["state"] == "unknown":  # there was no run but a rehearsal
        return report
    return replace(report, **now, made=time.time() if now["state"] == "running" else report.made)


@cache
def _reader() -> TypeAdapter[Report]:
    return TypeAdapter(Report)  # only a page elsewhere reads it
