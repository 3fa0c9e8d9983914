"""report.json: what a page elsewhere makes of it."""

import json
from dataclasses import replace

import pytest

from ollama_provider.batch import FailurePolicy
from ollama_provider.batch.report.gather import gather
from ollama_provider.batch.report.history import history_for
from ollama_provider.batch.report.page import report_values
from ollama_provider.batch.report.stored import stored_report
from ollama_provider.batch.store.storage import open_existing
from ollama_provider.testing import Respond


@pytest.fixture
def directory(batch, ollama):
    """Of a batch that has run: one of its rows has failed."""
    ollama.stand_in.script(Respond(400, {"error": "no"}), where=lambda body: "text 3" in body["prompt"], always=True)
    batch.run(
        [{"id": f"row {number}", "text": f"text {number}"} for number in range(6)],
        id_column="id",
        failures=FailurePolicy(max_failed_rows=1),
    )
    return batch.directory


def stored(directory):
    storage = open_existing(directory)
    try:
        return stored_report(storage)
    finally:
        storage.close()


def test_it_is_the_report(directory):
    """All of it, as values of the same types."""
    report = gather(open_existing(directory))

    assert replace(stored(directory), made=report.made) == report
    assert report_values(stored(directory)).keys() == report_values(report).keys()


def test_its_numbers_are_those_of_now(directory):
    """A run that is at work writes its report every half minute, and its progress every second."""
    storage = open_existing(directory)
    (directory / "summary.json").unlink()
    progress = json.loads((directory / "progress.json").read_bytes())
    (directory / "progress.json").write_text(json.dumps(progress | {"done": 7, "total": 9, "ok": 6, "eta": 12.5}))
    history = history_for(storage, "history.json", 1)
    history.begin(history.samples[-1].end + 10)
    history.save(storage, "history.json")

    report = stored(directory)

    assert (report.state, report.rows, report.ok, report.failed, report.left) == ("running", 9, 6, 1, 2)
    assert report.seconds_left == 12.5
    assert [event.what for event in report.events].count("began") == 2
    assert [row.id for reason in report.reasons for row in reason.rows] == ["row 3"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content + b" " * 4_000_000 + b"{}",
        lambda content: b'{"state": "complete"}',
        lambda content: content.replace(b'"samples": [', b'"samples": ["<script>", '),
        lambda content: b"[" * 100_000,
        lambda content: b"\xff\xfe\x00",
    ],
)
def test_what_is_none_is_left_out(directory, damage):
    """Whatever somebody may have made of the file, a page is told that there is none."""
    report = directory / "report.json"
    report.write_bytes(damage(report.read_bytes()))

    found = stored(directory)

    assert found is None or found.ok == 5


def test_a_directory_without_one(directory):
    """A run that was killed early, or one of an earlier version."""
    (directory / "report.json").unlink()

    assert stored(directory) is None
