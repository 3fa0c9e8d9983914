"""A batch in a process of its own, killed, stopped, starved and run twice; through the command line."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from ollama_provider.batch.__main__ import main
from ollama_provider.testing import Pace, Stall

ROWS = 150


@pytest.fixture
def rows(tmp_path):
    """A file of rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": number, "text": f"text {number}"}) + "\n" for number in range(ROWS)))
    return file


def command(batch, rows, *more):
    return [
        "--host", batch.server.url, "--model", "llama3.2", "--rows", str(rows), "--prompt", "{{ row.text }}",
        "--output", str(batch.directory), "--id-column", "id", *more,
    ]  # fmt: skip


def run(batch, rows, *more, **how):
    return subprocess.run(
        [sys.executable, "-m", "ollama_provider.batch", *command(batch, rows, *more)],
        capture_output=True, text=True, timeout=60, check=False, **how,
    )  # fmt: skip


def start(batch, rows, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "ollama_provider.batch", *command(batch, rows, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def stored(batch):
    """Keys whose outcome was kept: in checkpoints, and what was appended after the last one."""
    return {
        json.loads(line)["key"]
        for part in batch.parts
        for line in part.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    }


def test_killed_fifty_times_at_random_moments(batch, rows, ollama, tmp_path):
    """kill -9, again and again: every row is there once, and each kill cost no more than what was in flight.

    Whether there are many checkpoints or none: nothing that was answered is requested again.
    """
    ollama.stand_in.script(Pace(first_token=0.02), always=True, where=lambda body: body.get("prompt"))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["ollama_provider.batch.__main__", "httpx_aiohttp"])
    chance = random.Random(22)
    kills = 0
    while kills < 50:
        # Some twenty kills are survived on the way to a complete batch; then comes the next one.
        batch.directory = tmp_path / f"out{kills}"
        pace = chance.choice(["0.03", "60"])
        arguments = command(batch, rows, "--concurrency", "2", "--checkpoint-every", pace)
        first, killed = len(batch.asked), kills
        tries = []
        while not (batch.directory / "summary.json").exists():
            tries.append((stored(batch), len(batch.asked)))
            process = processes.Process(target=main, args=(arguments,))
            process.start()
            process.join(chance.uniform(0.05, 0.2) if kills < 50 else 30)
            kills += process.is_alive()
            process.kill()
            process.join()

        assert [row["id"] for row in batch.results] == list(range(ROWS))
        assert {row["status"] for row in batch.results} == {"ok"}
        assert batch.failed == []
        key_of = {f"text {row['id']}": row["key"] for row in batch.results}
        asked = batch.asked
        assert ROWS <= len(asked) - first <= ROWS + 2 * (kills - killed)
        for kept, before in tries:
            assert not kept & {key_of[prompt] for prompt in asked[before:]}


def test_sigterm_writes_a_checkpoint_and_ends_within_four_seconds(batch, rows, ollama):
    """With requests in flight that would never end: exit status 3, and every answered row is kept."""
    ollama.stand_in.script(Stall(after=1), where=lambda body: body.get("prompt") == "text 100", always=True)
    process = start(batch, rows, "--concurrency", "1")
    ollama.stand_in.wait_until(lambda _: "text 100" in batch.asked, seconds=30)

    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert time.monotonic() - began < 4
    assert process.returncode == 3
    summary = json.loads(output)
    assert (summary["complete"], summary["reason"], summary["ok"]) == (False, "stopped by SIGTERM", 100)
    assert len(stored(batch)) == 100
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_two_runs_in_one_directory(batch, rows, ollama):
    """The second one is refused and says who is at work; after a kill the directory is free at once."""
    ollama.stand_in.script(Stall(), where=lambda body: body.get("prompt"), always=True)
    first = start(batch, rows)
    ollama.stand_in.wait_until(lambda _: bool(batch.asked), seconds=30)

    second = run(batch, rows)

    assert second.returncode == 1
    assert f"Another run is at work in {batch.directory} (process {first.pid} on " in second.stderr
    first.kill()
    first.communicate()
    ollama.stand_in._script.clear()
    assert run(batch, rows).returncode == 0


def test_a_full_disk(batch, rows, ollama):
    """Really full, by the limit of the kernel: exit status 1 with the reason, and the checkpoints are kept."""
    answer = "long " * 1000
    ollama.stand_in.script(answer, where=lambda body: body.get("prompt"), always=True)

    def starve():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    full = run(batch, rows, "--concurrency", "2", "--checkpoint-every", "0.05", preexec_fn=starve)

    assert full.returncode == 1
    assert f"StorageError: {batch.directory} cannot be written: File too large" in full.stderr
    assert not (batch.directory / "results.jsonl").exists()
    kept, before = stored(batch), len(batch.asked)
    assert kept
    assert run(batch, rows).returncode == 0
    assert len(batch.asked) - before == ROWS - len(kept)


@pytest.mark.parametrize("where", ["/proc/ollama-batch", "{rows}/inside-a-file"])
def test_a_directory_that_cannot_be_written(batch, rows, where, ollama):
    """Told before the first request, also to root."""
    refused = subprocess.run(
        [sys.executable, "-m", "ollama_provider.batch", *command(batch, rows), "--output", where.format(rows=rows)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert refused.returncode == 1
    assert refused.stderr.startswith("StorageError: The directory ")
    assert ollama.stand_in.requests == []


def test_exit_statuses(batch, rows, ollama):
    """0 complete, 1 failed, 2 wrong arguments; one line for each error, and no trace."""
    assert run(batch, rows).returncode == 0
    wrong = run(batch, rows, "--option", "num_ctxx=7")
    assert (wrong.returncode, wrong.stderr) == (
        1, "InvalidRequestError: num_ctxx: there is no such field; did you mean 'num_ctx'?\n",
    )  # fmt: skip
    assert run(batch, rows, "--concurrency", "0").returncode == 2
    ollama.stop()
    down = run(batch, rows)
    assert down.returncode == 1
    assert "UnreachableError" in down.stderr
    assert "Traceback" not in down.stderr


def test_a_line_of_progress_now_and_then(batch, rows, ollama):
    """On standard error where that is no terminal; the summary is on standard output."""
    ollama.stand_in.script(Pace(first_token=0.02), where=lambda body: body.get("prompt"), always=True)

    ended = run(batch, rows, "--report-every", "0.1", "--concurrency", "4")

    lines = [line for line in ended.stderr.splitlines() if "done=" in line]
    assert len(lines) > 1
    assert re.search(rf"/{ROWS} \(\d+ %\) ok=", lines[0])
    assert json.loads(ended.stdout)["rows"] == ROWS


def test_a_bar_in_a_terminal(batch, rows):
    """By hand there is a bar that is drawn over itself."""
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ollama_provider.batch", *command(batch, rows)], stderr=inside, stdout=subprocess.DEVNULL
    )
    os.close(inside)
    drawn = b""
    try:
        while piece := os.read(terminal, 10_000):
            drawn += piece
    except OSError:  # Linux's way to say that the other side is closed
        pass
    assert process.wait(30) == 0
    assert f"[{'#' * 24}] done={ROWS}/{ROWS} (100 %)" in drawn.decode()
    assert "INFO" not in drawn.decode()
