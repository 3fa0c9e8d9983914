"""A batch in a directory of its own, against a stand-in."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ollama_provider.api.settings import Settings
from ollama_provider.batch import GROUPS, BatchSpec, FailurePolicy, Pace, Summary, run_batch
from ollama_provider.testing import Server

#: As forgiving as a batch can be, and quick to try again.
LENIENT = FailurePolicy(max_failed_ratio=1.0, retry_delay=0.0)
RARE_CHECKPOINTS = Pace(checkpoint_every=60.0)


def grouped(given: dict[str, Any]) -> dict[str, Any]:
    """Put the arguments of groups, which tests name side by side, into their groups: ``pack=3`` into ``embedding``."""
    given = dict(given)
    for name, kind in GROUPS.items():
        inside = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
        if inside:
            given[name] = replace(given.get(name) or kind(), **inside)
    return given


class Batch:
    """Runs batches in one directory and looks at what they left and asked."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.directory = directory

    @property
    def settings(self) -> Settings:
        return Settings(base_url=self.server.url, max_attempts=1)

    def run(self, rows: Any, *, directory: Any = None, **spec: Any) -> Summary:
        given = grouped({"model": "llama3.2", "failures": LENIENT, "pace": RARE_CHECKPOINTS} | spec)
        hooks = {name: given.pop(name) for name in ("on_progress", "stop", "listener") if name in given}
        summary = run_batch(BatchSpec(rows=rows, **given), self.settings, directory or self.directory, **hooks)
        # Of every run of every test: each row is counted once.
        assert summary.ok + summary.failed + (summary.left or 0) == summary.rows
        assert 0 <= summary.reused <= summary.ok
        return summary

    @property
    def asked(self) -> list[str]:
        """The prompts of all requests so far."""
        return [
            request.json["prompt"]
            for request in self.server.stand_in.requests
            if request.path == "/api/generate" and request.json.get("prompt")
        ]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().split("\n")[:-1]]

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.lines("results.jsonl")

    @property
    def failed(self) -> list[dict[str, Any]]:
        return self.lines("failed.jsonl")

    @property
    def parts(self) -> list[Path]:
        return sorted((self.directory / "parts").glob("*.jsonl"))

    def one_part(self) -> Path:
        """Return the only part. A run of more than a second has several: their lines are put together."""
        first, *others = self.parts
        with first.open("ab") as lines:
            for other in others:
                lines.write(other.read_bytes())
                other.unlink()
        return first


@pytest.fixture
def batch(ollama: Server, tmp_path: Path) -> Batch:
    return Batch(ollama, tmp_path / "out")
