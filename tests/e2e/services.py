"""PostgreSQL and Redis from the distribution, on free ports, with their data in a directory that goes away."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.processes import Processes, free_port

# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"


@contextlib.contextmanager
def postgresql(logs: Path) -> Iterator[str]:
    """Run a PostgreSQL server; yields ``user@host:port/database`` (loopback alone, no password)."""
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    port = free_port()
    # Not below pytest's own directory, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="postgresql-") as directory, Processes(logs) as processes:
        if user is not None:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        data = Path(directory, "data")
        options = ["--username=airflow", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run([_program("initdb"), *options, data], user=user, cwd=directory, check=True, capture_output=True)
        # Durable enough for a directory that ends with the test.
        settings = {"port": port, "unix_socket_directories": directory, "fsync": "off", "max_connections": 200}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        processes.start("postgresql", [_program("postgres"), "-D", data, "-h", "127.0.0.1", *flags], user=user)
        processes.wait("ready", lambda: _says_yes("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)), timeout=60)
        address = f"airflow@127.0.0.1:{port}"
        subprocess.run(
            [_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", "airflow"], check=True
        )
        yield f"{address}/airflow"


@contextlib.contextmanager
def redis(logs: Path) -> Iterator[str]:
    """Run a Redis server that keeps nothing on disk; yields its URL."""
    port = free_port()
    with Processes(logs) as processes:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        processes.start("redis", [_program("redis-server"), *options])
        processes.wait("ready", lambda: _says_yes("redis-cli", "-p", str(port), "ping"), timeout=30)
        yield f"redis://127.0.0.1:{port}/0"


def _says_yes(program: str, *arguments: str) -> bool:
    return subprocess.run([_program(program), *arguments], capture_output=True, check=False).returncode == 0


def _program(name: str) -> Path:
    # Debian keeps PostgreSQL's programs off PATH, one directory a version; the newest is taken.
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = shutil.which(name) or (installed[-1] if installed else None)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: run .ci/programs postgresql redis-server")
    return Path(found)
