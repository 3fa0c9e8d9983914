"""The long-lived processes of the soak test: ``python tests/soak/processes.py ROLE REPORT URLS MINUTES``.

They do what the processes of an installation do for weeks: a worker that runs batch after batch, a triggerer that waits
for many tasks, and code that calls the clients from several threads. `night` is one batch that lasts as long as the
test, and `job` one batch of a worker that will be killed.
"""

import asyncio
import faulthandler
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from jobs import KINDS, Answers, Job, complete, some
from watch import Report

from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.schemas import EmbedRequest, GenerateRequest, Options, ShowRequest, TagsRequest
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.batch import StopSignal

PATIENCE = Timeouts(connect=2, first_token=4, idle=2, total=20)
#: Rows a second that the long batch asks for.
NIGHT_RATE = 10
#: Tasks that wait in the triggerer at a time, and threads that use the client.
TRIGGERS, THREADS = 12, 3
#: Seconds that a batch may take to end after SIGTERM: twice what docs/design/batch.md says, since the machine is busy.
SECONDS_TO_STOP = 8


def worker(report: Report, urls: list[str], stop: StopSignal) -> None:
    """Run one batch after another, of every kind."""
    chance = random.Random(2)
    with tempfile.TemporaryDirectory(prefix="soak-worker-") as folder:
        for number in count(10_000):
            if stop.reason:
                return
            kind = KINDS[number % len(KINDS)]
            job = Job(kind, number, 60, f"{folder}/{number}", some(chance, urls), per_minute=600)
            report.problems += complete(job, report.counts, stop=stop)
            report.counts["operations"] += job.rows
            report.counts[f"batches: {kind}"] += 1
            shutil.rmtree(job.folder)


def night(report: Report, job: Job, stop: StopSignal) -> None:
    """Run one batch that is not done before the end."""

    def look() -> None:
        progress = Path(job.folder, "out/progress.json")
        while True:
            if progress.exists():
                report.counts["operations"] = json.loads(progress.read_text())["done"]
            time.sleep(2)

    threading.Thread(target=look, daemon=True).start()
    report.problems += complete(job, report.counts, stop=stop)


class Triggerer:
    """Runs triggers as Airflow's triggerer does, and cancels some of them."""

    def __init__(self, report: Report, connections: int, stop: StopSignal) -> None:
        self._report = report
        self._connections = connections
        self._stop = stop
        self._right, self._chance = Answers(), random.Random(1)

    async def run(self) -> None:
        """Have so many tasks wait, until the end."""
        await asyncio.gather(*map(self._tasks, range(TRIGGERS)))

    async def _tasks(self, place: int) -> None:
        for number in count(place, TRIGGERS):
            if self._stop.reason:
                return
            trigger, request = self._make(number)
            waiting = asyncio.create_task(self._wait(trigger))
            await asyncio.wait([waiting], timeout=0.2 if self._chance.random() < 0.1 else 90)
            self._report.counts["operations"] += 1
            if waiting.done():
                self._check(waiting.result(), request)
            else:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                self._report.counts["cancelled"] += 1
            await asyncio.sleep(self._chance.uniform(0, 2))

    def _make(self, number: int) -> tuple[Any, Any]:
        from ollama_provider.payloads import write_request
        from ollama_provider.triggers import OllamaHealthTrigger, OllamaRequestTrigger

        conn_id = f"soak_{self._chance.randrange(self._connections)}"
        patience = {f"{name}_timeout": seconds for name, seconds in PATIENCE.model_dump(exclude_unset=True).items()}
        overrides = patience | {"max_attempts": 4}
        if self._chance.random() < 0.3:
            end = time.time() + 10
            return OllamaHealthTrigger(
                conn_id=conn_id, models=["llama3.2"], poll_interval=1, deadline=end, overrides=overrides
            ), None
        request = GenerateRequest(model="llama3.2", prompt=f"Trigger {number} asks.", options=Options(num_ctx=2048))
        return OllamaRequestTrigger(conn_id=conn_id, parcel=write_request(request, None), overrides=overrides), request

    @staticmethod
    async def _wait(trigger: Any) -> dict[str, Any]:
        try:
            async for event in trigger.run():
                return dict(event.payload)
            return {"status": "none"}
        finally:
            await trigger.cleanup()

    def _check(self, event: dict[str, Any], request: Any) -> None:
        from ollama_provider.payloads import AnswerReader

        self._report.counts[f"event: {event['status']}"] += 1
        if event["status"] in {"failed", "none"}:
            self._report.problems.append(f"trigger: {event}")
        if event["status"] != "answered":
            return
        try:
            with AnswerReader(event["answers"]) as reader:
                if reader.send(request).response != self._right.of(request.prompt):
                    self._report.problems.append("trigger: wrong answer")
        except OllamaError as error:
            self._report.counts[type(error).__name__] += 1
            if isinstance(error, InvalidRequestError):
                self._report.problems.append(f"trigger: {error}")


