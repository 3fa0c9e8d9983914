"""A batch in shards, and the merge, over real HTTP against a stand-in."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from ollama_provider.api.schemas import Options
from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.errors import DirectoryBusyError, InputError, TooManyFailedError
from ollama_provider.batch.spec import Shard
from ollama_provider.batch.stop import StopSignal
from ollama_provider.batch.store.locks import LeaseLock
from ollama_provider.batch.store.shards import RunLock, shards
from ollama_provider.batch.store.storage import open_storage
from ollama_provider.testing import Fail, Gate, Pace, Stall


def texts(count):
    return [f"text {number}" for number in range(count)]


def run_shards(batch, rows, count=4, **spec):
    return [batch.run(rows, shard=(number, count), **spec) for number in range(count)]


def test_shards_and_merge_are_the_batch(batch, ollama):
    """Each row is asked once, by one of them; the merge asks nothing, and needs no server."""
    rows = [{"id": number, "text": f"text {number}"} for number in range(100)]
    summaries = run_shards(batch, rows, id_column="id")

    assert all(summary.complete for summary in summaries)
    assert [summary.ok for summary in summaries] == [summary.rows for summary in summaries]
    assert sorted(batch.asked) == sorted(texts(100))
    assert not (batch.directory / "results.jsonl").exists()
    ollama.stop()
    merged = batch.run(rows, id_column="id", mode="merge")

    assert merged.complete
    assert (merged.rows, merged.reused, merged.requests, merged.failed) == (100, 100, 0, 0)
    assert merged.provenance == summaries[0].provenance
    assert [row["id"] for row in batch.results] == list(range(100))
    assert all(f'beginning with "text {row["id"]}"' in row["output"] for row in batch.results)
    assert (batch.directory / "summary.json").exists()


def test_duplicates_belong_to_one_shard(batch):
    """Equal rows have one key, so they are asked once, whoever reads them."""
    rows = texts(10) * 5
    run_shards(batch, rows, 3)
    batch.run(rows, mode="merge")

    assert sorted(batch.asked) == sorted(texts(10))
    assert len(batch.results) == 50


def test_at_the_same_time(batch):
    """Four shards in one directory do not disturb each other."""
    summaries, rows = [], texts(200)
    threads = [
        threading.Thread(target=lambda number=number: summaries.append(batch.run(rows, shard=(number, 4))))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    merged = batch.run(rows, mode="merge")

    assert [summary.complete for summary in summaries] == [True] * 4
    assert sorted(batch.asked) == sorted(rows)
    assert merged.complete


def test_a_shard_that_was_stopped_goes_on(batch, ollama):
    """It asks what it had not, and nothing of the others."""
    ollama.stand_in.script(("answer", Pace(first_token=0.02)), where=lambda body: body.get("prompt"), always=True)
    stop = StopSignal()
    stop_after = lambda progress: progress.ok >= 1 and stop.set()  # noqa: E731
    rows = texts(60)
    for number in (0, 1):
        batch.run(rows, shard=(number, 3))
    stopped = batch.run(rows, shard=(2, 3), stop=stop, on_progress=stop_after, concurrency=1, report_every=0.01)
    summary = batch.run(rows, shard=(2, 3))

    assert not stopped.complete
    assert summary.complete
    assert summary.reused == stopped.ok > 0
    assert sorted(set(batch.asked)) == sorted(rows)


def test_rows_never_move_twice(batch):
    """What a whole batch or other shards have asked is not asked again when the number of shards changes."""
    rows = texts(50)
    batch.run(rows[:20])
    run_shards(batch, rows, 2)
    batch.run(rows, mode="merge")
    run_shards(batch, rows, 5)
    merged = batch.run(rows, mode="merge")

    assert sorted(batch.asked) == sorted(rows)
    assert merged.complete


def test_a_merge_before_the_last_shard_is_incomplete(batch):
    """It writes what there is, says so, and can be run again."""
    rows = texts(40)
    batch.run(rows, shard=(0, 2))

    early = batch.run(rows, mode="merge")

    assert not early.complete
    assert 0 < early.skipped < 40
    assert len(batch.results) == 40 - early.skipped
    assert not (batch.directory / "summary.json").exists()
    batch.run(rows, shard=(1, 2))
    assert batch.run(rows, mode="merge").complete
    assert len(batch.results) == 40


def test_failed_rows_are_asked_again_by_their_shard_and_listed_by_the_merge(batch, ollama):
    """A shard's retry repairs; the merge judges all of them and asks none."""
    ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") == "text 7", times=2)
    rows, strict = texts(20), FailurePolicy(retry_delay=0)
    first = run_shards(batch, rows, 2)

    assert sorted(summary.failed for summary in first) == [0, 1]
    with pytest.raises(TooManyFailedError, match="1 of 20 rows failed"):
        batch.run(rows, mode="merge", failures=strict)
    assert [row["index"] for row in batch.failed] == [7]
    assert len(batch.asked) == 20
    with pytest.raises(TooManyFailedError):
        run_shards(batch, rows, 2, failures=strict)
    run_shards(batch, rows, 2)
    assert batch.run(rows, mode="merge").failed == 0
    assert len(batch.asked) == 22


