"""Buttons beside a task in Airflow's UI."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import airflow
from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

#: The XCom key under which a batch says where its results are, from its first moment on.
RESULTS = "results"


class BatchResultsLink(BaseOperatorLink):
    """Where the results of a batch are: the page of its XComs.

    ``results`` there is the URL of their directory, as in ``s3://bucket/summaries``; ``return_value`` is the summary.
    The button does not lead to that URL itself: Airflow 3.3 shows only links with a scheme of the web (``http``,
    ``https``, ``mailto``), 2.11 greys out the others, and no browser follows them.

    Airflow 3 has the button when the task has ended, well or not; Airflow 2 as soon as the batch has begun.
    """

    name = "Results"

    def get_link(self, operator: "BaseOperator", *, ti_key: Any) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL of the page, relative to that of the UI; an empty one before the batch began."""
        from airflow.providers.common.compat.sdk import XCom

        return _xcom_page(ti_key) if XCom.get_value(ti_key=ti_key, key=RESULTS) else ""


def _xcom_page(ti_key: Any) -> str:
    if airflow.__version__.startswith("2."):
        from airflow.utils.helpers import build_airflow_url_with_query

        names = {"dag_id": ti_key.dag_id, "dag_run_id": ti_key.run_id, "task_id": ti_key.task_id}
        return str(build_airflow_url_with_query({**names, "map_index": ti_key.map_index, "tab": "xcom"}))
    # Without a leading slash it goes on from the <base> of the UI's pages: the worker, who makes it, may not know it.
    mapped = "" if ti_key.map_index in {None, -1} else f"/mapped/{ti_key.map_index}"
    return f"dags/{ti_key.dag_id}/runs/{quote(ti_key.run_id, safe='')}/tasks/{ti_key.task_id}{mapped}/xcom"
