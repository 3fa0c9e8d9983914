"""An hour of mixed work with every kind of fault: results exact, and nothing that grows.

    python tests/soak/soak.py [--minutes 60] [--seed 1] [--output FILE.json]

Three servers fail in every way (`servers.py`), PostgreSQL is killed now and then. Four processes work as those of an
installation do for weeks (`processes.py`); memory, file descriptors, threads and sockets of each are sampled. Memory is
looked at from within (what is in use) and from outside (resident, with what allocators keep besides). Beside them,
batches of every kind are killed and started again until they are complete, and one in six of them runs into a full
disk: a small file system in memory where root can mount one, else a limit for the size of files. At the end the faults
end, and what is under way becomes complete. Caches fill for a quarter of an hour, so a short run always grows.

The exit status is 1 if a result is not exact, an error is not ours, or something grows.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from jobs import KINDS, Job, complete, some  # noqa: E402
from processes import NIGHT_RATE, SECONDS_TO_STOP  # noqa: E402
from watch import WARM_UP, Report, Watch  # noqa: E402

from tests.services import Postgresql, postgresql  # noqa: E402

#: Rows of a batch that is killed, and bytes of the disk that gets full.
ROWS, DISK = 200, 4_000_000
#: Threads that start and kill workers.
LANES = 2
#: Bytes that are left on a full disk.
ROOM = 24_000
#: Seconds in which a process ends. Requests of the clients may take up to a minute, with their retries; and the imports
#: of Airflow take some seconds to be undone on a busy machine.
TO_END = 90
#: Seconds between two samples of each process.
EVERY = 5.0
#: As docs/operate.md advises for processes that live long: one heap for all threads, where glibc's malloc has one for
#: each of several, and none of the blocks in it that are large.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
#: Bytes that a batch may remember of each row: docs/design/batch.md, "Measured choices".
BYTES_PER_ROW = 100


class Soak:
    """The processes of the test, and what is known of them.

    Args:
        folder: of all files.
        seed: of the random numbers.
        seconds: how long faults are injected.

    Attributes:
        over: no fault is injected, and no batch begun, any more.
        complete: those that were begun are complete.
    """

    def __init__(self, folder: Path, seed: int, seconds: float) -> None:
        self.folder = folder
        self.seed = seed
        self.seconds = seconds
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.watches: list[Watch] = []
        self.over = threading.Event()
        self.complete = threading.Event()
        self._started: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start a process that is watched."""
        process = self._popen(name, *command)
        self._started[name] = process
        self.watches.append(Watch(name, process.pid, self.report(name)))
        return process

    def _popen(self, name: str, *command: str, **how: Any) -> subprocess.Popen[str]:
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", sys.executable, *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | MALLOC, **how,
            )  # fmt: skip

    def guarded(self, work: Callable[[], None]) -> None:
        """Do the work of a thread; an exception that ends it is a problem."""
        try:
            work()
        except Exception as error:
            self.problems.append(f"the test itself: {type(error).__name__}: {error}")

    def report(self, name: str) -> Path:
        """Return the file of a process's report."""
        return self.folder / f"{name}.report.json"

    def end(self, name: str) -> None:
        """End a process by SIGTERM; to need too long, or another status than 0, is a problem."""
        process = self._started.pop(name)
        process.terminate()
        try:
            status = process.wait(TO_END)
        except subprocess.TimeoutExpired:
            self._kill(process, name)
            return
        if status and (name, status) != ("servers", -signal.SIGTERM):
            self.problems.append(f"{name} ended with status {status}: {self._last_lines(name)}")

    def _kill(self, process: subprocess.Popen[str], name: str) -> None:
        """Kill a process that does not stop; note what its threads were doing."""
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        self.problems.append(f"{name} did not end within {TO_END} s of SIGTERM: {self._last_lines(name, 60)}")
        process.kill()
        process.wait()

    def _last_lines(self, name: str, lines: int = 5) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text().splitlines()[-lines:])

    def alive(self) -> None:
        """Note the processes that have ended by themselves."""
        for name, process in list(self._started.items()):
            if process.poll() is not None:
                self.problems.append(f"{name} ended by itself: {self._last_lines(name)}")
                del self._started[name]

    def job(self, name: str, job: Job, *more: str, **how: Any) -> subprocess.Popen[str]:
        """Start a worker with one batch, and wait until it has imported what it needs."""
        command = (str(HERE / "processes.py"), "job", str(self.report(name)), "[]", job.as_text(), *more)
        process = self._popen(name, *command, **how)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def kill_again_and_again(self, urls: list[str], disk: Path | None, lane: int) -> None:
        """Run batches in workers that are killed or told to stop at random moments, until it is over."""
        chance = random.Random(self.seed * 1000 + lane)
        for number in count(lane, LANES):
            if self.over.is_set():
                return
            kind, name = KINDS[number // LANES % len(KINDS)], f"killed-{lane}"
            job = Job(kind, number, ROWS, str(self.folder / f"job{number}"), some(chance, urls), per_minute=1200)
            if number % 6 == lane:
                job = self._on_full_disk(name, job, disk)
            for _ in range(chance.randrange(2, 6)):
                process = self.job(name, job)
                try:
                    process.wait(chance.uniform(0.5, 8))
                    break
                except subprocess.TimeoutExpired:
                    self._end_worker(process, chance, name)
            else:
                process = self.job(name, job)
            self._complete(name, job, process)
            shutil.rmtree(job.folder)

    def _end_worker(self, process: subprocess.Popen[str], chance: random.Random, name: str) -> None:
        if chance.random() < 0.7:
            process.kill()
            process.wait()
            self.counts["workers killed"] += 1
            return
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)  # it is a problem by itself: see what it does
            try:
                process.wait(TO_END)
            except subprocess.TimeoutExpired:
                self._kill(process, name)
        found = Report.read(self.report(name))[1]
        self.problems += [f"{problem}: {self._last_lines(name, 60)}" for problem in found]
        self.counts["workers stopped"] += 1

    def _complete(self, name: str, job: Job, process: subprocess.Popen[str]) -> None:
        try:
            status = process.wait(600)
        except subprocess.TimeoutExpired:
            process.kill()
            self.problems.append(f"{job}: not complete within 10 min")
            return
        counts, problems, _ = Report.read(self.report(name))
        self.problems += problems or ([f"{name}: status {status}: {self._last_lines(name)}"] if status else [])
        self.counts += counts
        self.counts["killed batches complete"] += 1
        self.counts["rows of killed batches"] += job.rows

    def _on_full_disk(self, name: str, job: Job, disk: Path | None) -> Job:
        """Run the batch until it has no room left; return it as it is to go on."""
        if disk is None:
            job.prepare()

            def limit() -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

            process = self.job(name, job, "once", preexec_fn=limit)
        else:
            job = Job(**asdict(job) | {"folder": str(disk / f"job{job.number}")})
            job.prepare()
            filler = disk / f"filler{job.number}"
            with filler.open("wb", buffering=0) as file:
                while shutil.disk_usage(disk).free > ROOM:
                    file.write(bytes(4096))
            process = self.job(name, job, "once")
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        counts, *_ = Report.read(self.report(name))
        if counts["a run ended with StorageError"]:
            self.counts["full disks"] += 1
        else:
            self.counts["full disks that another fault came before"] += 1
        if disk is not None:
            filler.unlink()
        return job


