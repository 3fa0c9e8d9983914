"""One run at a time in a directory: locks of a file system, leases of an object store."""

import fcntl
import json
import os
import threading

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from ollama_provider.batch.errors import DirectoryBusyError
from ollama_provider.batch.store.locks import LeaseLock, open_lock
from ollama_provider.batch.store.storage import Disk, open_storage
from ollama_provider.testing import Gate, Stall


def test_a_lock_is_held_by_one_run(root, monkeypatch):
    """A second one is refused, with the first one's process and host, until the lock is released."""
    monkeypatch.setattr(LeaseLock, "lease", 0.2)
    first, second = open_lock(open_storage(root)), open_lock(open_storage(root))
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


def test_the_lease_of_a_dead_run_is_taken_over(tmp_path, monkeypatch):
    """If the owner is alive after all, it stops when it renews the lease."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    root = UPath(f"memory://{tmp_path.name}/out")
    dead, alive = open_lock(open_storage(root)), open_lock(open_storage(root))
    dead.take()
    waited = []
    alive.take(waited.append)

    assert sum(waited) >= 0.05
    monkeypatch.setattr(dead, "_renewed", 0.0)
    with pytest.raises(DirectoryBusyError):
        dead.renew()
    dead.release()
    assert json.loads(open_storage(root).read("lock.json"))["token"] == alive._token


def test_of_two_runs_at_the_same_moment_one_wins(tmp_path, monkeypatch):
    """A run that finds the lease of another one in place of its own stops."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    root = UPath(f"memory://{tmp_path.name}/out")
    first, second = open_lock(open_storage(root)), open_lock(open_storage(root))

    with pytest.raises(DirectoryBusyError):
        first.take(lambda _: second._write())
    assert second._ours()


def test_a_run_keeps_its_lease_while_nothing_is_written(batch, tmp_path, ollama, monkeypatch):
    """A model that loads for long, or rare checkpoints, make no run look dead; one that lost its lease stops."""
    monkeypatch.setattr(LeaseLock, "lease", 0.3)
    monkeypatch.setattr("ollama_provider.batch.scheduling.background._RENEW_EVERY", 0.02)
    root = UPath(f"memory://{tmp_path.name}/out")
    slow = Gate()
    ollama.stand_in.script(Stall(until=slow), where=lambda body: not body.get("prompt"))
    second = open_lock(open_storage(root))

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


def test_a_probe_does_not_keep_others_out(tmp_path):
    """A lock that is held for a moment does not count as taken, and a released lock names no process."""
    storage = open_storage(tmp_path)
    before, lock = open_lock(storage), open_lock(storage)
    before.take()
    before.release()
    held = [os.open(tmp_path / ".lock", os.O_RDONLY)]
    fcntl.flock(held[0], fcntl.LOCK_SH)

    lock.take(lambda _: os.close(held.pop()) if held else None)

    waits = []
    with pytest.raises(DirectoryBusyError, match=f"process {os.getpid()} on "):
        open_lock(storage).probe(waits.append)
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


def test_the_store_creates_one_of_two_first_leases(tmp_path, monkeypatch):
    """However slow the upload of the other: the second object is not created."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)
    root = UPath(f"memory://{tmp_path.name}/out")
    quick = open_lock(open_storage(root))
    slow = open_lock(open_storage(root, SlowStore(lambda: quick.take(lambda _: None))))

    with pytest.raises(DirectoryBusyError, match=f"process {os.getpid()} on "):
        slow.take()
    assert quick._ours()


def test_a_store_without_conditional_writes_has_leases_too(tmp_path, monkeypatch):
    """An older library of the store refuses the argument, and there is still one lease at a time."""
    monkeypatch.setattr(LeaseLock, "lease", 0.05)

    def pipe_file(self, path, value):
        raise AssertionError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    root = UPath(f"memory://{tmp_path.name}/out")
    first, second = open_lock(open_storage(root)), open_lock(open_storage(root))
    first.take()

    assert first._ours()
    assert not open_storage(root).create_new("lock.json", b"{}")
    with pytest.raises(DirectoryBusyError):
        second.take(lambda _: first._write())


def test_a_lease_that_was_lost_to_a_slow_upload_is_noticed_soon(tmp_path, monkeypatch):
    """A run that took over a lease checks it again after a second, not only after ten."""
    monkeypatch.setattr(LeaseLock, "lease", 30.0)
    root = UPath(f"memory://{tmp_path.name}/out")
    dead, first, slow = (open_lock(open_storage(root)) for _ in range(3))
    dead.take(lambda _: None)
    first.take(lambda _: None)
    slow._write()
    first._renewed -= 1.1

    with pytest.raises(DirectoryBusyError):
        first.renew()
