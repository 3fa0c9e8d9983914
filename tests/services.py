"""PostgreSQL and Redis from the distribution, on free ports, with their data in a directory that goes away."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.processes import Processes, free_port

# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"


class Postgresql:
    """A PostgreSQL server that can be killed and started again.

    Attributes:
        port: of the loopback interface; there is no password.
        address: ``user@host:port/database``.
    """

    def __init__(self, directory: Path, processes: Processes) -> None:
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._directory = directory
        self._processes = processes
        self.port = free_port()
        self.address = f"airflow@127.0.0.1:{self.port}/airflow"
        if self._user is not None:
            os.chown(directory, pwd.getpwnam(self._user).pw_uid, -1)
        options = ["--username=airflow", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [program("initdb"), *options, directory / "data"],
            user=self._user, cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
        self.start()
        subprocess.run([program("createdb"), *self._where, "-U", "airflow", "airflow"], check=True)

    @property
    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # Durable enough for a directory that ends with the test.
        settings = {
            "port": self.port, "unix_socket_directories": self._directory, "fsync": "off", "max_connections": 200,
        }  # fmt: skip
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        command = [program("postgres"), "-D", self._directory / "data", "-h", "127.0.0.1", *flags]
        self._processes.start("postgresql", command, user=self._user)
        self._processes.wait("ready", lambda: _says_yes("pg_isready", "-q", *self._where), timeout=60)

    def kill(self) -> None:
        """End it at once, with all connections."""
        self._processes.kill("postgresql")


@contextlib.contextmanager
def postgresql(logs: Path) -> Iterator[Postgresql]:
    """Run a PostgreSQL server."""
    # Not below pytest's own directory, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="postgresql-") as directory, Processes(logs) as processes:
        server = Postgresql(Path(directory), processes)
        yield server
        # Asked to end, it would wait for its clients.
        server.kill()


@contextlib.contextmanager
def redis(logs: Path) -> Iterator[str]:
    """Run a Redis server that keeps nothing on disk; yields its URL."""
    port = free_port()
    with Processes(logs) as processes:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        processes.start("redis", [program("redis-server"), *options])
        processes.wait("ready", lambda: _says_yes("redis-cli", "-p", str(port), "ping"), timeout=30)
        yield f"redis://127.0.0.1:{port}/0"


def _says_yes(name: str, *arguments: str) -> bool:
    return subprocess.run([program(name), *arguments], capture_output=True, check=False).returncode == 0


def program(name: str) -> Path:
    """Return where a server's program is.

    Raises:
        FileNotFoundError: it is not installed; the text says how to.
    """
    # Debian keeps PostgreSQL's programs off PATH, one directory a version; the newest is taken.
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = shutil.which(name) or (installed[-1] if installed else None)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: as root, .ci/programs postgresql redis-server installs it")
    return Path(found)