@contextlib.contextmanager
def small_disk(disk: Path) -> Iterator[Path | None]:
    """Mount a small file system in memory in a new folder; give None where that is not allowed."""
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def trouble(soak: Soak, database: Postgresql) -> None:
    """Kill PostgreSQL now and then, until it is over; then wait until all batches are complete.

    The kernel tells a process to end when the thread has ended that started it.
    """
    chance = random.Random(soak.seed)
    while not soak.over.wait(chance.uniform(45, 120)):
        database.kill()
        soak.over.wait(chance.uniform(0.5, 5))
        database.start()
        soak.counts["PostgreSQL killed"] += 1
    soak.complete.wait()


def run(soak: Soak, database: Postgresql, disks: Sequence[Path | None]) -> None:
    """Start everything, watch it, end the faults, and complete what is under way.

    Args:
        soak: with nothing started.
        database: that is killed now and then.
        disks: one for each thread that fills it, since it is full for all who use it.
    """
    postgres = {"conn_type": "postgres", "host": "127.0.0.1", "port": database.port, "login": "airflow"}
    os.environ["AIRFLOW_CONN_SOAK_POSTGRESQL"] = json.dumps(postgres | {"schema": "airflow"})
    servers = soak.start("servers", str(HERE / "servers.py"), str(soak.report("servers")), str(soak.seed))
    assert servers.stdout is not None
    assert servers.stdin is not None
    urls = json.loads(servers.stdout.readline())
    for number, url in enumerate([*urls, ", ".join(urls)]):
        os.environ[f"AIRFLOW_CONN_SOAK_{number}"] = json.dumps({"conn_type": "ollama", "host": url})
    long = Job("schema", 5000, int(NIGHT_RATE * soak.seconds), str(soak.folder / "night"), urls)
    paced = Job(**asdict(long) | {"per_minute": NIGHT_RATE * 60.0})
    roles = str(HERE / "processes.py")
    for role in ("worker", "triggerer", "clients"):
        soak.start(role, roles, role, str(soak.report(role)), json.dumps(urls))
    soak.start("night", roles, "night", str(soak.report("night")), "[]", paced.as_text())
    lanes = [partial(soak.kill_again_and_again, urls, disk, lane) for lane, disk in enumerate(disks)]
    *threads, killer = (
        threading.Thread(target=soak.guarded, args=(work,), daemon=True)
        for work in (*lanes, partial(trouble, soak, database))
    )
    for thread in (*threads, killer):
        thread.start()
    end = time.monotonic() + soak.seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(EVERY, left))
        soak.alive()
        for watch in soak.watches:
            watch.sample()
    soak.over.set()
    for name in ("worker", "triggerer", "clients", "night"):
        soak.end(name)
    servers.stdin.write("calm\n")
    servers.stdin.flush()
    servers.stdout.readline()
    for thread in threads:
        thread.join(900)
    soak.complete.set()
    killer.join()
    soak.problems += complete(long, soak.counts)
    soak.end("servers")


