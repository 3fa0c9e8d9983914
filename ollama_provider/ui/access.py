"""Who may see what: Airflow's own rules, as FastAPI dependencies.

A batch is found by DAG, run, task and map index, through the XCom that its task has pushed. No request names a path or
an address.
"""

from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import (
    GetUserDep,
    get_user,
    requires_access_connection,
    requires_access_dag,
)
from fastapi import Depends, HTTPException, Path

from ollama_provider.ui.batches import Batch, find_batch

#: Anybody who is logged in: 401 for others.
LOGGED_IN = Depends(get_user)
#: The user may read the task instances of the DAG in the path of the URL: 403 if not.
CAN_READ_TASKS = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE))
#: The user may read connections, or the one in the path of the URL as ``connection_id``: 403 if not.
CAN_READ_CONNECTIONS = Depends(requires_access_connection(method="GET"))

UserDep = GetUserDep


def readable_dags(user: Any) -> set[str]:
    """Return the ids of the DAGs that a user may read."""
    ids: set[str] = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return ids


#: As Airflow's database stores it.
MapIndex = Annotated[int, Path(ge=-1, lt=2**31)]


def _batch(dag_id: str, run_id: str, task_id: str, map_index: MapIndex, _: Annotated[None, CAN_READ_TASKS]) -> Batch:
    # PostgreSQL knows no text with a NUL.
    batch = None if "\0" in dag_id + run_id + task_id else find_batch(dag_id, run_id, task_id, map_index)
    if batch is None:
        raise HTTPException(
            404,
            f"There is no batch of the task {task_id} in the run {run_id} of {dag_id}. A task has one from the moment "
            "it starts, until Airflow deletes its XCom, for instance when the task is cleared.",
        )
    return batch


#: The batch of the URL, for a user who may read it.
BatchDep = Annotated[Batch, Depends(_batch)]
