"""Files that appear whole or not at all, and one run at a time."""

import errno
import fcntl
import json
import os
import threading
import time
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet
from upath import UPath

from ollama_provider.batch.errors import DirectoryBusyError, StorageError
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.spec import Limits
from ollama_provider.batch.stop import StopSignal
from ollama_provider.batch.store.locks import LeaseLock
from ollama_provider.batch.store.storage import Disk, local_path, open_storage, write
from ollama_provider.testing import Fail, Gate, Stall


@pytest.fixture(params=["local", "object store"])
def root(request, tmp_path):
    """A directory of either kind."""
    return tmp_path / "out" if request.param == "local" else UPath(f"memory://{tmp_path.name}/out")


def test_files(root):
    """Make, read, list, replace, remove."""
    storage = open_storage(root)

    assert storage.read("a.json") is None
    assert storage.names("parts") == []
    write(storage, "a.json", b"1")
    write(storage, "a.json", b"2")
    write(storage, "parts/2.jsonl", b"b")
    write(storage, "parts/1.jsonl", b"a")
    assert storage.read("a.json") == b"2"
    assert storage.names("parts") == ["parts/1.jsonl", "parts/2.jsonl"]
    assert storage.local("parts/1.jsonl").read_bytes() == b"a"
    assert open_storage(root).local("parts/1.jsonl").read_bytes() == b"a"
    storage.delete("a.json")
    storage.delete("a.json")
    assert storage.read("a.json") is None
    storage.close()


def test_a_file_appears_whole_or_not_at_all(root):
    """An exception in the middle leaves the old content, and nothing beside it."""
    storage = open_storage(root)
    write(storage, "a.json", b"old")

    def fail():
        with storage.create("a.json") as file:
            file.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert storage.read("a.json") == b"old"
    assert sorted(path.name for path in root.iterdir() if path.name != "parts") == ["a.json"]


def test_urls_and_paths(tmp_path):
    """What lies on this machine is used as such, whatever it is wrapped in."""
    for location in (tmp_path, str(tmp_path), f"file://{tmp_path}", UPath(f"file://{tmp_path}"), UPath(tmp_path)):
        assert local_path(location) == tmp_path
    assert local_path("file:///with%20blank") == type(tmp_path)("/with blank")
    assert local_path("s3://bucket/x") is None
    assert open_storage("memory://bucket/x").location == "memory://bucket/x"


def test_airflows_object_storage_path(tmp_path):
    """Airflow's ObjectStoragePath is such an object: local under file://, else through its own methods."""
    # Here, because loading Airflow takes seconds.
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    # Beside the class, wherever this Airflow has it.
    store = import_module(ObjectStoragePath.__module__.replace(".path", ".store"))
    store.attach("memory", fs=MemoryFileSystem())
    storage = open_storage(ObjectStoragePath(f"file://{tmp_path}/out"))
    write(storage, "a.json", b"1")
    assert (tmp_path / "out" / "a.json").read_bytes() == b"1"
    storage = open_storage(ObjectStoragePath(f"memory://{tmp_path.name}/airflow"))
    write(storage, "parts/a.jsonl", b"1")
    assert storage.names("parts") == ["parts/a.jsonl"]
    assert open_storage(ObjectStoragePath(f"memory://{tmp_path.name}/airflow")).read("parts/a.jsonl") == b"1"


def test_rows_on_airflows_object_storage_path(tmp_path):
    """What it opens is read as any file, also on Airflow 2, where it cannot be iterated."""
    # Here, because loading Airflow takes seconds.
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    store = import_module(ObjectStoragePath.__module__.replace(".path", ".store"))
    store.attach("memory", fs=MemoryFileSystem())
    folder = ObjectStoragePath(f"memory://{tmp_path.name}/rows")
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(b'{"a":"1"}\n{"a":"2"}\n')
    (folder / "b.csv").write_bytes(b"a\n3\n")
    parquet.write_table(pa.table({"a": ["4"]}), tmp_path / "c.parquet")
    (folder / "c.parquet").write_bytes((tmp_path / "c.parquet").read_bytes())

    assert [row.columns["a"] for row in read_rows(folder / "*")] == ["1", "2", "3", "4"]


def test_a_lock_is_held_by_one(root, monkeypatch):
    """A second one is refused with the first one's process and host, until it is given back."""
    monkeypatch.setattr(LeaseLock, "lease", 0.2)
    first, second = open_storage(root).lock(), open_storage(root).lock()
    first.take()
    alive = threading.Event()

    def renew():
        while not alive.wait(0.01):
            first.renew()

    helper = threading.Thread(target=renew)
    helper.start()
    with pytest.raises(DirectoryBusyError, match=f"process {os.getpid()} on "):
        second.take()
    alive.set()
    helper.join()
    second.release()
    first.release()

    second.take()
    second.release()


