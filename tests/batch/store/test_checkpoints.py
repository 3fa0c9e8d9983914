"""Checkpoints that are interrupted, or that cannot be made."""

import asyncio

import pytest

from ollama_provider.api.errors import UnreachableError
from ollama_provider.batch.errors import ModelChangedError, StorageError
from ollama_provider.batch.records import Outcome, Provenance
from ollama_provider.batch.store.checkpoints import Checkpoints
from ollama_provider.batch.store.disk import Disk
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.keys import Keys
from ollama_provider.batch.store.storage import open_storage

SERVER, DIGEST, ANOTHER = "http://gpu1:11434", "d" * 64, "e" * 64


class Directory:
    """Checkpoints in a directory, with one outcome since the last one."""

    def __init__(self, root, look_up, disk=None):
        self.storage = open_storage(root, disk)
        self.journal = Journal(self.storage, 1)
        self.checkpoints = Checkpoints(self.journal, look_up_digest=look_up, on_digest_change="stop")
        self.checkpoints.set_provenance(Provenance("m", DIGEST, SERVER, "0.24.0", "0", 1, 4096))
        self.add("a")

    def add(self, prompt):
        key = Keys(DIGEST, {}).key(prompt)
        number, _ = self.journal.find(key)
        self.checkpoints.add(number, Outcome(key.hex(), "ok", output="answer"), server=SERVER)

    def parts(self):
        return [name for name in self.storage.names("parts") if ".open." not in name]


async def test_a_comparison_that_the_end_of_the_run_interrupts_is_made_by_the_last_checkpoint(root):
    """Nothing is sealed without it: the model may have changed."""
    asked = asyncio.Event()

    async def look_up(server):
        assert server == SERVER
        if not asked.is_set():
            asked.set()
            await asyncio.Event().wait()
        return ANOTHER

    directory = Directory(root, look_up)
    periodic = asyncio.create_task(directory.checkpoints.make_periodically(0.01, lambda: None))
    await asked.wait()
    periodic.cancel()
    await asyncio.wait([periodic])

    with pytest.raises(ModelChangedError):
        await directory.checkpoints.close()
    assert directory.parts() == []


class Refuses(Disk):
    """A disk or a store that lets no part have its final name."""

    def rename(self, source, target):
        raise OSError(30, "Read-only file system")

    def upload(self, source, target):
        raise OSError(101, "Network is unreachable")


async def test_a_part_that_cannot_be_sealed_while_no_server_answers(root):
    """The network is gone, say. The error is that of the directory, at the last checkpoint as well."""
    answers = [DIGEST]

    async def look_up(server):
        if answers:
            return answers.pop()
        raise UnreachableError("gone", host=server)

    directory = Directory(root, look_up, Refuses())
    with pytest.raises(StorageError):
        await directory.checkpoints.make_periodically(0.01, lambda: None)
    directory.add("b")

    with pytest.raises(StorageError):
        await directory.checkpoints.close()