def test_shards_with_other_settings_are_refused(batch, ollama):
    """In one directory they would make a batch of two halves; the text names what differs."""
    batch.run(texts(10), shard=(0, 2))
    asked = len(batch.asked)

    with pytest.raises(InputError, match=r"other settings \(system\)"):
        batch.run(texts(10), shard=(1, 2), system="Be brief.")
    with pytest.raises(InputError, match="shards"):
        batch.run(texts(10), shard=(1, 3))
    with pytest.raises(InputError, match="options"):
        batch.run(texts(10), mode="merge", options=Options(seed=1))
    assert len(batch.asked) == asked
    assert batch.run(texts(10), shard=(1, 2)).complete


def test_after_the_merge_the_next_shards_may_be_others(batch):
    """The same directory, another night, another prompt."""
    run_shards(batch, texts(10), 2)
    batch.run(texts(10), mode="merge")

    assert batch.run(texts(10), shard=(0, 3), system="Be brief.").complete


def test_no_merge_and_no_whole_batch_while_a_shard_runs(batch, ollama):
    """Nor a shard that runs already; the error names the other process. Another shard may run."""
    gate = Gate()
    ollama.stand_in.script((Stall(until=gate), "late"), where=lambda body: body.get("prompt"), always=True)
    rows = texts(20)
    running = threading.Thread(target=lambda: batch.run(rows, shard=(0, 2)))
    running.start()
    ollama.stand_in.wait_until(lambda stand_in: any(seen.path == "/api/generate" for seen in stand_in.requests))

    for other in ({"mode": "merge"}, {}, {"shard": (0, 2)}):
        with pytest.raises(DirectoryBusyError, match="Another run is at work"):
            batch.run(rows, **other)
    gate.open()
    assert batch.run(rows, shard=(1, 2)).complete
    running.join()
    assert batch.run(rows, mode="merge").complete


def test_no_shard_while_a_whole_batch_runs(batch, ollama):
    """The lock works in both directions."""
    gate = Gate()
    ollama.stand_in.script((Stall(until=gate), "late"), where=lambda body: body.get("prompt"), always=True)
    running = threading.Thread(target=lambda: batch.run(texts(3)))
    running.start()
    ollama.stand_in.wait_until(lambda stand_in: any(seen.path == "/api/generate" for seen in stand_in.requests))

    with pytest.raises(DirectoryBusyError):
        batch.run(texts(3), shard=(0, 2))
    gate.open()
    running.join()


def test_leases_of_shards(tmp_path, monkeypatch):
    """In an object store, too: a merge sees a living shard, and takes over from a dead one."""
    monkeypatch.setattr(LeaseLock, "lease", 0.3)
    storage = open_storage(UPath(f"memory://{tmp_path.name}"))
    shard, whole = RunLock(storage, Shard(0, 2)), RunLock(storage, None)
    pauses = []

    def pause(_):
        pauses.append(0)
        shard._lock._write()

    shard.take(lambda _: None)
    with pytest.raises(DirectoryBusyError):
        whole.take(pause)
    assert pauses
    whole.release()
    whole.take(lambda _: None)
    with pytest.raises(DirectoryBusyError):
        RunLock(storage, Shard(1, 2)).take(lambda _: whole._lock._write())


def test_nothing_to_merge(batch):
    """A merge of nothing is a mistake, not an empty result."""
    with pytest.raises(InputError, match="nothing to merge"):
        batch.run(texts(3), mode="merge")


def test_there_is_no_shard_four_of_four():
    """They count from 0."""
    assert shards(3) == [[0, 3], [1, 3], [2, 3]]
    for wrong in ((4, 4), (-1, 4), (0, 0)):
        with pytest.raises(InputError, match="shard"):
            Shard(*wrong)


def test_keys_are_shared_out_evenly():
    """By the key's last bytes: the index uses the first."""
    owners = [sum(Shard(number, 4).owns(key.to_bytes(16)) for key in range(4000)) for number in range(4)]

    assert owners == [1000] * 4


@given(st.binary(min_size=16, max_size=16), st.integers(1, 10_000))
def test_every_row_belongs_to_one_shard(key, count):
    """Whatever its key, and into however many shards the batch is split."""
    owner = int.from_bytes(key[-4:]) % count
    others = {0, count - 1, count // 2, (owner + 1) % count} - {owner}

    assert Shard(owner, count).owns(key)
    assert not any(Shard(number, count).owns(key) for number in others)


@given(st.sets(st.binary(min_size=16, max_size=16), max_size=20), st.integers(1, 12))
def test_the_shards_together_have_all_rows_once(keys, count):
    """Counted over all shards."""
    owned = [key for number, of in shards(count) for key in keys if Shard(number, of).owns(key)]

    assert sorted(owned) == sorted(keys)
