"""The *Results* button on a batch's task in Airflow's UI."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import airflow
from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

#: XCom key of the URL of a batch's results. It is pushed when the batch starts.
RESULTS = "results"
#: Where the page *Ollama* is, as an address below that of Airflow's UI.
PAGE = "ollama"


def has_page() -> bool:
    """Return whether this Airflow has the page *Ollama*: from 3.1 on, unless ``[ollama] show_page`` is off."""
    version = tuple(map(int, airflow.__version__.split(".")[:2]))
    return version >= (3, 1) and bool(conf.getboolean("ollama", "show_page", fallback=True))


def batch_page(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return where the page of a task instance's batch is, as an address below that of Airflow's UI.

    Args:
        dag_id: of the task instance.
        run_id: of the task instance.
        task_id: of the task instance.
        map_index: of the task instance; -1 for one that is not mapped.
    """
    names = (quote(str(name), safe="") for name in (dag_id, run_id, task_id, map_index))
    return "/".join((PAGE, "batches", *names))


def batch_page_url(instance: Any) -> str:
    """Return the URL of the page of a task instance's batch, for the log of its task.

    As in the URLs that Airflow gives tasks, Airflow's own is ``[api] base_url`` of the worker's configuration.
    """
    base = conf.get("api", "base_url", fallback="http://localhost:8080/").rstrip("/")
    return f"{base}/{batch_page(*_names(instance))}"


def task_page(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return where Airflow's page of a task instance is. See `batch_page`."""
    mapped = "" if map_index < 0 else f"/mapped/{map_index}"
    return f"dags/{dag_id}/runs/{quote(run_id, safe='')}/tasks/{task_id}{mapped}"


class BatchResultsLink(BaseOperatorLink):
    """Link to the page of a batch; where there is no page *Ollama*, to the XCom page of its task.

    On the XCom page, ``results`` is the URL of their directory, such as ``s3://bucket/summaries``, and ``return_value``
    is the summary. The button does not link to the directory itself: Airflow 3.3 shows only links with the schemes
    ``http``, ``https`` and ``mailto``, 2.11 disables others, and browsers do not open them.

    Airflow 3 shows the button when the task has ended, in success or failure; Airflow 2 as soon as the batch has begun.
    """

    name = "Results"

    def get_link(self, operator: "BaseOperator", *, ti_key: Any) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL of the page, relative to the UI's; an empty text if the batch has not begun."""
        from airflow.providers.common.compat.sdk import XCom

        if not XCom.get_value(ti_key=ti_key, key=RESULTS):
            return ""
        # Without a leading slash it is relative to the <base> of the UI's pages, which the worker may not know.
        return batch_page(*_names(ti_key)) if has_page() else _xcom_page(ti_key)


def _xcom_page(ti_key: Any) -> str:
    if airflow.__version__.startswith("2."):  # only on an older Airflow
        from airflow.utils.helpers import build_airflow_url_with_query

        names = {"dag_id": ti_key.dag_id, "dag_run_id": ti_key.run_id, "task_id": ti_key.task_id}
        return str(build_airflow_url_with_query({**names, "map_index": ti_key.map_index, "tab": "xcom"}))
    return f"{task_page(*_names(ti_key))}/xcom"


def _names(ti_key: Any) -> tuple[str, str, str, int]:
    map_index = -1 if ti_key.map_index is None else ti_key.map_index
    return ti_key.dag_id, ti_key.run_id, ti_key.task_id, map_index
