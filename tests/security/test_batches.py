"""Canaries through batches: what is in the directory, in the log, in temporary files and in the list of processes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.settings import Settings
from ollama_provider.batch import (
    BatchError,
    BatchSpec,
    FailurePolicy,
    Pace,
    RehearsalResult,
    rehearsal_as_text,
    rehearse_batch,
    run_batch,
)
from ollama_provider.testing import Answer, Gate, Stall
from tests.security.canaries import ANSWER, HEADER, LOGIN, PASSWORD, PROMPT, found_in, logged, told
from tests.security.hostile import FAULTS, hostile, once_it_is_trusted

#: Files of a batch that hold answers: docs/security.md says so. No other does.
WITH_ANSWERS = {"parts", "results.jsonl", "failed.jsonl", "report.html", "report.json"}
#: Those that hold rendered prompts, with ``report_prompts`` and never without.
WITH_PROMPTS = {"prompts.json", "report.html", "report.json"}
SCHEMA = {"type": "object", "properties": {"who": {"type": "integer"}}, "required": ["who"]}


def run(url: str, folder: Path, **spec) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"id": "a", "text": PROMPT}) + "\n")
    spec = {
        "rows": str(folder / "rows.jsonl"),
        "prompt": "Of {{ row.text }}",
        "id_column": "id",
        "failures": FailurePolicy(max_failed_ratio=1.0, max_attempts=2, retry_delay=0.0, max_outage=0.2),
        "pace": Pace(checkpoint_every=0.01),
    } | spec
    settings = Settings(
        base_url=url, login=LOGIN, password=PASSWORD, headers={"X-Api-Key": HEADER}, max_attempts=1, auto_pull=False
    )
    run_batch(BatchSpec(model="llama3.2", **spec), settings, folder / "out")


def left_in(folder: Path) -> dict[str, list[str]]:
    """Return which files of a directory hold which canaries, by the first part of their path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).parts[0]: found_in(path.read_bytes()) for path in files}
    return {name: canaries for name, canaries in found.items() if canaries}


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """An empty folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("answer", [ANSWER, json.dumps({"who": ANSWER}), json.dumps({ANSWER: 1})])
@pytest.mark.parametrize("schema", [None, SCHEMA, {"additionalProperties": {"type": "string"}}])
def test_answers_are_in_the_results_and_prompts_nowhere(ollama, tmp_path, temporary, debug_log, answer, schema):
    """Whether an answer fits or not: what is wrong with it is said without it."""
    ollama.stand_in.script(Answer(answer), where=lambda body: bool(body.get("prompt")), always=True)

    run(ollama.url, tmp_path, output_type=schema)

    left = left_in(tmp_path / "out")
    assert set(left) >= {"parts", "results.jsonl", "report.html"}
    assert set(left) <= WITH_ANSWERS
    assert {canary for canaries in left.values() for canary in canaries} == {"answer"}
    for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines():
        assert found_in(json.dumps(json.loads(line)["error"])) == []
    assert logged(debug_log.records) == set()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_with_report_prompts_they_are_in_the_report(ollama, tmp_path, temporary, debug_log, schema):
    """Of good rows and of failed ones, and nowhere else; the next run without it removes them."""
    ollama.stand_in.script(Answer(ANSWER), where=lambda body: bool(body.get("prompt")), always=True)

    run(ollama.url, tmp_path, output_type=schema, report_prompts=True)

    assert {name for name, found in left_in(tmp_path / "out").items() if "prompt" in found} == WITH_PROMPTS
    assert logged(debug_log.records) == set()
    run(ollama.url, tmp_path, output_type=schema)
    assert {name for name, found in left_in(tmp_path / "out").items() if "prompt" in found} == set()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_puts_them_anywhere_else(fault, tmp_path, temporary, debug_log):
    """A failed row has its reason, in which the server's words are quoted without ours."""
    raised = None
    with hostile(once_it_is_trusted(FAULTS[fault])) as server:
        try:
            run(server.url, tmp_path)
        except (OllamaError, BatchError) as error:
            raised = told(error)

    assert any("canary-prompt" in seen.whole for seen in server.seen)
    assert raised is None or found_in(raised) == []
    assert all(found == ["answer"] for found in left_in(tmp_path / "out").values())
    assert logged(debug_log.records) == set()
    assert list(temporary.iterdir()) == []