class Clients:
    """Sends requests with both clients, leaves streams early, and makes clients anew now and then."""

    def __init__(self, report: Report, urls: list[str], stop: StopSignal) -> None:
        self._report = report
        self._urls = urls
        self._stop = stop
        self._right = Answers()

    def run(self) -> None:
        """Use both clients until the end, the synchronous one from several threads."""
        threads = [threading.Thread(target=self._use, args=(random.Random(seed),)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        asyncio.run(self._use_async(random.Random(99)))
        for thread in threads:
            thread.join()

    def _settings(self, chance: random.Random) -> Settings:
        first, *others = some(chance, self._urls)
        return Settings(base_url=first, other_urls=others, timeouts=PATIENCE, max_attempts=3)

    @staticmethod
    def _request(chance: random.Random) -> Any:
        prompt = f"Client asks {chance.random()}"
        return chance.choice(
            [
                GenerateRequest(model="llama3.2", prompt=prompt, options=Options(num_ctx=2048)),
                EmbedRequest(model="nomic-embed-text", input=[prompt]),
                ShowRequest(model="qwen3"),
                TagsRequest(),
            ]
        )

    def _check(self, sent: Any, reply: Any) -> None:
        self._report.counts["operations"] += 1
        if isinstance(reply, BaseException):
            self._report.counts[type(reply).__name__] += 1
            if not isinstance(reply, OllamaError):
                self._report.problems.append(f"client: {type(reply).__name__}: {reply}")
        elif isinstance(sent, GenerateRequest) and reply.response != self._right.of(sent.prompt):
            self._report.problems.append("client: wrong answer")

    def _use(self, chance: random.Random) -> None:
        while not self._stop.reason:
            with Client(self._settings(chance)) as client:
                for _ in range(30):
                    if self._stop.reason:
                        return
                    sent = self._request(chance)
                    try:
                        if chance.random() < 0.2:
                            self._leave_early(client)
                        else:
                            self._check(sent, client.send(sent))
                    except Exception as error:  # which ones come is what is tested
                        self._check(sent, error)
                    time.sleep(0.3)

    def _leave_early(self, client: Client) -> None:
        with client.stream(GenerateRequest(model="llama3.2", prompt="Leave early.")) as pieces:
            next(iter(pieces))
        self._report.counts["streams left early"] += 1

    async def _use_async(self, chance: random.Random) -> None:
        while not self._stop.reason:
            async with AsyncClient(self._settings(chance)) as client:
                for _ in range(10):
                    if self._stop.reason:
                        return
                    requests = [self._request(chance) for _ in range(4)]
                    replies = await asyncio.gather(*map(client.send, requests), return_exceptions=True)
                    for sent, reply in zip(requests, replies, strict=True):
                        self._check(sent, reply)
                    await asyncio.sleep(1)


def main() -> int:
    """Do what the arguments say until SIGTERM; the exit status is 0."""
    role, file, urls, *job = sys.argv[1:]
    report, stop = Report(file), StopSignal()
    told: list[float] = []

    def tell(*_: object) -> None:
        told.append(time.monotonic())
        stop.set("the end of the test")

    signal.signal(signal.SIGTERM, tell)
    faulthandler.register(signal.SIGUSR1)
    logging.disable()
    if role == "job":
        import ollama_provider.sql  # noqa: F401  # takes seconds, which would count as slow to stop

        print("began", flush=True)
        report.problems += complete(Job.read(job[0]), report.counts, stop=stop, tries=1 if job[1:] else 50)
        if told and (seconds := time.monotonic() - told[0]) > SECONDS_TO_STOP:
            report.problems.append(f"{job[0]}: ended {seconds:.1f} s after SIGTERM")
        report.save()
        return 3 if stop.reason else int(bool(report.problems))
    # Airflow's logger writes to the standard output, which nobody reads: a full pipe would stop the process.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report.save_regularly()
    match role:
        case "worker":
            worker(report, json.loads(urls), stop)
        case "night":
            night(report, Job.read(job[0]), stop)
        case "triggerer":
            asyncio.run(Triggerer(report, len(json.loads(urls)) + 1, stop).run())
        case "clients":
            Clients(report, json.loads(urls), stop).run()
    report.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
