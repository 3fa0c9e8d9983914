"""Directories, local and in an object store: a file appears whole or not at all."""

import errno
import json
import os
import time
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet
from upath import UPath

from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.stop import StopSignal
from ollama_provider.batch.store.storage import Disk, local_path, open_existing, open_storage, write
from ollama_provider.testing import Fail, Stall


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


def test_any_piece_of_a_file(root):
    """Is read without the rest of it."""
    storage = open_storage(root)
    write(storage, "a", bytes(range(256)) * 4000)

    with storage.open("a") as file:
        assert file.seek(0, 2) == 1_024_000
        file.seek(512_000)
        assert file.read(3) == b"\0\1\2"
        assert file.readline() == bytes(range(3, 11))
    assert storage.open("b") is None


def test_a_directory_that_is_only_read(root):
    """Is left as it is."""
    write(open_storage(root), "a", b"1")
    storage = open_existing(root)

    assert storage.read("a") == b"1"
    assert storage.names("parts") == []
    storage.close()


def test_a_local_directory_that_is_to_be_read_is_not_made(tmp_path):
    """One in an object store is there as soon as it has a file."""
    with pytest.raises(StorageError, match="absent cannot be read: No such file"):
        open_existing(tmp_path / "absent")

    assert not (tmp_path / "absent").exists()


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


def test_no_client_of_a_store_is_made_to_learn_that_a_path_is_not_local():
    """On Airflow 3.1 a path of a store is a `Path` as well, and its ``fs`` fails where the store's provider is not."""

    class InStore(type(Path())):
        protocol = "gs"

        @property
        def fs(self):
            raise ValueError("No filesystem registered for scheme gs")

    assert local_path(InStore("bucket/a.jsonl")) is None
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
    os.close(killed._cache_lock)  # as the kernel does it
    (tmp_path / "ollama-batch-of-somebody-else").mkdir()

    open_storage(root).remove_unfinished()

    assert not Path(killed._cache.name).exists()
    assert Path(alive._cache.name).exists()
    assert (tmp_path / "ollama-batch-of-somebody-else").exists()


class FullDisk(Disk):
    """Takes so many bytes and no more."""

    def __init__(self, room):
        self.room = room

    def write(self, file, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(file, data)

    def append(self, file, data, place):
        fitting = max(0, min(self.room, len(data)))
        self.room -= len(data)
        super().append(file, data[:fitting], place)  # as the kernel does it: what fits is written
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_left_stops_the_batch_at_once(batch, root):
    """The error has the system's text; what was written is kept, and is enough for the next run."""
    rows = [f"text {number}" for number in range(400)]
    local = local_path(root) is not None
    with pytest.raises(StorageError, match="No space left on device") as raised:
        batch.run(rows, directory=open_storage(root, FullDisk(40_000)), checkpoint_every=0.02, concurrency=1)

    assert raised.value.retryable
    asked = len(batch.asked)
    assert asked < 400
    batch.directory = root
    summary = batch.run(rows, concurrency=1)
    assert summary.complete
    assert 0 < summary.reused <= asked
    if local:  # what was in flight when the disk was full
        assert summary.requests <= 400 - asked + 1


class SlowDisk(Disk):
    """Takes its time to show a report of the progress."""

    def rename(self, source, target):
        if target.name == "progress.json":
            time.sleep(0.05)
        super().rename(source, target)


def test_the_last_report_is_that_of_the_end(batch, ollama, tmp_path):
    """A report that is being written when the run stops neither blocks the end nor replaces the last report."""
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
    summary = batch.run([f"text {number}" for number in range(12)], directory=root, failures=FailurePolicy())

    assert (summary.ok, summary.reused) == (12, 9)
    names = sorted(path.name for path in root.iterdir() if path.name != "parts")
    assert names == [
        *("batch.json", "failed.jsonl", "history.json", "progress.json", "report.html", "report.json"),
        *("results.jsonl", "summary.json"),
    ]
    results = [json.loads(line) for line in (root / "results.jsonl").read_bytes().splitlines()]
    assert [row["index"] for row in results] == list(range(12))


@pytest.fixture
def growing(tmp_path):
    """A file that grows in a local directory, on a disk with room for ten bytes."""
    return open_storage(tmp_path, FullDisk(10)).append_to("parts/a.open", "parts/a")


def test_an_append_that_does_not_fit_harms_nothing_that_follows(growing, tmp_path):
    """What was written of it is written over, by the whole of it, as soon as there is room."""
    growing.append(b"first\n")
    for data in (b"second\n", b"3\n"):
        with pytest.raises(StorageError, match="No space left"):
            growing.append(data)
    assert (tmp_path / "parts" / "a.open").read_bytes() == b"first\nseco"
    assert growing.size == 6

    growing._disk.room = 100
    growing.append(b"fourth\n")
    growing.seal()

    assert (tmp_path / "parts" / "a").read_bytes() == b"first\nsecond\n3\nfourth\n"
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a"]


def test_what_did_not_fit_is_tried_again_when_the_file_is_sealed(growing, tmp_path):
    """And if there is still no room, the file stays open, with all that did fit."""
    growing.append(b"first\n")
    with pytest.raises(StorageError):
        growing.append(b"second\n")
    with pytest.raises(StorageError):
        growing.seal()
    assert (tmp_path / "parts" / "a.open").read_bytes().startswith(b"first\n")
    growing._disk.room = 100
    growing.seal()

    assert (tmp_path / "parts" / "a").read_bytes() == b"first\nsecond\n"


class LyingDisk(Disk):
    """Loses data and says so once, as the kernel does."""

    told = False

    def sync(self, file):
        if not self.told:
            self.told = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_data_that_could_not_be_forced_to_the_disk_is_never_taken_for_safe(tmp_path):
    """The second attempt would succeed without it: the part stays open."""
    growing = open_storage(tmp_path, LyingDisk()).append_to("parts/a.open", "parts/a")
    growing.append(b"first\n")

    for _ in range(2):
        with pytest.raises(StorageError, match="Input/output error"):
            growing.seal()

    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a.open"]


def test_a_network_disk_that_is_full_says_so_when_the_file_is_closed(tmp_path, monkeypatch):
    """Then it is not sealed either."""
    growing = open_storage(tmp_path).append_to("parts/a.open", "parts/a")
    growing.append(b"first\n")

    class File:
        """NFS writes at the close."""

        closed = False

        def __getattr__(self, name):
            return getattr(real, name)

        def close(self):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    real = growing._file
    monkeypatch.setattr(growing, "_file", File())

    for _ in range(2):
        with pytest.raises(StorageError, match="Disk quota exceeded"):
            growing.seal()
    real.close()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a.open"]


def test_a_directory_that_becomes_read_only_stops_the_batch_at_once(batch, ollama, tmp_path):
    """At the first answer that cannot be kept, and no row is said to have failed."""

    class ReadOnly(Disk):
        def append(self, file, data, place):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(StorageError, match="Read-only file system"):
        batch.run(["a", "b", "c"], directory=open_storage(tmp_path / "out", ReadOnly()), concurrency=1)

    assert len(batch.asked) == 1
