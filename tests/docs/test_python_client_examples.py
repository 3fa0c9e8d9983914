"""The examples of docs/howto/python-client.md, against a stand-in."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ollama_provider.api.client import Client
from ollama_provider.testing import Fail, Model, Server
from tests.docs.test_pages import piece

HERE = "tests/docs/test_python_client_examples.py"


@pytest.fixture(autouse=True)
def here(ollama: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run the examples in a folder of their own, with the stand-in as the server of the environment."""
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    monkeypatch.chdir(tmp_path)


def ask() -> None:
    # [start ask]
    from ollama_provider.api.client import Client
    from ollama_provider.api.schemas import ChatRequest, GenerateRequest

    with Client() as client:
        reply = client.send(GenerateRequest(model="llama3.2", prompt="Why is the sky blue?", options={"seed": 1}))
        print(reply.text, reply.eval_count, reply.server)

        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And at night?"}]
        with client.stream(ChatRequest(model="llama3.2", messages=chat)) as parts:
            for part in parts:
                print(part.text, end="", flush=True)
    # [end ask]


def schema() -> None:
    # [start schema]
    from pydantic import BaseModel

    from ollama_provider.api.client import Client
    from ollama_provider.api.schemas import GenerateRequest
    from ollama_provider.api.structured_output import Output

    class Review(BaseModel):
        stars: int
        topics: list[str]

    output = Output(Review)
    with Client() as client:
        reply = client.send(GenerateRequest(model="llama3.2", prompt="Review a lamp.", format=output.format))
    print(output.read(reply.text)["stars"])
    # [end schema]


def errors() -> None:
    # [start errors]
    from ollama_provider.api.client import Client
    from ollama_provider.api.errors import OllamaError
    from ollama_provider.api.schemas import EmbedRequest

    try:
        with Client() as client:
            vectors = client.send(EmbedRequest(model="nomic-embed-text", input=["a cat", "a dog"])).embeddings
            print(len(vectors), "vectors of length", len(vectors[0]))
    except OllamaError as error:
        print("trying again may help" if error.retryable else "trying again is of no use", error)
    # [end errors]


async def concurrently() -> None:
    # [start async]
    import asyncio

    from ollama_provider.api.client import AsyncClient
    from ollama_provider.api.schemas import GenerateRequest

    async with AsyncClient(concurrency=4) as client:
        requests = [GenerateRequest(model="llama3.2", prompt=f"A word with {letter}") for letter in "abcdef"]
        replies = await asyncio.gather(*map(client.send, requests))
    print([reply.text for reply in replies])
    # [end async]


def batch() -> None:
    # [start batch]
    from ollama_provider.api.address import settings_for
    from ollama_provider.batch import BatchSpec, FailurePolicy, run_batch

    spec = BatchSpec(
        model="llama3.2",
        rows=[{"text": "Rain fell."}, {"text": "The sun shone."}],
        prompt="In {{ tongue }}: {{ row.text }}",
        variables={"tongue": "Dutch"},
        failures=FailurePolicy(max_failed_rows=1),
    )
    summary = run_batch(spec, settings_for(), "translations")
    print(summary.ok, summary.failed, summary.directory)
    # [end batch]


def test_one_answer_and_a_stream(ollama: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole answer with its numbers, then one that is printed as it comes."""
    ollama.stand_in.script("Because of Rayleigh.", "It is dark.")

    ask()

    whole, streamed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"Because of Rayleigh\. \d+ {re.escape(ollama.url)}", whole)
    assert streamed == "It is dark."


def test_an_answer_in_a_schema(ollama: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """It is checked, and comes as plain data."""
    ollama.stand_in.script({"stars": 4, "topics": ["light"]})

    schema()

    assert capsys.readouterr().out == "4\n"


@pytest.mark.ollama(models=[Model("nomic-embed-text", ("embedding",))])
def test_vectors_and_an_error(ollama: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """An error says whether another try can help."""
    errors()
    ollama.stand_in.script(Fail("unauthorized", status=401))
    errors()

    good, bad = capsys.readouterr().out.splitlines()
    assert good.startswith("2 vectors of length ")
    assert bad.startswith("trying again is of no use ")


def test_many_at_a_time(ollama: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers are in the order of the requests."""
    for letter in "abcdef":
        ollama.stand_in.script(letter, where=lambda body, letter=letter: body["prompt"].endswith(letter))

    asyncio.run(concurrently())

    assert capsys.readouterr().out == f"{list('abcdef')}\n"


def test_a_batch(ollama: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Results are in the directory, as those of the operator."""
    batch()

    # Where other tests have imported Airflow 2, its log is written to the same place.
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("[20")]
    assert printed.startswith("2 0 ")
    assert len(Path("translations/results.jsonl").read_text().splitlines()) == 2
    assert "In Dutch: Rain fell." in [(seen.json or {}).get("prompt") for seen in ollama.stand_in.requests]


@pytest.mark.parametrize("mark", ["ask", "schema", "errors", "batch"])
def test_it_needs_no_airflow(mark: str, tmp_path: Path, fresh_python: Callable[[str], str]) -> None:
    """In a Python where Airflow cannot be imported at all."""
    said = fresh_python("import sys\nsys.modules['airflow'] = None\n" + piece(HERE, mark))

    assert said.strip()
    assert not (tmp_path / "airflow").exists()


@pytest.fixture
def fresh_python(ollama: Server, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that runs code in a new Python, as a script or a notebook does; returns what it prints."""
    ollama.stand_in.install(Model("nomic-embed-text", ("embedding",)))

    def run(code: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_client_of_nothing_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the command, and of Ollama's own programs: OLLAMA_HOST, else this machine."""
    for value, url in (("gpu1", "http://gpu1:11434"), ("", "http://127.0.0.1:11434")):
        monkeypatch.setenv("OLLAMA_HOST", value)
        with Client() as client:
            assert client.settings.base_url == url
