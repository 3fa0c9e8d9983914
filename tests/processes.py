"""Start processes for a test, and end them with it."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """A group of processes with a log file each. They are ended at the end of the ``with`` block.

    Each process leads a session of its own, so that its child processes are found and ended with it. The kernel ends
    it when the test process dies, so that an interrupted run leaves no processes behind.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for name in reversed(list(self._running)):
            self._end(self._running.pop(name), timeout=20)

    def start(
        self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, user: str | None = None
    ) -> None:
        """Start a command, as *user* if it must not run as root."""
        identity = [] if user is None else [f"--reuid={user}", "--clear-groups"]
        with (self.logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                ["setpriv", *identity, "--pdeathsig", "TERM", *map(str, command)],
                cwd=self.logs.parent,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill a process and its child processes, as the kernel does when memory is short."""
        process = self._running.pop(name)
        for member in _session(process.pid):
            member.kill()
        process.wait()

    def wait(self, what: str, ready: Callable[[], bool], *, timeout: float) -> None:
        """Wait until *ready* returns True.

        Raises:
            RuntimeError: A process of the group has ended, or *timeout* seconds have passed. The text has the logs.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if ended := [name for name, process in self._running.items() if process.poll() is not None]:
                raise RuntimeError(f"{', '.join(ended)} ended before {what}\n{self.report(ended)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not {what} within {timeout:g} s\n{self.report()}")
            time.sleep(0.2)

    def report(self, names: Sequence[str] = (), *, lines: int = 40) -> str:
        """Return the last lines of the logs of *names*, by default of all processes."""
        parts = []
        for path in sorted(self.logs.glob("*.log")):
            if not names or path.stem in names:
                tail = path.read_text(errors="replace").splitlines()[-lines:]
                parts.append("\n".join([f"--- {path}", *tail]))
        return "\n".join(parts)

    @staticmethod
    def _end(process: subprocess.Popen[bytes], *, timeout: float) -> None:
        members = _session(process.pid)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for member in psutil.wait_procs(members, timeout=3)[1]:
            member.kill()


def _session(leader: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                members.append(process)
        except ProcessLookupError:
            continue
    return members
