"""`python -m ollama_provider.testing` as a process."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

COMMAND = [sys.executable, "-m", "ollama_provider.testing"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """Run the command; give the process, its URL and its first output."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        first = process.stdout.readline() + process.stdout.readline()
        yield process, first.partition(" at ")[2].partition("\n")[0], first
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_what_it_is_and_stops_cleanly(number: signal.Signals) -> None:
    """URL, version and models are printed; SIGTERM and Ctrl-C end it with status 0."""
    with running("--port", "0", "--model", "nomic-embed-text", "--model", "mine") as (process, url, said):
        assert "Stand-in for Ollama 0.24.0" in said
        assert "no model behind it" in said
        assert "nomic-embed-text:latest, mine:latest" in said
        assert httpx.get(f"{url}/api/version").json() == {"version": "0.24.0"}
        assert httpx.post(f"{url}/api/embed", json={"model": "nomic-embed-text", "input": "a"}).status_code == 200

        process.send_signal(number)

        assert process.wait(10) == 0


def test_it_takes_visible_time_if_told_to() -> None:
    """`--tokens-per-second` and `--load-seconds` take time, as the metrics of the reply show."""
    with running("--port", "0", "--tokens-per-second", "1000", "--load-seconds", "0.01") as (_, url, _said):
        body = {"model": "llama3.2", "prompt": "hello", "stream": False}
        reply = httpx.post(f"{url}/api/generate", json=body).json()

    assert reply["load_duration"] >= 10e6
    assert reply["eval_count"] / reply["eval_duration"] * 1e9 <= 1000


def test_a_taken_port_is_named() -> None:
    """The message names the port and `--port`; there is no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        ended = subprocess.run([*COMMAND, "--port", str(port)], check=False, capture_output=True, text=True, timeout=30)

    assert ended.returncode == 1
    assert f"Cannot listen at 127.0.0.1:{port}" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_invalid_model_name_is_refused() -> None:
    """An invalid name ends the command before it listens."""
    ended = subprocess.run([*COMMAND, "--model", "a b"], check=False, capture_output=True, text=True, timeout=30)

    assert ended.returncode != 0
    assert "not a model name" in ended.stderr