class TestCommand:
    def test_neither_processes_nor_open_files_have_them(self, ollama, tmp_path, temporary):
        """Anybody on the machine may list processes and their arguments, while the batch runs and when it is killed."""
        gate = Gate()
        ollama.stand_in.script((Stall(until=gate), Answer(ANSWER)), where=lambda body: bool(body.get("prompt")))
        (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "canary", "text": PROMPT}) + "\n")
        (tmp_path / "key").write_text(PASSWORD)
        files = ["--rows", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
        access = ["--host", ollama.url, "--login", LOGIN, "--password-file", str(tmp_path / "key")]
        command = [sys.executable, "-m", "ollama_provider.batch", "--model", "llama3.2", "--prompt", "{{ row.text }}"]
        with subprocess.Popen(
            [*command, *access, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            ollama.stand_in.wait_until(lambda server: any(PROMPT in str(seen.json) for seen in server.requests))
            seen = ""
            for process in (main := psutil.Process(running.pid), *main.children(recursive=True)):
                seen += f"{process.cmdline()} {process.environ()}"
                seen += "".join(Path(file.path).read_text() for file in process.open_files() if "key" not in file.path
                                and "rows.jsonl" not in file.path)  # fmt: skip
            seen += "".join(path.read_text() for path in temporary.rglob("*") if path.is_file())
            gate.open()
            out, errors = running.communicate(timeout=60)

        assert running.returncode == 0, errors
        assert found_in(seen + out + errors) == []
        left = left_in(tmp_path / "out")
        assert left == {name: ["answer"] for name in ("parts", "report.html", "report.json", "results.jsonl")}
        assert list(temporary.iterdir()) == []

    @pytest.mark.parametrize("fault", ["401 that quotes headers", "an error within the answer"])
    def test_nor_what_it_prints(self, fault, tmp_path):
        """On both of its outputs."""
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": PROMPT}) + "\n")
        (tmp_path / "key").write_text(PASSWORD)
        files = ["--rows", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
        command = [sys.executable, "-m", "ollama_provider.batch", "--model", "llama3.2", "--prompt", "{{ row.text }}"]
        with hostile(once_it_is_trusted(FAULTS[fault])) as server:
            access = ["--host", server.url, "--login", LOGIN, "--password-file", str(tmp_path / "key")]
            ran = subprocess.run([*command, *access, *files], capture_output=True, text=True, timeout=60, check=False)

        assert ran.returncode != 0
        assert found_in(ran.stdout + ran.stderr) == []


class TestRehearsal:
    """It shows a prompt and answers where somebody asks for that, and keeps only answers."""

    def rehearsed(self, url: str, folder: Path, **spec) -> RehearsalResult:
        (folder / "rows.jsonl").write_text(json.dumps({"id": "a", "text": PROMPT}) + "\n")
        settings = Settings(
            base_url=url, login=LOGIN, password=PASSWORD, headers={"X-Api-Key": HEADER}, max_attempts=1, auto_pull=False
        )
        batch = BatchSpec(model="llama3.2", rows=str(folder / "rows.jsonl"), prompt="Of {{ row.text }}", **spec)
        return rehearse_batch(batch, settings, folder / "out")

    @pytest.mark.parametrize("schema", [None, SCHEMA])
    def test_answers_are_kept_and_prompts_are_not(self, ollama, tmp_path, temporary, debug_log, schema):
        """As by a batch; in no log either."""
        ollama.stand_in.script(Answer(ANSWER), where=lambda body: bool(body.get("prompt")), always=True)

        found = self.rehearsed(ollama.url, tmp_path, output_type=schema)

        left = left_in(tmp_path / "out")
        assert set(left) <= {"parts", "rehearsal", "report.html", "report.json"}
        assert {canary for canaries in left.values() for canary in canaries} == {"answer"}
        assert logged(debug_log.records) == set()
        assert list(temporary.iterdir()) == []
        assert found_in(rehearsal_as_text(found, texts=False)) == []
        assert found_in(json.dumps(found.as_dict(prompt=False, answers=False))) == []
        assert "prompt" in found_in(rehearsal_as_text(found, texts=True))

    @pytest.mark.parametrize("fault", FAULTS)
    def test_no_fault_puts_them_anywhere_else(self, fault, tmp_path, temporary, debug_log):
        """The errors of rows are told in any case."""
        told_of = ""
        with hostile(once_it_is_trusted(FAULTS[fault])) as server:
            try:
                found = self.rehearsed(server.url, tmp_path, failures=FailurePolicy(retry_delay=0.0, max_outage=0.2))
                told_of = rehearsal_as_text(found, texts=False) + json.dumps(found.as_dict(prompt=False, answers=False))
            except (OllamaError, BatchError) as error:
                told_of = told(error)

        assert found_in(told_of) == []
        assert all(canaries == ["answer"] for canaries in left_in(tmp_path / "out").values())
        assert logged(debug_log.records) == set()
