"""A PostgreSQL and an SQLite database, each with an Airflow connection, fresh for each test."""

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.services import Postgresql

_NUMBERS = itertools.count()


class Database:
    """A database as its owner sees it, beside what the code under test does.

    Attributes:
        kind: "postgresql" or "sqlite".
        conn_id: of the Airflow connection to it.
        mark: its placeholder for a value.
    """

    def __init__(self, kind: str, conn_id: str, connection: dict[str, Any], connect: Callable[[], Any]) -> None:
        self.kind = kind
        self.conn_id = conn_id
        self.connection = connection
        self.mark = {"postgresql": "%s", "sqlite": "?"}[kind]
        self._connect = connect

    def run(self, statement: str, *values: tuple) -> list[tuple]:
        """Run a statement, once or for each of the values; return its rows."""
        connection = self._connect()
        try:
            cursor = connection.cursor()
            if values:
                cursor.executemany(statement, values)
            else:
                cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
        finally:
            connection.close()
        return [tuple(row) for row in rows]

    def documents(self, count: int) -> None:
        """Make the table ``documents`` with so many rows."""
        self.run("CREATE TABLE documents (id INTEGER PRIMARY KEY, title TEXT, text TEXT)")
        values = ", ".join([self.mark] * 3)
        rows = [(number, f"title {number}", f"text {number}") for number in range(count)]
        self.run(f"INSERT INTO documents VALUES ({values})", *rows)  # noqa: S608  # marks of parameters

    def summaries(self) -> list[tuple]:
        """What is in the table ``summaries``."""
        return self.run("SELECT * FROM summaries ORDER BY 1")


@pytest.fixture
def postgres(a_postgresql: Postgresql, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A new database in a PostgreSQL server."""
    name = f"test{next(_NUMBERS)}"
    where = {"host": "127.0.0.1", "port": a_postgresql.port, "user": "airflow"}
    connection = psycopg2.connect(**where, dbname="airflow")
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    airflow = {"conn_type": "postgres", "host": "127.0.0.1", "port": where["port"], "login": "airflow", "schema": name}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(airflow))
    return Database("postgresql", "warehouse", airflow, lambda: psycopg2.connect(**where, dbname=name))


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A new SQLite file."""
    file = tmp_path / "warehouse.db"
    airflow = {"conn_type": "sqlite", "host": str(file)}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(airflow))
    return Database("sqlite", "warehouse", airflow, lambda: sqlite3.connect(file))


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each of them."""
    return request.getfixturevalue({"postgresql": "postgres", "sqlite": "sqlite"}[request.param])
