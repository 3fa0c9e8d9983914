"""Every point at which a crash can happen, one after the other.

A `Disk` dies at its k-th write, sync, rename, upload or removal, and does nothing from then on, as a process does that
is gone. For every k of a small batch, until k is past its end: what is in the directory then is enough for the next run
to give exactly the right result, and nothing that was written is asked again.
"""

import itertools
import json

import pytest
from upath import UPath

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.store.locks import LeaseLock
from ollama_provider.batch.store.storage import Disk, open_storage
from ollama_provider.testing import Fail

ROWS = [{"id": f"r{number}", "text": f"text {number % 7}"} for number in range(12)]


class DiedError(OSError):
    """The process is gone."""


class DyingDisk(Disk):
    """Does the k-th thing half or wholly, and nothing afterwards."""

    def __init__(self, deadline: int, how: str) -> None:
        self.count = 0
        self._deadline = deadline
        self._how = how

    def _live(self, action, *arguments, half=None):
        self.count += 1
        if self.count > self._deadline:
            raise DiedError
        if self.count < self._deadline:
            action(*arguments)
            return
        if self._how == "after":
            action(*arguments)
        elif self._how == "halfway" and half is not None:
            half()
        raise DiedError

    def write(self, file, data):
        self._live(super().write, file, data, half=lambda: (file.write(data[: len(data) // 2]), file.flush()))

    def sync(self, file):
        self._live(super().sync, file)

    def rename(self, source, target):
        self._live(super().rename, source, target)

    def upload(self, source, target):
        self._live(super().upload, source, target)

    def create(self, target, data):
        self._live(super().create, target, data)
        return True

    def delete(self, target):
        self._live(super().delete, target)


def outcome(row):
    return {name: row[name] for name in ("key", "index", "id", "status", "output")}


def written(directory):
    """The keys in all parts of a directory, as far as lines are whole."""
    return {
        json.loads(line)["key"]
        for part in directory.glob("parts/*.jsonl")
        for line in part.read_bytes().split(b"\n")[:-1]
    }


@pytest.fixture
def directories(request, tmp_path):
    """Fresh directories, local or in an object store."""
    if request.param == "local":
        return (tmp_path / f"out{number}" for number in itertools.count())
    return (UPath(f"memory://{tmp_path.name}/out{number}") for number in itertools.count())


@pytest.mark.parametrize("directories", ["local", "object store"], indirect=True)
@pytest.mark.parametrize("how", ["halfway", "after"])
def test_whatever_the_moment_of_a_crash_the_next_run_is_right(batch, ollama, directories, how, monkeypatch):
    """Results in full and in order, written rows not asked again, a failed row included."""
    # So small that every few answers make a part.
    monkeypatch.setattr("ollama_provider.batch.store.checkpoints._PART", 1000)
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") == "text 4", always=True)

    def run(storage):
        return batch.run(ROWS, id_column="id", concurrency=3, directory=storage)

    reference = next(directories)
    run(reference)
    wanted = [outcome(json.loads(line)) for line in (reference / "results.jsonl").read_bytes().splitlines()]
    key_of = {row["text"]: result["key"] for row, result in zip(ROWS, wanted, strict=True)}

    for deadline in itertools.count(1):
        directory = next(directories)
        disk = DyingDisk(deadline, how)
        try:
            run(open_storage(directory, disk))
        except (StorageError, DiedError):
            pass
        else:
            break
        kept = written(directory)
        if (directory / "summary.json").exists():
            assert len((directory / "results.jsonl").read_bytes().splitlines()) == len(ROWS)
            kept.discard(key_of["text 4"])  # the pass is complete, so what failed is asked again
        before = len(batch.asked)

        summary = run(directory)

        assert summary.complete
        assert (summary.rows, summary.failed) == (12, 2)
        results = [outcome(json.loads(line)) for line in (directory / "results.jsonl").read_bytes().splitlines()]
        assert results == wanted, deadline
        again = {key_of[prompt] for prompt in batch.asked[before:]}
        assert not again & kept, deadline

    assert deadline > 15
