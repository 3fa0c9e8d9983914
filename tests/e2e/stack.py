"""Run a real Airflow: its components as processes, with their own AIRFLOW_HOME, ports and user."""

import base64
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from tests.processes import Processes, free_port

AIRFLOW = Path(sys.executable).with_name("airflow")
USER = "admin"
FINAL = {"success", "failed"}


class Stack:
    """Airflow 3 with api-server, scheduler, dag-processor and triggerer.

    Args:
        home: Directory for the database, logs and passwords; created if it is missing.
        dags: The DAGs folder.
        environment: Settings (``AIRFLOW__SECTION__OPTION``) and other variables for tasks. They override the defaults
            below: SQLite, LocalExecutor, four tasks at a time.
        processes: Further processes of this stack: name -> arguments of ``airflow``.

    Attributes:
        url: Base URL of the UI and the REST API.
        password: Password of the user ``admin``.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path,
        environment: Mapping[str, str] | None = None,
        processes: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://localhost:{port}"
        self.password = secrets.token_urlsafe(12)
        self.processes = Processes(home / "processes")
        self._api = httpx.Client(base_url=f"{self.url}/api/v2", timeout=30)
        self._database = home / "airflow.db"
        self._environment = {
            # Without the settings of the caller's Airflow.
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self._database}",
            # The API server reads the logs of running tasks from these ports.
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            **(environment or {}),
        }
        self._commands = {
            "api-server": ["api-server"],
            "scheduler": ["scheduler"],
            "dag-processor": ["dag-processor"],
            "triggerer": ["triggerer"],
            **(processes or {}),
        }

    def __enter__(self) -> Self:
        (self.home / "passwords.json").write_text(json.dumps({USER: self.password}))
        self._migrate()
        self.processes.__enter__()
        try:
            for name, command in self._commands.items():
                self.start(name, command)
            self.processes.wait("healthy", self._is_healthy, timeout=180)
            self._api.headers["Authorization"] = f"Bearer {self._token()}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self.processes.__exit__()

    def start(self, name: str, command: list[str]) -> None:
        """Start ``airflow command``."""
        self.processes.start(name, [AIRFLOW, *command], env=self._environment)

    def airflow(self, *arguments: str) -> str:
        """Run an Airflow command and return its output."""
        done = subprocess.run([AIRFLOW, *arguments], env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"airflow {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Send a request to the REST API, with a path below ``/api/v2``, and return the JSON of the reply."""
        reply = self._api.request(method, path, **arguments)
        for _ in range(5):
            if reply.status_code < 500:
                break
            # SQLite allows one writer. The API answers 500 while the database is locked.
            time.sleep(1)
            reply = self._api.request(method, path, **arguments)
        if reply.is_error:
            raise RuntimeError(f"{method} {path}: {reply.status_code} {reply.text}")
        return reply.json() if reply.content else None

    def wait_for_dag(self, dag: str) -> None:
        """Wait until the dag-processor has parsed the file of *dag*."""

        def is_known() -> bool:
            if errors := self.call("GET", "/importErrors")["import_errors"]:
                raise RuntimeError("\n".join(error["stack_trace"] for error in errors))
            return dag in {found["dag_id"] for found in self.call("GET", "/dags", params={"limit": 100})["dags"]}

        self.processes.wait(f"aware of the DAG {dag}", is_known, timeout=120)

    def trigger(self, dag: str, conf: Mapping[str, Any] | None = None) -> str:
        """Unpause a DAG and start a run; return the id of the run."""
        self.wait_for_dag(dag)
        self.call("PATCH", f"/dags/{dag}", json={"is_paused": False})
        return self.call("POST", f"/dags/{dag}/dagRuns", json={"logical_date": None, "conf": dict(conf or {})})[
            "dag_run_id"
        ]

    def wait_for_run(self, dag: str, run: str, *, timeout: float = 240) -> dict[str, str]:
        """Wait until a run has ended; return the state of each task instance, ``task[map index]`` for mapped ones."""
        path = f"/dags/{dag}/dagRuns/{run}"
        self.processes.wait(f"done with {dag}", lambda: self.call("GET", path)["state"] in FINAL, timeout=timeout)
        return {
            task["task_id"] if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]": task["state"]
            for task in self.call("GET", f"{path}/taskInstances")["task_instances"]
        }

    def task_log(self, dag: str, run: str, task: str, *, attempt: int = 1) -> str:
        """Return the log messages of one try of a task."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}"
        lines = self.call("GET", path, headers={"Accept": "application/json"})["content"]
        return "\n".join(line["event"] if isinstance(line, dict) else line for line in lines)

    def report(self) -> str:
        """Return the last lines of each component's log, without the access log of the API server."""
        return "\n".join(line for line in self.processes.report().splitlines() if "[http.access]" not in line)

    def _migrate(self) -> None:
        self.airflow("db", "migrate")
        if self._database.exists():
            # In WAL mode readers do not wait for the writer. The mode is stored in the file.
            with sqlite3.connect(self._database) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.close()

    def _is_healthy(self) -> bool:
        try:
            health = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).raise_for_status().json()
        except httpx.HTTPError:
            return False
        return all(
            health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")
        )

    def _token(self) -> str:
        reply = httpx.post(f"{self.url}/auth/token", json={"username": USER, "password": self.password}, timeout=30)
        return reply.raise_for_status().json()["access_token"]
