"""One task in a DAG, run by Airflow, and what is left of it."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from textwrap import dedent
from typing import Any

import pytest
from airflow.exceptions import AirflowTaskTerminated

from ollama_provider.testing import StandIn

_DAG = """
from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, task
from ollama_provider.batch import Embedding, FailurePolicy, Pace, Timeouts, Window
from ollama_provider.operators import *

{above}

default_args = {{"retry_delay": timedelta(0), "deferrable": {deferrable}}}
with DAG(
    {dag_id!r},
    schedule=None,
    start_date=datetime(2026, 1, 1),
    template_searchpath={searchpath!r},
    default_args=default_args,
    **{dag!r},
):
    {tasks}
"""
_NUMBERS = count()


@dataclass(frozen=True)
class Ran:
    """What is left of a task.

    Attributes:
        state: "success" or "failed".
        tries: how often Airflow ran it.
        value: what downstream tasks get.
        usage: its XCom value ``usage``.
        log: its log lines.
    """

    state: str
    tries: int
    value: Any
    usage: dict[str, Any] | None
    log: str


RunTask = Callable[..., Ran]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def run_task(request, run_dag, ollama_conn, tmp_path, tmp_path_factory, capfd, caplog, monkeypatch) -> RunTask:
    """Return a function that runs the task ``t`` of a DAG, with the connection ``ollama_default`` to the stand-in.

    Each test runs twice, with the wait in the worker and in a trigger: nothing that a user sees may differ.

    Its argument is the source that makes the task, and those before it; *above* is source that comes first, and other
    keywords are the DAG's. Prompt files are looked for in `tmp_path`.
    """

    # Airflow 2 keeps the standard error of an earlier test, and logging would complain with the source of the test.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handover = tmp_path_factory.mktemp("handover")
    monkeypatch.setenv("AIRFLOW__OLLAMA__HANDOVER_PATH", str(handover))

    def run(tasks: str, *, above: str = "", **dag: Any) -> Ran:
        capfd.readouterr()
        # Airflow 2 prints less than it logs, and Airflow 3 logs less than it prints.
        caplog.clear()
        caplog.set_level("INFO")
        tasks = dedent(tasks).strip().replace("\n", "\n    ")
        source = _DAG.format(
            # Airflow 3.1 goes by the first DAG of a name that it has seen.
            dag_id=f"under_test_{next(_NUMBERS)}",
            above=dedent(above),
            tasks=tasks,
            searchpath=[str(tmp_path)],
            dag=dag,
            deferrable=request.param,
        )
        run = run_dag(source)
        (instance,) = (instance for instance in run.get_task_instances() if instance.task_id == "t")
        value, usage = (instance.xcom_pull(task_ids="t", key=key) for key in ("return_value", "usage"))
        assert json.loads(json.dumps([value, usage], allow_nan=False)) == [value, usage], "not plain JSON data"
        assert not list(handover.iterdir()), "handed over, and not removed"
        return Ran(str(instance.state), instance.try_number, value, usage, "".join(capfd.readouterr()) + caplog.text)

    return run


@pytest.fixture
def killed(ollama) -> Callable[..., AbstractContextManager[None]]:
    """Return a context manager that kills the task inside with SIGTERM, as Airflow does.

    Its argument looks at the stand-in and says when.
    """

    @contextmanager
    def killed(when: Callable[[StandIn], Any]) -> Iterator[None]:
        def kill() -> None:
            ollama.stand_in.wait_until(when)
            os.kill(os.getpid(), signal.SIGTERM)

        before = signal.getsignal(signal.SIGTERM)
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            # Airflow 2 ends the task with this after on_kill; Airflow 3 leaves it to on_kill.
            with suppress(AirflowTaskTerminated):
                yield
        finally:
            killer.join()
            signal.signal(signal.SIGTERM, before)

    return killed


@pytest.fixture(autouse=True)
def no_long_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask soon whether a model has left the memory: the stand-in does not crash of that."""
    monkeypatch.setattr("ollama_provider.operators._server_models.UNLOAD_POLL_INTERVAL", 0.05)
