"""A thousand waiting tasks in one process: how late its event loop runs, and what a task costs in memory and sockets.

    python tests/benchmarks/triggerer.py [tasks] [seconds]

The tasks of the first round look for a model every 5 s, which is twelve times as often as by default; those of the
second have a generation each under way that does not end. They start as Airflow starts them, 50 a second, and the
server is a stand-in in a process of its own. Lag is how late a timer of 10 ms rings, from the start of the first task
to the end of the last. Other work on the machine shows in it.
"""

import asyncio
import gc
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

_HOME = tempfile.mkdtemp(prefix="airflow-home-")
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME}/airflow.db",
}

# ruff: noqa: E402  # Airflow reads its home when it is imported
import psutil
from common import reference_seconds, tell

from ollama_provider.api.schemas import GenerateRequest
from ollama_provider.payloads import write_request
from ollama_provider.triggers import OllamaHealthTrigger, OllamaRequestTrigger, OllamaTrigger

SERVER = """
import sys, time
from ollama_provider.testing import Stall, StandIn, serve
with serve(StandIn(parallel=10_000, keep_requests=100)) as server:
    server.stand_in.script(Stall(), always=True)
    print(server.url, flush=True)
    sys.stdin.read()
"""
EVERY = 0.01
BURST = 50


async def lag(found: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(EVERY)
        found.append(time.perf_counter() - before - EVERY)


async def run(trigger: OllamaTrigger) -> None:
    async for _ in trigger.run():
        raise AssertionError("the wait ended")


async def measure(key: str, name: str, triggers: list[OllamaTrigger], seconds: float) -> None:
    process = psutil.Process()
    # What the first task brings along (libraries, the client, threads) is not a task's.
    first = asyncio.create_task(run(triggers.pop()))
    await asyncio.sleep(2)
    gc.collect()
    before, late = process.memory_info().rss, []
    watch = asyncio.create_task(lag(late))
    processor = time.process_time()
    began, tasks = time.perf_counter(), []
    while triggers:
        tasks += [asyncio.create_task(run(triggers.pop())) for _ in range(min(BURST, len(triggers)))]
        await asyncio.sleep(1)
    await asyncio.sleep(seconds)
    used, sockets = process.memory_info().rss - before, len(process.net_connections())
    for task in (first, *tasks):
        task.cancel()
    await asyncio.gather(first, *tasks, return_exceptions=True)
    processor, seconds = time.process_time() - processor, time.perf_counter() - began
    watch.cancel()
    cuts = statistics.quantiles(late, n=1000)
    tell(
        f"triggerer-{key}",
        f"{len(tasks)} deferred tasks {name}: lag p99",
        f"{cuts[989] * 1e3:.1f} ms",
        f"p50 {cuts[499] * 1e3:.1f} ms, most {max(late) * 1e3:.0f} ms; {used / 1024 / len(tasks):.1f} kB a task; "
        f"{sockets} sockets; processor {processor / seconds:.0%}",
        "",
        reference_seconds() / processor,
    )


def main() -> None:
    # A line each would drown the two that count.
    OllamaTrigger._log = logging.getLogger("quiet")
    OllamaTrigger._log.disabled = True
    count, seconds = (int(sys.argv[1]) if sys.argv[1:] else 1000), (float(sys.argv[2]) if sys.argv[2:] else 20)
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        host, port = re.match(rb"http://(.+):(\d+)", server.stdout.readline()).groups()
        os.environ["AIRFLOW_CONN_OLLAMA_DEFAULT"] = f"ollama://{host.decode()}:{port.decode()}"
        looking = [
            OllamaHealthTrigger(
                conn_id="ollama_default", models=["nonesuch"], poll_interval=5, overrides={"max_attempts": 1}
            )
            for _ in range(count + 1)
        ]
        asyncio.run(measure("looking", "look for a model", looking, seconds))
        payload = write_request(GenerateRequest(model="llama3.2", prompt="Why is the sky blue?"), None)
        asking = [OllamaRequestTrigger(conn_id="ollama_default", parcel=payload) for _ in range(count + 1)]
        asyncio.run(measure("waiting", "wait for an answer", asking, seconds))
        server.stdin.close()


if __name__ == "__main__":
    main()