def test_a_lease_whose_owner_died_is_taken_over(tmp_path, monkeypatch):
    """And the owner, should it live after all, stops when it finds out."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    root = UPath(f"memory://{tmp_path.name}/out")
    dead, alive = open_storage(root).lock(), open_storage(root).lock()
    dead.take()
    waited = []
    alive.take(waited.append)

    assert sum(waited) >= 0.05
    monkeypatch.setattr(dead, "_renewed", 0.0)
    with pytest.raises(DirectoryBusyError):
        dead.renew()
    dead.release()
    assert json.loads(open_storage(root).read("lock.json"))["token"] == alive._token


def test_of_two_that_come_at_the_same_moment_one_wins(tmp_path, monkeypatch):
    """Who finds another one's note where its own should be, leaves."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    root = UPath(f"memory://{tmp_path.name}/out")
    first, second = open_storage(root).lock(), open_storage(root).lock()

    with pytest.raises(DirectoryBusyError):
        first.take(lambda _: second._write())
    assert second._ours()


def test_a_run_keeps_its_lease_while_nothing_is_sealed(batch, tmp_path, ollama, monkeypatch):
    """A model that loads for long, or rare checkpoints, make no run look dead; one that lost its lease stops."""
    monkeypatch.setattr(LeaseLock, "lease", 0.3)
    monkeypatch.setattr("ollama_provider.batch.run._TICK", 0.02)
    root = UPath(f"memory://{tmp_path.name}/out")
    slow = Gate()
    ollama.stand_in.script(Stall(until=slow), where=lambda body: not body.get("prompt"))
    second = open_storage(root).lock()

    def try_to_enter():
        ollama.stand_in.wait_until(lambda stand_in: len(stand_in.open_requests) == 1)
        with pytest.raises(DirectoryBusyError):
            second.take()
        second._write()  # as if the first had been thought dead

    helper = threading.Thread(target=try_to_enter)
    helper.start()
    with pytest.raises(DirectoryBusyError):
        batch.run(["a"], directory=root)
    helper.join()
    slow.open()
    assert batch.asked == []


def test_who_only_looks_does_not_keep_others_out(tmp_path):
    """A lock that is held for a moment is no run at work; and the note of a run before names nobody."""
    storage = open_storage(tmp_path)
    before, lock = storage.lock(), storage.lock()
    before.take()
    before.release()
    held = [os.open(tmp_path / ".lock", os.O_RDONLY)]
    fcntl.flock(held[0], fcntl.LOCK_SH)

    lock.take(lambda _: os.close(held.pop()) if held else None)

    waits = []
    with pytest.raises(DirectoryBusyError, match=f"process {os.getpid()} on "):
        storage.lock().probe(waits.append)
    assert waits
    lock.release()
    assert (tmp_path / ".lock").read_bytes() == b""


class SlowStore(Disk):
    """An object store whose uploads take their time; while one is under way, something else happens."""

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile

    def create(self, target, data):
        self.meanwhile()
        return super().create(target, data)

    def upload(self, source, target):
        self.meanwhile()
        super().upload(source, target)


def test_of_two_first_leases_the_store_takes_one(tmp_path, monkeypatch):
    """However slow the upload of the other: the second object is not created."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    root = UPath(f"memory://{tmp_path.name}/out")
    quick = open_storage(root).lock()
    slow = open_storage(root, SlowStore(lambda: quick.take(lambda _: None))).lock()

    with pytest.raises(DirectoryBusyError, match=f"process {os.getpid()} on "):
        slow.take()
    assert quick._ours()


def test_a_store_that_cannot_create_an_object_alone_is_written_all_the_same(tmp_path, monkeypatch):
    """An older library of the store refuses the word, and there is still one lease at a time."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)

    def pipe_file(self, path, value):
        raise AssertionError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    root = UPath(f"memory://{tmp_path.name}/out")
    first, second = open_storage(root).lock(), open_storage(root).lock()
    first.take()

    assert first._ours()
    assert not open_storage(root).create_new("lock.json", b"{}")
    with pytest.raises(DirectoryBusyError):
        second.take(lambda _: first._write())


def test_a_lease_that_was_lost_to_a_slow_upload_is_noticed_soon(tmp_path, monkeypatch):
    """Who took a dead run's lease looks again after a second, not only after ten."""
    monkeypatch.setattr(LeaseLock, "lease", 30.0)
    root = UPath(f"memory://{tmp_path.name}/out")
    dead, first, slow = (open_storage(root).lock() for _ in range(3))
    dead.take(lambda _: None)
    first.take(lambda _: None)
    slow._write()
    first._renewed -= 1.1

    with pytest.raises(DirectoryBusyError):
        first.renew()


