"""`python -m ollama_provider.testing` as a process."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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


def test_several_servers_differ() -> None:
    """Options have one value for all servers or one for each; the last line is the host of a connection to all."""
    arguments = "--servers 3 --port 0 --parallel 4,2,8 --version 0.24.0,,0.33.0 --model mine --model nomic-embed-text,,"
    with running(*arguments.split()) as (process, first_url, said):
        rest = [process.stdout.readline() for _ in range(5)]
        urls = rest[-1].partition(": ")[2].partition(". Stop")[0].split(", ")
        versions = [httpx.get(f"{url}/api/version").json()["version"] for url in urls]
        models = [{model["name"] for model in httpx.get(f"{url}/api/tags").json()["models"]} for url in urls]

    assert urls[0] == first_url
    assert len(set(urls)) == 3
    assert versions == ["0.24.0", "0.24.0", "0.33.0"]
    assert models == [{"mine:latest", "nomic-embed-text:latest"}, {"mine:latest"}, {"mine:latest"}]
    assert said.endswith("Models: mine:latest, nomic-embed-text:latest.\n")


def two_free_ports() -> int:
    """Find two free ports in a row, and return the first."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", first.getsockname()[1] + 1))
                return int(first.getsockname()[1])


def test_several_servers_have_ports_in_a_row() -> None:
    """Without `--port 0` they are known before the start."""
    port = two_free_ports()
    with running("--servers", "2", "--port", str(port)) as (process, _url, _said):
        second = process.stdout.readline()

    assert second.endswith(f" at http://127.0.0.1:{port + 1}\n")


def test_one_server_is_out_of_service_for_a_while() -> None:
    """It is down and up again on its port, as the output says, while the other goes on."""
    with running("--servers", "2", "--port", "0", "--outage", ",0.1-0.6") as (process, first_url, _said):
        second_url = process.stdout.readline().partition(" at ")[2].strip()
        process.stdout.readline()
        process.stdout.readline()
        down = process.stdout.readline()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{second_url}/api/version")
        assert httpx.get(f"{first_url}/api/version").status_code == 200
        up = process.stdout.readline()
        assert httpx.get(f"{second_url}/api/version").status_code == 200

        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == 0
    assert (down, up) == (f"{second_url} is down.\n", f"{second_url} is up again.\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--servers 3 --parallel 1,2", "--parallel has 2 values for 3 servers"),
        ("--servers 2 --tokens-per-second 1,x", "invalid float value"),
        ("--servers 0", "--servers has to be 1 or more"),
        ("--servers 2 --port 65535", "--port has to be between 0 and 65535"),
        ("--outage 9-5", "invalid outage value: '9-5'"),
        ("--outage nan-5", "invalid outage value"),
    ],
)
def test_invalid_options_are_refused(arguments: str, text: str) -> None:
    """The message names the option; nothing listens."""
    command = [*COMMAND, *arguments.split()]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)

    assert ended.returncode == 2
    assert text in ended.stderr
    assert ended.stdout == ""


def test_an_invalid_model_name_is_refused() -> None:
    """An invalid name ends the command before it listens."""
    ended = subprocess.run([*COMMAND, "--model", "a b"], check=False, capture_output=True, text=True, timeout=30)

    assert ended.returncode != 0
    assert "not a model name" in ended.stderr
