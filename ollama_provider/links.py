"""Buttons beside a task in Airflow's UI."""

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

#: The XCom key under which a batch says where its results are, from its first moment on.
RESULTS = "results"


class BatchResultsLink(BaseOperatorLink):
    """Where the results of a batch are: the URL of their directory, as in ``s3://bucket/summaries``.

    Airflow 3 has it when the task has ended, well or not; Airflow 2 as soon as the batch has begun.
    """

    name = "Results"

    def get_link(self, operator: "BaseOperator", *, ti_key: Any) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL; an empty one before the batch began."""
        from airflow.providers.common.compat.sdk import XCom

        return XCom.get_value(ti_key=ti_key, key=RESULTS) or ""
