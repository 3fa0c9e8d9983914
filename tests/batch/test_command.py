"""The command line of what is not a plain batch: a real process each, against a stand-in."""

import gzip
import json
import os
import pty
import subprocess
import sys

import pytest
from pyarrow import parquet

from ollama_provider.testing import Fail, Model


@pytest.fixture
def command(ollama, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"id": {n}, "text": "text {n}"}}\n' for n in range(40)))

    def run(*arguments, model="llama3.2", prompt=True, stderr=subprocess.PIPE):
        given = ["--prompt", "{{ row.text }}"] if prompt else []
        command = [sys.executable, "-m", "ollama_provider.batch", "--host", ollama.url, "--model", model, *given]
        command += ["--rows", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out"), "--id-column", "id"]
        return subprocess.run(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False
        )

    return run


def test_shards_and_their_merge(command, tmp_path):
    """0/2 and 1/2 and --merge are the batch; a merge before them is not complete."""
    assert command("--shard", "0/2").returncode == 0
    early = command("--merge")
    assert (early.returncode, json.loads(early.stdout)["complete"]) == (3, False)
    assert command("--shard", "1/2").returncode == 0

    merged = command("--merge")

    assert merged.returncode == 0, merged.stderr
    assert json.loads(merged.stdout)["reused"] == 40
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 40
    refused = command("--shard", "2/2")
    assert (refused.returncode, "there is no 2 of 2" in refused.stderr) == (1, True)


def test_the_end_at_a_terminal(command, ollama, tmp_path):
    """Beside the bar: why rows failed, and where the report is. What else is logged there are warnings."""
    ollama.stand_in.script(Fail("no", status=400), where=lambda body: body.get("prompt") == "text 7", always=True)
    told, terminal = pty.openpty()
    try:
        done = command("--max-failed-rows", "1", stderr=terminal)
    finally:
        os.close(terminal)
    seen = os.read(told, 1 << 16).decode()
    os.close(told)

    assert done.returncode == 0
    lines = [line.strip() for line in seen.splitlines()]
    assert "Failed rows: 1" in lines
    assert any(line.startswith("1  BadRequestError  7        ") for line in lines)
    assert lines[-1] == f"Report: {tmp_path}/out/report.html"
    assert json.loads(done.stdout)["failed"] == 1


def test_other_files(command, tmp_path):
    """Their form is said by options; what is missing, by the error. The last --rows counts."""
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress("id;text\n7;Größe\n".encode("latin-1")))
    rows = ["--rows", str(tmp_path / "rows.csv.gz")]

    refused = command(*rows)
    done = command(*rows, "--delimiter", ";", "--encoding", "latin-1", "--keep-columns", "text")

    assert (refused.returncode, 'input_options={"delimiter": ";"}' in refused.stderr) == (1, True)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert (json.loads(line)["id"], json.loads(line)["row"]) == ("7", {"text": "Größe"})


def test_a_window_that_has_closed(command):
    """Exit status 3, as for every batch that is to be continued."""
    done = command("--stop-at", "2020-01-01T06:00", "--timezone", "Europe/Berlin")

    assert done.returncode == 3
    assert "before this run began" in json.loads(done.stdout)["reason"]


@pytest.mark.ollama(models=[Model("emb", ("embedding",))])
def test_vectors(command, tmp_path):
    """To Parquet, unless it is said otherwise."""
    done = command("--embed", "--pack", "16", "--dimensions", "8", "--unload-after", model="emb")

    assert done.returncode == 0, done.stderr
    assert parquet.read_table(tmp_path / "out/results.parquet").schema.field("output").type.list_size == 8


def test_arguments_of_vectors_need_vectors(command):
    """They are refused by their names, and nothing is written."""
    done = command("--pack", "16", "--dimensions", "8")

    assert done.returncode == 1
    assert "dimensions, pack: they are for vectors, so they need --embed" in done.stderr


def test_a_wrong_argument_of_a_group_is_named(command):
    """As by the operator, which reads it in the same way."""
    done = command("--max-attempts", "0")

    assert done.returncode == 1
    assert "failures.max_attempts: 0 is not a whole number from 1 on" in done.stderr


def test_variables(command, ollama):
    """They are texts, whatever they look like; only the rendered prompt counts for what was answered before."""
    given = ("--prompt", "{{ version }} {{ row.text }}", "-o", "seed=1")

    assert command(*given, "--variable", "version=1.10", prompt=False).returncode == 0
    again = command(
        "--prompt", "{{ v.split('=')[1] }} {{ row.text }}", "-o", "seed=1", "--variable", "v=x=1.10", prompt=False
    )
    refused = command(*given, "--variable", "version", prompt=False)

    assert "1.10 text 7" in [(seen.json or {}).get("prompt") for seen in ollama.stand_in.requests]
    assert json.loads(again.stdout)["reused"] == 40
    assert (refused.returncode, "--variable: 'version' is no NAME=VALUE" in refused.stderr) == (1, True)


def test_chat_with_a_schema(command, tmp_path):
    """Turns and schema are files."""
    (tmp_path / "turns.json").write_text('[{"role": "user", "content": "{{ row.text }}"}]')
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"n": {"type": "integer"}}}')

    done = command(
        "--messages", str(tmp_path / "turns.json"), "--schema", str(tmp_path / "schema.json"), prompt=False
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])
    assert isinstance(first["output"], dict)


class TestCredentials:
    def sent(self, ollama):
        return [request.headers.get("authorization") for request in ollama.stand_in.requests]

    def test_a_password_comes_out_of_a_file(self, command, ollama, tmp_path):
        """Alone it is an API key; with a login it is a password."""
        (tmp_path / "key").write_text("hunter2\n")

        assert command("--password-file", str(tmp_path / "key")).returncode == 0
        bearer = self.sent(ollama)
        assert command("--login", "ada", "--password-file", str(tmp_path / "key"), "-o", "seed=1").returncode == 0
        basic = self.sent(ollama)[len(bearer) :]

        assert set(bearer) == {"Bearer hunter2"}
        assert set(basic) == {"Basic YWRhOmh1bnRlcjI="}

    def test_one_in_the_address_is_refused(self, command, ollama, monkeypatch):
        """In the argument, and in the variable that stands for it."""
        url = ollama.url.replace("http://", "http://ada:hunter2@")
        for refused in (command("--host", url), self.by_variable(command, monkeypatch, url)):
            assert refused.returncode == 1
            assert "--password-file" in refused.stderr
            assert "hunter2" not in refused.stderr + refused.stdout
        assert self.sent(ollama) == []

    def by_variable(self, command, monkeypatch, url):
        monkeypatch.setenv("OLLAMA_HOST", url)
        return command("--host", "")

    @pytest.mark.parametrize("content", [b"\n", b"\xffhunter2"])
    def test_a_file_without_a_password_is_refused(self, command, ollama, tmp_path, content):
        """An empty password would be sent as none."""
        (tmp_path / "key").write_bytes(content)

        refused = command("--password-file", str(tmp_path / "key"))

        assert (refused.returncode, "key holds no UTF-8 text" in refused.stderr) == (1, True)
        assert "hunter2" not in refused.stderr
        assert self.sent(ollama) == []


def test_the_command_starts_without_what_only_some_batches_need():
    """Airflow, the connections, Parquet and the checkers of schemas are loaded when they are used."""
    heavy = ("airflow", "aiohttp", "jsonschema", "pyarrow")
    code = f"import sys, ollama_provider.batch.__main__; print([m for m in {heavy} if m in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
