"""The batches that Airflow's database knows of: tasks that have pushed where their results go."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from sqlalchemy import Select, and_, select
from sqlalchemy.orm import aliased

from ollama_provider.links import RESULTS, batch_page, task_page


@dataclass(frozen=True)
class Batch:
    """The batch of a task instance.

    Attributes:
        dag_id, run_id, task_id, map_index: which task instance; the map index of one that is not mapped is -1.
        state: of the task instance; None if it waits to be scheduled.
        start, end: of the task instance's last try.
        directory: of the results, as a URL.
        summary: that the task has returned, see `ollama_provider.batch.Summary`, or what its rehearsal has found; None
            while it runs, and if it has returned something else.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    start: datetime | None
    end: datetime | None
    directory: str
    summary: dict[str, Any] | None

    @property
    def is_running(self) -> bool:
        """Whether its task is at work."""
        return self.state == "running"

    @property
    def is_rehearsal(self) -> bool:
        """Whether it was a rehearsal, or a comparison of several: most rows were not to be asked."""
        return self.summary is not None and bool(self.summary.keys() & {"sample", "compared"})

    @property
    def path(self) -> str:
        """The address of its page, below that of Airflow's UI."""
        return batch_page(self.dag_id, self.run_id, self.task_id, self.map_index)

    @property
    def task_path(self) -> str:
        """The address of its task instance, below that of Airflow's UI."""
        return task_page(self.dag_id, self.run_id, self.task_id, self.map_index)


_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Returned(BaseModel):
    model_config = ConfigDict(strict=True)


class _Night(_Returned):
    seconds: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class _Summary(_Returned):
    """What the page needs of a summary. The return value of another operator has something else under these names."""

    complete: bool
    reason: str
    rows: _Count | None
    ok: _Count
    failed: _Count
    reused: _Count = 0
    seconds: FiniteFloat = 0.0
    seconds_left: FiniteFloat | None = None
    # Of a rehearsal, and of a comparison of several.
    night: _Night | None = None
    compared: dict[str, Any] = {}


def find_batch(dag_id: str, run_id: str, task_id: str, map_index: int) -> Batch | None:
    """Return the batch of a task instance; None if it has none."""
    names = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    found = _read(_batches().where(*(getattr(TaskInstance, name) == value for name, value in names.items())))
    return found[0] if found else None


def newest_batches(dag_ids: Collection[str], count: int) -> list[Batch]:
    """Return the newest batches of some DAGs, the newest first, *count* at most."""
    return _read(_batches().where(TaskInstance.dag_id.in_(dag_ids)).order_by(XComModel.timestamp.desc()).limit(count))


def _batches() -> Select[Any]:
    """Task instances, their directories and, where there is one, their summaries."""
    summary = aliased(XComModel)
    return (
        select(TaskInstance, XComModel.value, summary.value)
        .join(XComModel, and_(_same_task(XComModel), XComModel.key == RESULTS))
        .outerjoin(summary, and_(_same_task(summary), summary.key == "return_value"))
    )


def _same_task(xcom: Any) -> Any:
    names = ("dag_id", "run_id", "task_id", "map_index")
    return and_(*(getattr(xcom, name) == getattr(TaskInstance, name) for name in names))


def _read(query: Select[Any]) -> list[Batch]:
    with create_session() as session:
        return [
            Batch(
                dag_id=task.dag_id,
                run_id=task.run_id,
                task_id=task.task_id,
                map_index=task.map_index,
                state=str(task.state) if task.state else None,
                start=task.start_date,
                end=task.end_date,
                directory=directory,
                summary=_summary(_plain(returned)),
            )
            for task, results, returned in session.execute(query)
            # Another operator may push a value under this name.
            if isinstance(directory := _plain(results), str) and "://" in directory
        ]


def _summary(returned: Any) -> dict[str, Any] | None:
    try:
        _Summary.model_validate(returned)
    except ValidationError:
        return None
    found: dict[str, Any] = returned
    return found


def _plain(value: Any) -> Any:
    """Return an XCom as the task has pushed it: it is stored as JSON, or as JSON in a text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
