"""Three servers of different speed behind one connection: how busy all their slots are, and what an outage costs.

    python tests/benchmarks/servers.py [rows]

4 slots at 0.2 s a row, 2 at 0.4 s and 8 at 0.1 s, lognormal (sigma 0.5); nobody is told how many slots there are. Busy
is the time of service over slots times clock, from the first row to the last answer of all, tail included, as the
servers measured it. Beside it the same rows by two that know no queue: round robin with a fixed number of requests at a
time, and nginx with ``least_conn`` in front of our batch, which takes it for a single server. Then the first server is
killed in mid-run, and started again after 20 s.
"""

import asyncio
import json
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import aiohttp
from common import HERE, tell
from rows import prompt

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Summary, run_batch

#: Slots and seconds a row of each server.
SERVERS = ((4, 0.2), (2, 0.4), (8, 0.1))
SLOTS = sum(slots for slots, _ in SERVERS)
#: Seconds after which the first server is killed, for how long, and within which it must be back at its share.
KILLED_AFTER, DOWN, BACK = 8.0, 20.0, 10.0
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream ollama {{ least_conn; {upstreams} keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://ollama; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 900s;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Answer:
    """A row that a server has answered: when its service began and ended, and the checksum of its prompt."""

    began: float
    ended: float
    prompt: int


class Three:
    """The servers, each a process of its own. They tell of each answer in a file."""

    def __init__(self, folder: Path) -> None:
        self._logs = [folder / f"answers{number}" for number in range(len(SERVERS))]
        self._processes: list[subprocess.Popen[str] | None] = [None] * len(SERVERS)
        self._read = [0] * len(SERVERS)
        self.ports = [free_port() for _ in SERVERS]
        for number in range(len(SERVERS)):
            self.start(number)

    @property
    def urls(self) -> list[str]:
        """The servers, as a connection names them."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def start(self, number: int) -> None:
        """Start a server, on its port."""
        slots, seconds = SERVERS[number]
        command = [sys.executable, str(HERE / "server.py"), "--slots", str(slots), "--seconds", str(seconds)]
        command += ["--port", str(self.ports[number]), "--log", str(self._logs[number])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        self._processes[number] = process

    def kill(self, number: int) -> None:
        """Kill a server, as the kernel does when memory is short."""
        if process := self._processes[number]:
            process.kill()
            process.wait()
            self._processes[number] = None

    def answers(self) -> list[list[Answer]]:
        """Return the answers of each server since the last call."""
        found = []
        for number, log in enumerate(self._logs):
            lines = log.read_text().splitlines()
            new, self._read[number] = lines[self._read[number] :], len(lines)
            parts = [line.split() for line in new]
            found.append([Answer(float(began), float(ended), int(row)) for began, ended, row in parts])
        return found


@contextmanager
def three_servers() -> Iterator[Three]:
    """Run the servers."""
    with tempfile.TemporaryDirectory() as folder:
        servers = Three(Path(folder))
        try:
            yield servers
        finally:
            for number in range(len(SERVERS)):
                servers.kill(number)


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def busy(answers: list[Answer], slots: int, begin: float, end: float) -> float:
    """Return the share of the slots that were in use between two moments."""
    served = sum(max(0.0, min(answer.ended, end) - max(answer.began, begin)) for answer in answers)
    return served / slots / (end - begin)


def busy_in_all(answers: list[list[Answer]]) -> float:
    """Return the share over all servers, from the first row to the last answer."""
    together = [answer for of_server in answers for answer in of_server]
    return busy(together, SLOTS, min(a.began for a in together), max(a.ended for a in together))


def ours(urls: list[str], rows: int) -> Summary:
    """Run a batch over the rows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        with file.open("w") as lines:
            for number in range(rows):
                lines.write(json.dumps({"id": number, "text": prompt(number).partition("\n")[2]}) + "\n")
        spec = BatchSpec(
            model="bench",
            rows=file,
            prompt="Summarise in one sentence:\n{{ row.text }}",
            id_column="id",
            options=Options(seed=1, num_ctx=4096),
        )
        summary = run_batch(spec, Settings(base_url=urls[0], other_urls=tuple(urls[1:])), f"{folder}/out")
        assert summary.ok == summary.rows == rows, summary
        return summary


async def round_robin(urls: list[str], rows: int, at_a_time: int) -> None:
    """Send the rows to one server after the other, so many at a time: what people write today."""
    slots, turns = asyncio.Semaphore(at_a_time), cycle(urls)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> None:
            body = {"model": "bench", "prompt": prompt(number), "options": {"seed": 1}, "stream": False}
            async with slots, session.post(f"{next(turns)}/api/generate", json=body) as response:
                await response.read()

        await asyncio.gather(*map(ask, range(rows)))


@contextmanager
def nginx(ports: list[int]) -> Iterator[str]:
    """Run nginx in front of the servers; give its URL."""
    program, port = shutil.which("nginx") or "/usr/sbin/nginx", free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        upstreams = " ".join(f"server 127.0.0.1:{each};" for each in ports)
        config = Path(folder, "nginx.conf")
        config.write_text(NGINX.format(folder=folder, port=port, upstreams=upstreams))
        process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            while not _listens(port):
                if process.poll() is not None:
                    raise RuntimeError(f"nginx ended: {Path(folder, 'error.log').read_text()}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def compare(servers: Three, rows: int) -> None:
    """Print how busy the slots are, by our batch and by what there is without it."""
    ours(servers.urls, rows)
    batch = busy_in_all(servers.answers())
    # As many at a time as there are slots, which is the best of all guesses.
    asyncio.run(round_robin(servers.urls, rows, SLOTS))
    turns = busy_in_all(servers.answers())
    with nginx(servers.ports) as url:
        ours([url], rows)
    proxy = busy_in_all(servers.answers())
    tell(
        "servers",
        f"servers: 4 + 2 + 8 slots, {rows} rows, auto",
        f"{batch:.3f}",
        f"round robin with {SLOTS} at a time: {turns:.2f}; nginx: {proxy:.2f}",
        ">= 0.95",
        batch,
    )


def outage(servers: Three, rows: int) -> None:
    """Print what it costs that the first server is killed and started again."""
    moments: list[float] = []

    def kill_and_start() -> None:
        time.sleep(KILLED_AFTER)
        servers.kill(0)
        moments.append(time.perf_counter())
        time.sleep(DOWN)
        servers.start(0)
        moments.append(time.perf_counter())

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    summary = ours(servers.urls, rows)
    killer.join()
    first, *rest = servers.answers()
    others = [answer for of_server in rest for answer in of_server]
    down, up = moments
    twice = len(first) + len(others) - len({answer.prompt for answer in (*first, *others)})
    discarded = sum(share.discarded for share in summary.servers)
    # Back at its share: its slots are in use as those of the others are, over two seconds.
    end = max(answer.ended for answer in first)
    steps = [up + step / 2 for step in range(max(0, int(2 * (end - up)) - 4))]
    back = next((at - up for at in steps if busy(first, SERVERS[0][0], at, at + 2) >= 0.9), None)
    slots = SLOTS - SERVERS[0][0]
    before, meanwhile = busy(others, slots, down - KILLED_AFTER / 2, down), busy(others, slots, down, up)
    tell(
        "servers-outage",
        f"servers: the first down for {DOWN:.0f} s, {rows} rows",
        "never back" if back is None else f"back in {back:.1f} s",
        f"answered twice {twice}, discarded {discarded}; the others {before:.2f} before, {meanwhile:.2f} then",
        f"<= {BACK:.0f} s",
        meanwhile / before,
    )


def main(rows: int) -> None:
    """Measure and print."""
    logging.disable()
    with three_servers() as servers:
        compare(servers, rows)
        outage(servers, 2 * rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