@pytest.mark.parametrize("shard", [None, (0, 2)])
def test_what_killed_writes_left_behind_is_removed(batch, tmp_path, shard):
    """By the next run, and not what another shard is writing at this moment."""
    out = batch.directory
    for folder in ("parts", "shards", "rows", "written"):
        (out / folder).mkdir(parents=True)
    mine = [out / "parts" / ".0001-0001-000001-0123abcd.0of2.jsonl.tmp", out / "shards" / ".0of2.batch.json.tmp"]
    others = [
        out / ".results.jsonl.tmp",
        out / "parts" / ".0001-0001-000009.jsonl.tmp",
        out / "parts" / ".0001-0001-000001-0123abcd.1of2.jsonl.tmp",
        out / "rows" / ".0123456789abcdef.jsonl.tmp",
        out / "written" / ".00000001-0123abcd.tmp",
    ]
    for path in (*mine, *others):
        path.write_bytes(b"half")

    batch.run(["a", "b"], shard=shard)

    assert [path for path in mine if path.exists()] == []
    assert [path for path in others if path.exists()] == ([] if shard is None else others)


def test_what_a_killed_run_kept_of_an_object_store_is_removed(tmp_path, monkeypatch):
    """Also from this machine, and not what a living one keeps."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = UPath(f"memory://{tmp_path.name}/out")
    killed, alive = open_storage(root), open_storage(root)
    os.close(killed._alive)  # as the kernel does it
    (tmp_path / "ollama-batch-of-somebody-else").mkdir()

    open_storage(root).remove_unfinished()

    assert not Path(killed._kept.name).exists()
    assert Path(alive._kept.name).exists()
    assert (tmp_path / "ollama-batch-of-somebody-else").exists()


GOOD = {"format": 2, "round": 1, "mode": "all", "num_ctx": None, "settings": {}, "common": None, "provenance": None}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        *(
            json.dumps(GOOD | wrong).encode()
            for wrong in (
                {"format": "2"},
                {"format": None},
                {"round": "1"},
                {"round": 0},
                {"round": 1.5},
                {"round": [1]},
                {"mode": "some"},
                {"mode": ["all"]},
                {"num_ctx": "4096"},
                {"num_ctx": True},
                {"settings": [1]},
                {"common": "x"},
                {"provenance": {"model": 1}},
                {"provenance": []},
            )
        ),
    ],
)
@pytest.mark.parametrize("mode", ["all", "merge"])
def test_a_damaged_note_is_refused_in_words(batch, content, mode):
    """It says which file and what is wrong, and what to do."""
    batch.run(["a"])
    (batch.directory / "batch.json").write_bytes(content)

    with pytest.raises(StorageError, match=r"batch.json is damaged \(.+\)\. The parts beside it are good: remove it"):
        batch.run(["a"], mode=mode)
    (batch.directory / "batch.json").unlink()
    assert batch.run(["a"]).complete
    assert len(batch.asked) == 1


def test_a_directory_of_a_later_version_is_refused(batch):
    """Whatever else its note says."""
    batch.run(["a"])
    (batch.directory / "batch.json").write_text('{"format": 99, "round": "of another kind"}')

    with pytest.raises(StorageError, match="later version"):
        batch.run(["a"])


class FullDisk(Disk):
    """Takes so many bytes and no more."""

    def __init__(self, room):
        self.room = room

    def write(self, file, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(file, data)


def test_no_space_left_stops_the_batch_at_once(batch, root):
    """With the system's words; what was sealed is kept, and enough for the next run."""
    rows = [f"text {number}" for number in range(400)]
    with pytest.raises(StorageError, match="No space left on device") as raised:
        batch.run(
            rows, directory=open_storage(root, FullDisk(40_000)), checkpoint_every=0.02, requests_per_minute=60_000
        )

    assert raised.value.retryable
    asked = len(batch.asked)
    assert asked < 400
    batch.directory = root
    summary = batch.run(rows)
    assert summary.complete
    assert 0 < summary.reused <= asked


class SlowDisk(Disk):
    """Takes its time to show a report of the progress."""

    def rename(self, source, target):
        if target.name == "progress.json":
            time.sleep(0.05)
        super().rename(source, target)


def test_the_last_report_is_that_of_the_end(batch, ollama, tmp_path):
    """A report that is under way when the run is stopped does not get in its way, nor come after it."""
    ollama.stand_in.script(Stall(), where=lambda body: body.get("prompt"), always=True)
    stop = StopSignal()
    disk = open_storage(tmp_path / "out", SlowDisk())

    summary = batch.run(
        ["text"] * 3, directory=disk, report_every=0.01, concurrency=1, stop=stop, on_progress=lambda _: stop.set()
    )

    assert not summary.complete
    assert json.loads(disk.read("progress.json"))["state"] == "incomplete"
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_batch_in_an_object_store(batch, tmp_path, ollama):
    """The same files, the same resume, results and lock; nothing is left on this machine."""
    root = UPath(f"memory://{tmp_path.name}/out")
    ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") == "text 3")

    batch.run([f"text {number}" for number in range(10)], directory=root)
    summary = batch.run([f"text {number}" for number in range(12)], directory=root, limits=Limits())

    assert (summary.ok, summary.reused) == (12, 9)
    names = sorted(path.name for path in root.iterdir() if path.name != "parts")
    assert names == ["batch.json", "failed.jsonl", "progress.json", "results.jsonl", "summary.json"]
    results = [json.loads(line) for line in (root / "results.jsonl").read_bytes().splitlines()]
    assert [row["index"] for row in results] == list(range(12))