def table(soak: Soak, disk: Path | None) -> tuple[str, dict[str, Any], bool]:
    """Return the report as text and as data, and whether all is well."""
    lines = [
        f"| process | operations | {' | '.join(Watch.QUANTITIES)} |",
        "| --- | --- " + "| --- " * len(Watch.QUANTITIES) + "|",
    ]
    data: dict[str, Any] = {"processes": {}}
    well = not soak.problems
    for watch in soak.watches:
        done, after_warm_up = watch.operations()
        trends = watch.trends()
        cells = [f"{t.level:.0f} ({t.change:+.1f}, {t.least:+.1f} to {t.most:+.1f})" for t in trends.values()]
        lines.append(f"| {watch.name} | {done} | " + " | ".join(cells) + " |")
        flat = {quantity: found.flat for quantity, found in trends.items()}
        if watch.name == "night":
            for memory in ("malloc MB", "resident MB"):
                flat[memory] |= trends[memory].change * 2**20 <= BYTES_PER_ROW * after_warm_up
        grown = [quantity for quantity, is_flat in flat.items() if not is_flat]
        if grown:
            lines[-1] += f" grows: {', '.join(grown)}"
            well = False
        data["processes"][watch.name] = {
            "operations": done,
            **{quantity: asdict(found) for quantity, found in trends.items()},
            "grows": grown,
        }
        counts, problems, _ = Report.read(soak.report(watch.name))
        soak.problems += problems
        data["processes"][watch.name]["counts"] = counts
    well &= not soak.problems
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    data |= {
        "commit": commit.stdout.strip(),
        "minutes": round(soak.seconds / 60, 1),
        "seed": soak.seed,
        "full disk": "a small tmpfs" if disk else "RLIMIT_FSIZE",
        "counts": soak.counts,
        "problems": soak.problems,
    }
    head = [
        f"Soak test of {data['commit']}: {soak.seconds / 60:g} min, seed {soak.seed}. Full disk: {data['full disk']}.",
        f"Medians after the warm-up ({WARM_UP:.0%}); in brackets, the change from then on and its 95 % limits.",
        "",
    ]
    tail = ["", *[f"{name}: {number}" for name, number in sorted(soak.counts.items())]]
    for watch in soak.watches:
        counts = data["processes"][watch.name]["counts"]
        tail.append(f"{watch.name}: " + ", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    tail += ["", *[f"PROBLEM {problem}" for problem in soak.problems], "all exact and flat" if well else "NOT well"]
    return "\n".join(head + lines + tail), data, well


def main() -> int:
    """Run the test and print its report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the report as JSON, too")
    given = parser.parse_args()
    # So that the database ends and the disk is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        os.environ |= {"AIRFLOW_HOME": f"{name}/airflow", "PYTHONPATH": str(ROOT)}
        soak = Soak(folder, given.seed, given.minutes * 60)
        with postgresql(folder / "logs") as database, contextlib.ExitStack() as mounted:
            disks = [mounted.enter_context(small_disk(folder / f"disk{lane}")) for lane in range(LANES)]
            run(soak, database, disks)
            text, data, well = table(soak, disks[0])
    print(text, flush=True)
    if given.output:
        given.output.write_text(json.dumps(data, indent=1) + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
