"""Many rows in, one result for each out, over restarts and outages. Needs Ollama, and no Airflow.

Import from here: the modules below are free to change.

::

    run_batch(BatchSpec(model="llama3.2", rows="rows.jsonl"), Settings(base_url="http://127.0.0.1:11434"), "results")

The modules, along the way of a row: `rows` reads the input and renders prompts, `requests` knows what is sent and what
a reply is worth, `scheduling` decides what is sent when, `store` keeps what a crash must not lose, `results` writes
what comes out, and `run` puts them together.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollama_provider.batch.arguments import GROUPS as GROUPS
    from ollama_provider.batch.arguments import ArgumentGroup as ArgumentGroup
    from ollama_provider.batch.arguments import (
        Embedding,
        FailurePolicy,
        InputOptions,
        Pace,
        Rehearsal,
        Timeouts,
        Window,
    )
    from ollama_provider.batch.arguments import is_final as is_final
    from ollama_provider.batch.arguments import read_argument as read_argument
    from ollama_provider.batch.arguments import refuse_contradictions as refuse_contradictions
    from ollama_provider.batch.compare import candidates as candidates
    from ollama_provider.batch.compare import compare_batches
    from ollama_provider.batch.errors import (
        BatchError,
        DatabaseError,
        DatabaseGoneError,
        DirectoryBusyError,
        InputError,
        ModelChangedError,
        NoServerError,
        StorageError,
        SystemRefusedError,
        TooManyFailedError,
    )
    from ollama_provider.batch.records import Outcome, Provenance, Query, Rows, Summary, Table, Vectors
    from ollama_provider.batch.records import paths_of as paths_of
    from ollama_provider.batch.records import plain as plain
    from ollama_provider.batch.rehearsal.comparison import comparison_as_dict as comparison_as_dict
    from ollama_provider.batch.rehearsal.comparison import comparison_as_text
    from ollama_provider.batch.rehearsal.result import RehearsalResult
    from ollama_provider.batch.rehearsal.text import rehearsal_as_text
    from ollama_provider.batch.rehearse import rehearse_batch
    from ollama_provider.batch.report.gather import Report as Report
    from ollama_provider.batch.report.page import STYLE as STYLE
    from ollama_provider.batch.report.page import report_environment as report_environment
    from ollama_provider.batch.report.page import report_values as report_values
    from ollama_provider.batch.report.row_pages import FileKind as FileKind
    from ollama_provider.batch.report.row_pages import RowPage as RowPage
    from ollama_provider.batch.report.row_pages import open_file as open_file
    from ollama_provider.batch.report.row_pages import read_rows as read_rows
    from ollama_provider.batch.report.runs import read_runs as read_runs
    from ollama_provider.batch.report.stored import stored_report as stored_report
    from ollama_provider.batch.results.progress import Progress
    from ollama_provider.batch.rows.image_folder import ImageFolder as ImageFolder
    from ollama_provider.batch.rows.sources import find_files as find_files
    from ollama_provider.batch.rows.sources import folder_of as folder_of
    from ollama_provider.batch.run import run_batch
    from ollama_provider.batch.spec import BatchSpec
    from ollama_provider.batch.stop import StoppedError, StopSignal
    from ollama_provider.batch.store.storage import Storage as Storage
    from ollama_provider.batch.store.storage import local_path as local_path
    from ollama_provider.batch.store.storage import open_existing as open_existing

__all__ = [
    "BatchError",
    "BatchSpec",
    "DatabaseError",
    "DatabaseGoneError",
    "DirectoryBusyError",
    "Embedding",
    "FailurePolicy",
    "InputError",
    "InputOptions",
    "ModelChangedError",
    "NoServerError",
    "Outcome",
    "Pace",
    "Progress",
    "Provenance",
    "Query",
    "Rehearsal",
    "RehearsalResult",
    "Rows",
    "StopSignal",
    "StoppedError",
    "StorageError",
    "Summary",
    "SystemRefusedError",
    "Table",
    "Timeouts",
    "TooManyFailedError",
    "Vectors",
    "Window",
    "compare_batches",
    "comparison_as_text",
    "rehearsal_as_text",
    "rehearse_batch",
    "run_batch",
]

# Loaded on first use: a DAG file is parsed every few seconds, and names an error or two of these at most.
_HOMES = {
    "arguments": (
        "Embedding", "FailurePolicy", "InputOptions", "Pace", "Rehearsal", "Timeouts", "Window",
        # For the operators.
        "GROUPS", "ArgumentGroup", "is_final", "read_argument", "refuse_contradictions",
    ),
    "errors": (
        "BatchError", "DatabaseError", "DatabaseGoneError", "DirectoryBusyError", "InputError", "ModelChangedError",
        "NoServerError", "StorageError", "SystemRefusedError", "TooManyFailedError",
    ),
    "spec": ("BatchSpec",),
    "records": ("Outcome", "Provenance", "Query", "Rows", "Summary", "Table", "Vectors", "paths_of", "plain"),
    "run": ("run_batch",),
    "rehearse": ("rehearse_batch",),
    "compare": ("candidates", "compare_batches"),
    "rehearsal.comparison": ("comparison_as_dict", "comparison_as_text"),
    "rehearsal.result": ("RehearsalResult",),
    "rehearsal.text": ("rehearsal_as_text",),
    "stop": ("StoppedError", "StopSignal"),
    "results.progress": ("Progress",),
    # For the operators and their lineage; not in __all__, so not part of the documented API.
    "rows.image_folder": ("ImageFolder",),
    "rows.sources": ("find_files", "folder_of"),
    "store.storage": ("Storage", "local_path", "open_existing"),
    # For the page in Airflow's UI; neither are these.
    "report.gather": ("Report",),
    "report.page": ("STYLE", "report_environment", "report_values"),
    "report.row_pages": ("FileKind", "RowPage", "open_file", "read_rows"),
    "report.runs": ("read_runs",),
    "report.stored": ("stored_report",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
