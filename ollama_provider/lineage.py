"""OpenLineage: what a task has read and written, which model has worked on it, and how much.

Airflow's OpenLineage provider asks an operator for that when its task has ended (``get_openlineage_facets_on_complete``
and ``_on_failure``), in a process of its own. Nothing imports this module before, so it costs nothing where the
provider is not installed or not configured.

Datasets are named as in https://openlineage.io/docs/spec/naming, so that a file or a table is the same dataset here and
in the events of other tasks.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from airflow.providers.openlineage.extractors import OperatorLineage
from airflow.providers.openlineage.sqlparser import DatabaseInfo, SQLParser
from attrs import define
from openlineage.client.event_v2 import Dataset, InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, output_statistics_output_dataset, sql_job

from ollama_provider import __version__
from ollama_provider.batch import BatchError, find_files, folder_of, local_path
from ollama_provider.sql import SqlRows, SqlTable
from ollama_provider.sql.database import database_hook
from ollama_provider.sql.dialects import Destination

logger = logging.getLogger(__name__)

#: Name of our facet of a run.
FACET = "ollama_run"
PRODUCER = f"urn:airflow-provider-ollama:{__version__}"
#: The schema is docs/reference/ollama-run-facet.json. Its number changes with the fields.
SCHEMA = "urn:airflow-provider-ollama:facet:OllamaRunFacet:1-0-0"
#: Files of a glob that are datasets of their own. Of more, their folder is the dataset.
MOST_FILES = 100
#: Namespaces have one scheme for all the drivers of a store.
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_PLACEHOLDER = re.compile(r"%\(\w+\)s|%s|\?")


@define(kw_only=True)
class OllamaRunFacet(RunFacet):
    """Which model has worked for a run of a task, and how much. What is unknown is None.

    Attributes:
        model: name of the model, as the server spells it.
        digest: 64 hex digits of the model's manifest.
        server: base URL of the server; several are separated by a comma.
        rows: rows of the input of a batch, or texts that vectors were computed of.
        ok: rows with a good result.
        failed: rows that failed.
        reused: good rows that were not asked in this run, since their result was there.
        promptTokens: tokens of the prompts of this run.
        tokens: tokens generated in this run.
        seconds: for a batch from its start to its end, else the server's time for the requests.
    """

    model: str | None = None
    digest: str | None = None
    server: str | None = None
    rows: int | None = None
    ok: int | None = None
    failed: int | None = None
    reused: int | None = None
    promptTokens: int | None = None  # noqa: N815  # OpenLineage's style
    tokens: int | None = None
    seconds: float | None = None

    # Airflow would take a number whose name has "token" in it for a secret.
    _additional_skip_redact: ClassVar[list[str]] = ["promptTokens", "tokens"]

    @staticmethod
    def _get_schema() -> str:
        return SCHEMA


def lineage_of(task: Any) -> OperatorLineage:
    """Return the lineage of a task that has ended, well or not: what is known of it.

    Nothing is raised. What cannot be found out is left out, and is a line in the log.

    Args:
        task: an `OllamaOperator`.
    """
    if task.work is None:  # it has not begun, and its templates may not be rendered
        return OperatorLineage()
    lineage = OperatorLineage()
    with _left_out_if_it_fails("the model"):
        lineage.run_facets[FACET] = _facet(task.work)
    with _left_out_if_it_fails("what it has read"):
        for source in task.reads():
            with _left_out_if_it_fails("an input"):
                lineage = lineage.merge(_read(source))
    with _left_out_if_it_fails("what it has written"):
        for target, rows in task.writes():
            with _left_out_if_it_fails("an output"):
                lineage.outputs.append(_written(target, rows))
    return lineage


@contextmanager
def _left_out_if_it_fails(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Not its text: a driver may quote what it was given.
        logger.warning("Lineage: %s is left out, since it cannot be found out: %s", what, type(error).__name__)
        logger.debug("Lineage: %s", what, exc_info=True)


def _facet(work: Mapping[str, Any]) -> OllamaRunFacet:
    return OllamaRunFacet(
        producer=PRODUCER,
        model=work.get("model"),
        digest=work.get("digest"),
        server=work.get("server"),
        rows=work.get("rows", work.get("texts")),
        ok=work.get("ok"),
        failed=work.get("failed"),
        reused=work.get("reused"),
        promptTokens=work.get("prompt_tokens"),
        tokens=work.get("tokens"),
        seconds=work.get("seconds"),
    )


def _read(source: Any) -> OperatorLineage:
    """Return the datasets of an input: the tables of a query, or the files of a path or glob."""
    if isinstance(source, SqlRows):
        return OperatorLineage(inputs=_tables_of(source), job_facets={"sql": sql_job.SQLJobFacet(query=source.sql)})
    path = local_path(source) or source
    if path.is_file():
        files = [path]
    else:
        try:
            files = find_files(path)
        except BatchError:  # there is none, which has failed the task
            files = []
        if not 0 < len(files) <= MOST_FILES:
            files = [folder_of(path)]
    return OperatorLineage(inputs=[InputDataset(*_name_of_file(file)) for file in files])


def _written(target: Any, rows: int | None) -> OutputDataset:
    """Return the dataset of a table, a file or a folder, with the number of rows that were written, where known."""
    namespace, name = _name_of_table(target) if isinstance(target, SqlTable) else _name_of_file(target)
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows, producer=PRODUCER)
    return OutputDataset(namespace, name, outputFacets={} if rows is None else {"outputStatistics": statistics})


def _name_of_file(path: Any) -> tuple[str, str]:
    """Return namespace and name of a file or folder."""
    local = local_path(path)
    if local is not None:
        return "file", str(local.absolute())
    bucket = path.bucket.rpartition("@")[2]  # before it, Airflow 2 has the connection
    return f"{_SCHEMES.get(path.protocol, path.protocol)}://{bucket}", path.key


def _tables_of(rows: SqlRows) -> list[Dataset]:
    """Return the tables that a query reads."""
    hook, database, schema = _database(rows.conn_id)
    dialect = hook.get_openlineage_database_dialect(hook.get_connection(rows.conn_id))
    # The parser knows no placeholders of drivers.
    query = rows.sql if rows.parameters is None else _PLACEHOLDER.sub("NULL", rows.sql)
    found = SQLParser(dialect, schema).generate_openlineage_metadata_from_sql(
        query, hook, database, use_connection=False
    )
    return list(found.inputs)


def _name_of_table(table: SqlTable) -> tuple[str, str]:
    """Return namespace and name of a table."""
    _, database, schema = _database(table.conn_id)
    parts = Destination(table.table, [], []).parts
    name = ".".join(filter(None, (database.database, *([schema] if len(parts) == 1 else []), *parts)))
    return SQLParser.create_namespace(database), name.upper() if database.is_uppercase_names else name


def _database(conn_id: str) -> tuple[Any, DatabaseInfo, str | None]:
    """Return the hook of a database, how OpenLineage names it, and the schema of tables that are named without one."""
    hook = database_hook(conn_id)
    connection = hook.get_connection(conn_id)
    if connection.conn_type == "sqlite":  # whose hook does not tell
        return hook, DatabaseInfo(scheme="sqlite", authority=str(Path(connection.host).absolute())), "main"
    database = hook.get_openlineage_database_info(connection)
    if database is None:
        raise LookupError(f"the hook of connection {conn_id!r} does not say how OpenLineage names its database")
    # MySQL's schemas are its databases.
    return hook, database, hook.get_openlineage_default_schema() or connection.schema
