"""Databases of PostgreSQL, MariaDB, SQLite and DuckDB, each with an Airflow connection, fresh for each test."""

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import mysql.connector as mysql_connector
import psycopg2
import pytest

from tests.services import Mariadb, Postgresql

_NUMBERS = itertools.count()


class Database:
    """A database as its owner sees it, beside what the code under test does.

    Attributes:
        kind: "postgresql", "mysql", "sqlite" or "duckdb".
        conn_id: of the Airflow connection to it.
        mark: its placeholder for a value.
    """

    def __init__(self, kind: str, conn_id: str, connection: dict[str, Any], connect: Callable[[], Any]) -> None:
        self.kind = kind
        self.conn_id = conn_id
        self.connection = connection
        self.mark = "?" if kind in {"sqlite", "duckdb"} else "%s"
        #: A type of texts that may be in a key.
        self.key_text = "VARCHAR(50) COLLATE utf8mb4_nopad_bin" if kind == "mysql" else "TEXT"
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

    def airflow(self, **fields: Any) -> str:
        """The Airflow connection as JSON, with some of its fields changed."""
        return json.dumps(self.connection | fields)

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
    return _postgresql(a_postgresql, "warehouse", monkeypatch)


def _postgresql(server: Postgresql, conn_id: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    name = f"test{next(_NUMBERS)}"
    where = {"host": "127.0.0.1", "port": server.port, "user": "airflow"}
    connection = psycopg2.connect(**where, dbname="airflow")
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    airflow = {"conn_type": "postgres", "host": "127.0.0.1", "port": where["port"], "login": "airflow", "schema": name}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(airflow))
    return Database("postgresql", conn_id, airflow, lambda: psycopg2.connect(**where, dbname=name))


@pytest.fixture
def mysql(a_mariadb: Mariadb, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A new database in a MariaDB server, with the settings of those that cut values without a word."""
    name = f"test{next(_NUMBERS)}"
    where = {"host": "127.0.0.1", "port": a_mariadb.port, "user": "airflow"}

    def connect(**more: Any) -> Any:
        return mysql_connector.connect(**where, **more, sql_mode="ANSI_QUOTES")

    connection = connect()
    connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
    connection.cursor().execute("SET GLOBAL sql_mode = ''")
    connection.close()
    # Airflow's provider uses mysqlclient unless it is told otherwise, which has no wheels.
    client = "mysqlclient" if find_spec("MySQLdb") else "mysql-connector-python"
    airflow = {
        "conn_type": "mysql", "host": "127.0.0.1", "port": where["port"], "login": "airflow", "schema": name,
        "extra": {"client": client},
    }  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(airflow))
    return Database("mysql", "warehouse", airflow, lambda: connect(database=name))


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A new SQLite file."""
    file = tmp_path / "warehouse.db"
    airflow = {"conn_type": "sqlite", "host": str(file)}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(airflow))
    return Database("sqlite", "warehouse", airflow, lambda: sqlite3.connect(file))


@pytest.fixture
def duck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A new DuckDB file: a database of which the package knows no more than standard SQL."""
    file = tmp_path / "warehouse.duckdb"
    airflow = {"conn_type": "duckdb", "host": str(file)}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(airflow))
    return Database("duckdb", "warehouse", airflow, lambda: duckdb.connect(file))


@pytest.fixture(params=["postgresql", "mysql", "sqlite"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each of them."""
    return request.getfixturevalue("postgres" if request.param == "postgresql" else request.param)


@pytest.fixture
def pgvector(a_pgvector: Postgresql, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A new database in a PostgreSQL server that has pgvector, with the extension."""
    database = _postgresql(a_pgvector, "vectors", monkeypatch)
    database.run("CREATE EXTENSION vector")
    return database
