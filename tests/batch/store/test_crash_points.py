"""Every point at which a crash can happen, one after the other.

A `Disk` dies at its k-th append, write, sync, rename, upload or removal, and does nothing from then on, as a process
does that is gone. For every k of a small batch, until k is past its end: what is in the directory then is enough for
the next run to give exactly the right result, and nothing that was written is asked again.
"""

import itertools
import json
import os
import shutil
from io import BytesIO, FileIO

import pytest
from pyarrow import parquet
from upath import UPath

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.store.locks import LeaseLock
from ollama_provider.batch.store.storage import Disk, local_path, open_storage
from ollama_provider.testing import Fail, Model

pytestmark = pytest.mark.ollama(models=["llama3.2", Model("emb", ("embedding",), embedding_length=8)])

ROWS = [{"id": f"r{number}", "text": f"text {number % 7}"} for number in range(12)]


class DiedError(OSError):
    """The process is gone."""


class DyingDisk(Disk):
    """Does the k-th thing half or wholly, and nothing afterwards.

    With *parts_only* it counts what is done to parts, and dies of nothing else.
    """

    def __init__(self, deadline: int, how: str, *, parts_only: bool = False) -> None:
        self.count = 0
        self._deadline = deadline
        self._how = how
        self._parts_only = parts_only

    def _live(self, action, *arguments, part, half=None):
        if self._parts_only and not part and self.count < self._deadline:
            action(*arguments)
            return
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
        self._live(
            super().write, file, data, part=False, half=lambda: (file.write(data[: len(data) // 2]), file.flush())
        )

    def append(self, file, data, place):
        half = data[: len(data) // 2]
        self._live(super().append, file, data, place, part=True, half=lambda: os.pwrite(file.fileno(), half, place))

    def cut(self, file, size):
        self._live(super().cut, file, size, part=True)

    def sync(self, file):
        self._live(super().sync, file, part=isinstance(file, FileIO))

    def rename(self, source, target):
        self._live(super().rename, source, target, part=target.parent.name == "parts")

    def upload(self, source, target):
        self._live(super().upload, source, target, part=target.parent.name == "parts")

    def create(self, target, data):
        self._live(super().create, target, data, part=False)
        return True

    def delete(self, target):
        self._live(super().delete, target, part=target.parent.name == "parts")


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


def generate(batch, directory, disk=None):
    return batch.run(ROWS, id_column="id", concurrency=3, directory=open_storage(directory, disk))


def packs(batch, directory, disk=None):
    """Vectors, several rows a request, into Parquet."""
    return batch.run(
        ROWS[2:6], id_column="id", model="emb", pack=2, concurrency=1, directory=open_storage(directory, disk)
    )


def shards(batch, directory, disk=None):
    """Two shards and the merge, one after the other. One request at a time, so that each part has as many answers."""
    for shard in ((0, 2), (1, 2)):
        batch.run(ROWS[2:6], id_column="id", concurrency=1, directory=open_storage(directory, disk), shard=shard)
    return batch.run(ROWS[2:6], id_column="id", directory=open_storage(directory, disk), mode="merge")


def results(directory):
    """What the results have of each row, in either format."""
    if (directory / "results.parquet").exists():
        table = parquet.read_table(BytesIO((directory / "results.parquet").read_bytes()))
        return [outcome(row) for row in table.to_pylist()]
    return [outcome(json.loads(line)) for line in (directory / "results.jsonl").read_bytes().splitlines()]


@pytest.fixture
def requested(batch):
    """The texts that were requested so far, as a function."""

    def texts():
        found = []
        for request in batch.server.stand_in.requests:
            if request.path == "/api/generate" and request.json.get("prompt"):
                found.append(request.json["prompt"])
            elif request.path == "/api/embed":
                found += request.json["input"]
        return found

    return texts


@pytest.fixture(autouse=True)
def small(monkeypatch, ollama):
    """Every few answers make a part, a lease is short, and one row fails."""
    monkeypatch.setattr("ollama_provider.batch.store.checkpoints._PART", 1000)
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    ollama.stand_in.script(
        Fail("no", 400),
        where=lambda body: body.get("prompt") == "text 4" or "text 4" in (body.get("input") or ()),
        always=True,
    )


class Crashes:
    """What every test of a crash compares with."""

    def __init__(self, batch, requested, run, reference):
        self.batch, self.requested, self.run = batch, requested, run
        run(batch, reference)
        self.wanted = results(reference)
        self.key_of = {
            row["text"]: result["key"]
            for row, result in zip(ROWS[2:6] if run is not generate else ROWS, self.wanted, strict=True)
        }

    def crash(self, directory, deadline, how):
        """Run until the crash; return whether there was one, and the texts that were requested."""
        before = len(self.requested())
        try:
            self.run(self.batch, directory, DyingDisk(deadline, how, parts_only=self.run is not generate))
        except (StorageError, DiedError):
            return True, self.requested()[before:]
        return False, self.requested()[before:]

    def check_next_run(self, directory, why):
        """The next run gives exactly the right results, and requests nothing that was kept; return what was kept."""
        kept = written(directory)
        complete = (directory / "summary.json").exists()
        before = len(self.requested())

        summary = self.run(self.batch, directory)

        assert summary.complete
        assert summary.rows == len(self.wanted)
        assert results(directory) == self.wanted, why
        again = {self.key_of[text] for text in self.requested()[before:]}
        # A complete pass leaves nothing to do but to request again what failed, and so does a new pass of a shard.
        allowed = {self.key_of["text 4"]} if complete or self.run is shards else set()
        assert not again & kept - allowed, why
        return kept


@pytest.mark.parametrize(
    ("run", "directories", "how"),
    [
        (generate, "local", "halfway"),
        (generate, "local", "after"),
        (generate, "object store", "halfway"),
        (generate, "object store", "after"),
        (packs, "local", "halfway"),
        (packs, "object store", "after"),
        (shards, "local", "halfway"),
        (shards, "object store", "after"),
    ],
    indirect=["directories"],
)
def test_whatever_the_moment_of_a_crash_the_next_run_is_right(batch, requested, directories, how, run):
    """Results in full and in order, written rows not asked again, a failed row included.

    Of packs and shards at every step with a part: the other files are those of any batch.
    """
    crashes = Crashes(batch, requested, run, next(directories))
    in_flight = 4 if run is packs else 3  # two packs, since the one with the bad text is sent again in halves

    for deadline in itertools.count(1):
        directory = next(directories)
        crashed, asked = crashes.crash(directory, deadline, how)
        if not crashed:
            break
        kept = crashes.check_next_run(directory, deadline)
        if local_path(directory) is not None:
            lost = {crashes.key_of[text] for text in asked} - kept
            assert len(lost) <= in_flight, deadline

    assert deadline > (15 if run is generate else 6)


@pytest.mark.parametrize(("run", "how"), [(generate, "halfway"), (packs, "after"), (shards, "halfway")])
def test_a_run_that_seals_what_another_left_open_may_crash_as_well(batch, requested, tmp_path, how, run):
    """At each of its first steps; and the third run is right."""
    crashes = Crashes(batch, requested, run, tmp_path / "reference")
    left = tmp_path / "left"
    for deadline in itertools.count(5):
        crashes.crash(left, deadline, "halfway")
        if any(b".open." in os.fsencode(part.name) and part.stat().st_size > 300 for part in left.glob("parts/*")):
            break
        shutil.rmtree(left)
    for part in left.glob("parts/*.open.jsonl"):  # as if it had been killed in the middle of a line
        part.write_bytes(part.read_bytes() + b'{"key":"01')
    kept = written(left)

    for deadline in range(1, 12):
        directory = tmp_path / f"out{deadline}"
        shutil.copytree(left, directory)
        crashes.crash(directory, deadline, how)
        assert crashes.check_next_run(directory, deadline) >= kept
