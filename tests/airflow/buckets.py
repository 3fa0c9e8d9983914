"""Buckets of an S3 server, with the Airflow connections of users who have rights there."""

import itertools
import json
from typing import Any

import pytest

from tests.services import S3

_NUMBERS = itertools.count()


class Bucket:
    """A bucket as its owner sees it, beside what the code under test does.

    Attributes:
        name: of the bucket.
        url: with the connection to it: ``s3://a_bucket@name``.
        connection: what that connection says.
    """

    def __init__(self, server: S3, name: str, conn_id: str, connection: dict[str, Any]) -> None:
        self._client = server.client
        self.name = name
        self.url = f"s3://{conn_id}@{name}"
        self.connection = connection

    def put(self, key: str, content: str | bytes) -> None:
        """Store an object."""
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def read(self, key: str) -> str:
        """Return the content of an object."""
        content: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content.decode()

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._client.delete_object(Bucket=self.name, Key=key)

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted keys below a folder, which is left out of them."""
        found = self._client.list_objects_v2(Bucket=self.name, Prefix=folder).get("Contents", [])
        return [each["Key"].removeprefix(folder) for each in found]


@pytest.fixture
def connect_s3(an_s3: S3, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that adds the connection of a user to the S3 server; returns its id and what it says.

    Its keywords are more of the connection's *extra*.
    """

    def connect(user: dict[str, str], **extra: Any) -> tuple[str, dict[str, Any]]:
        # Airflow keeps the file system of a connection for as long as the process lives.
        conn_id = f"a_store_{next(_NUMBERS)}"
        connection: dict[str, Any] = {"conn_type": "aws", **user}
        connection["extra"] = {"endpoint_url": an_s3.url, "region_name": "us-east-1", **extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
        return conn_id, connection

    return connect


@pytest.fixture
def bucket(an_s3: S3, connect_s3: Any) -> Bucket:
    """A new bucket."""
    name = f"bucket-{next(_NUMBERS)}"
    an_s3.client.create_bucket(Bucket=name)
    return Bucket(an_s3, name, *connect_s3(an_s3.owner))
