"""The *Results* button on a batch's task in Airflow's UI."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import airflow
from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

#: XCom key of the URL of a batch's results. It is pushed when the batch starts.
RESULTS = "results"


class BatchResultsLink(BaseOperatorLink):
    """Link to the XCom page of a batch's task, which says where the results are.

    On that page, ``results`` is the URL of their directory, such as ``s3://bucket/summaries``, and ``return_value`` is
    the summary. The button does not link to the directory itself: Airflow 3.3 shows only links with the schemes
    ``http``, ``https`` and ``mailto``, 2.11 disables others, and browsers do not open them.

    Airflow 3 shows the button when the task has ended, in success or failure; Airflow 2 as soon as the batch has begun.
    """

    name = "Results"

    def get_link(self, operator: "BaseOperator", *, ti_key: Any) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL of the page, relative to the UI's; an empty text if the batch has not begun."""
        from airflow.providers.common.compat.sdk import XCom

        return _xcom_page(ti_key) if XCom.get_value(ti_key=ti_key, key=RESULTS) else ""


def _xcom_page(ti_key: Any) -> str:
    if airflow.__version__.startswith("2."):  # only on an older Airflow
        from airflow.utils.helpers import build_airflow_url_with_query

        names = {"dag_id": ti_key.dag_id, "dag_run_id": ti_key.run_id, "task_id": ti_key.task_id}
        return str(build_airflow_url_with_query({**names, "map_index": ti_key.map_index, "tab": "xcom"}))
    # Without a leading slash it is relative to the <base> of the UI's pages, which the worker may not know.
    mapped = "" if ti_key.map_index in {None, -1} else f"/mapped/{ti_key.map_index}"
    return f"dags/{ti_key.dag_id}/runs/{quote(ti_key.run_id, safe='')}/tasks/{ti_key.task_id}{mapped}/xcom"
