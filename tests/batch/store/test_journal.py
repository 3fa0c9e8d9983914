"""The journal's three promises, each under its own name, and what keeps them."""

import errno
import gc
import json
import os
import tracemalloc

import pytest
from upath import UPath

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.disk import Disk
from ollama_provider.batch.store.journal import Journal, PartReader, State, list_parts
from ollama_provider.batch.store.keys import Keys
from ollama_provider.batch.store.lines import outcome_line, shared_fields
from ollama_provider.batch.store.storage import open_storage

SHARED = shared_fields({"model": "m"})
REQUEST = {"task": "generate", "options": {"seed": 1}, "system": None, "think": False}


def add(journal: Journal, keys: Keys, prompt: str, status: str = "ok") -> int:
    key = keys.key(prompt)
    number, _ = journal.find(key)
    journal.add(number, Outcome(key.hex(), status, output=f"answer to {prompt}"), SHARED)
    return number


def write_part(journal: Journal) -> None:
    assert journal.end_part()
    journal.seal_parts()


@pytest.fixture
def storage(tmp_path):
    return open_storage(tmp_path)


@pytest.fixture
def keys():
    return Keys("digest", REQUEST)


class TestWhatIsWrittenStays:
    """Second promise."""

    def test_a_good_result_is_found_again(self, storage, keys):
        """Another process finds what was written, in whatever pass it is."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        write_part(journal)

        for pass_number in (1, 2):
            assert Journal(storage, pass_number).find(keys.key("a"))[1] is State.OK

    def test_a_failure_counts_until_its_pass_is_complete(self, storage, keys):
        """A resume does not ask again what failed; the next run does."""
        journal = Journal(storage, 1)
        add(journal, keys, "a", "failed")
        write_part(journal)

        assert Journal(storage, 1).find(keys.key("a"))[1] is State.FAILED
        assert Journal(storage, 2).find(keys.key("a"))[1] is State.FAILED_BEFORE

    def test_a_later_success_wins_over_a_failure(self, storage, keys):
        """What was repaired is good from then on, in whichever order the parts are read."""
        journal = Journal(storage, 1)
        add(journal, keys, "a", "failed")
        write_part(journal)
        repair = Journal(storage, 2)
        add(repair, keys, "a")
        write_part(repair)

        assert Journal(storage, 3).find(keys.key("a"))[1] is State.OK

    def test_no_part_is_written_twice(self, storage, keys, tmp_path):
        """Each run within a pass, and each pass, has names of its own."""
        for pass_number in (1, 1, 2):
            journal = Journal(storage, pass_number)
            for prompt in "ab":
                add(journal, keys, prompt)
                write_part(journal)

        names = [part.name for part in sorted((tmp_path / "parts").iterdir())]
        assert [name[:16] for name in names] == [
            "0001-0001-000001",
            "0001-0001-000002",
            "0001-0002-000001",
            "0001-0002-000002",
            "0002-0001-000001",
            "0002-0001-000002",
        ]
        assert len({name[16:] for name in names}) == 3

    def test_two_runs_that_both_hold_the_directory_overwrite_nothing(self, storage, keys, tmp_path):
        """A lease that two runs believe to be theirs costs double work, and no part."""
        first, second = Journal(storage, 1), Journal(storage, 1)
        add(first, keys, "a")
        add(second, keys, "b")
        write_part(first)
        write_part(second)

        assert len(list((tmp_path / "parts").iterdir())) == 2
        again = Journal(storage, 1)
        assert [again.find(keys.key(prompt))[1] for prompt in "ab"] == [State.OK, State.OK]

    def test_a_refused_outcome_is_asked_again_in_the_next_pass_and_no_later_one(self, storage, keys):
        """An answer that the results cannot hold was good once; a newer good one takes its place again."""
        journal = Journal(storage, 1)
        number = add(journal, keys, "a")
        write_part(journal)
        failed = outcome_line(Outcome(keys.key("a").hex(), "failed", error={"class": "X", "text": "y"}), SHARED)
        journal.mark_refused(number, journal.without_checksum(0, failed))
        write_part(journal)

        assert Journal(storage, 1).find(keys.key("a"))[1] is State.FAILED
        again = Journal(storage, 2)
        assert again.find(keys.key("a"))[1] is State.FAILED_BEFORE
        add(again, keys, "a")
        write_part(again)
        assert Journal(storage, 2).find(keys.key("a"))[1] is State.OK

    def test_the_place_of_an_outcome_is_where_its_line_is(self, storage, keys):
        """The index leads to the very line, also after a restart."""
        journal = Journal(storage, 1)
        prompts = ["a", "b", "ü\u2028" * 50, "d"]
        for prompt in prompts:
            add(journal, keys, prompt)
            if prompt == "b":
                write_part(journal)
        write_part(journal)

        for found in (journal, Journal(storage, 1)):
            for prompt in prompts:
                part, offset = found.place(found.find(keys.key(prompt))[0])
                line = storage.local(found.part_name(part)).read_bytes()[offset:].split(b"\n")[0] + b"\n"
                assert json.loads(found.without_checksum(part, line))["output"] == f"answer to {prompt}"

    def test_the_place_of_an_outcome_behind_one_that_could_not_be_written_at_once(self, tmp_path, keys):
        """What was refused stands before it, when there is room again."""
        refusals = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

        class FullOnce(Disk):
            def append(self, file, data, place):
                if refusals:
                    super().append(file, data[:10], place)
                    raise refusals.pop()
                super().append(file, data, place)

        storage = open_storage(tmp_path, FullOnce())
        journal = Journal(storage, 1)
        with pytest.raises(StorageError):
            add(journal, keys, "a")
        part, offset = journal.place(add(journal, keys, "b"))
        write_part(journal)

        line = PartReader(storage, journal).line(part, offset)
        assert json.loads(line)["output"] == "answer to b"
        assert Journal(storage, 1).find(keys.key("a"))[1] is State.OK

    def test_the_shared_fields_of_waiting_outcomes_can_be_replaced(self, storage, keys):
        """Each line keeps its place, and its checksum is right; lines of another origin stay as they are."""
        journal = Journal(storage, 1)
        other = shared_fields({"model": "another"})
        for prompt, shared in (("a", SHARED), ("b", other), ("c", SHARED)):
            key = keys.key(prompt)
            journal.add(journal.find(key)[0], Outcome(key.hex(), "ok", output=prompt), shared)
        journal.end_part()
        journal.replace_shared(SHARED, shared_fields({"model": ""}))
        journal.seal_parts()

        again = Journal(storage, 1)
        lines = storage.local(again.part_name(0)).read_bytes()
        models = {}
        for prompt in "abc":
            part, offset = again.place(again.find(keys.key(prompt))[0])
            line = json.loads(again.without_checksum(part, lines[offset:].partition(b"\n")[0] + b"\n"))
            models[line["output"]] = line["model"]
        assert models == {"a": "", "b": "another", "c": ""}


class TestACrashLosesLittle:
    """Third promise."""

    def test_an_outcome_is_there_from_the_moment_that_it_is_added(self, storage, keys):
        """Whatever became of the process, and whether or not there was a checkpoint."""
        journal = Journal(storage, 1)
        for count, prompt in enumerate("abc"):
            number = add(journal, keys, prompt)

            assert not journal.is_sealed(number)
            again = Journal(storage, 1)
            assert [again.find(keys.key(each))[1] for each in "abc"] == [State.OK] * (count + 1) + [State.NEW] * (
                2 - count
            )
        assert journal.unsealed > 0
        write_part(journal)
        assert journal.is_sealed(number)
        assert journal.unsealed == 0
        assert Journal(storage, 1).find(keys.key("a"))[1] is State.OK

    def test_in_an_object_store_it_is_there_from_the_checkpoint_on(self, keys, tmp_path):
        """And nothing of it before."""
        storage = open_storage(UPath(f"memory://{tmp_path.name}/out"))
        journal = Journal(storage, 1)
        add(journal, keys, "a")

        assert storage.names("parts") == []
        write_part(journal)
        assert Journal(storage, 1).find(keys.key("a"))[1] is State.OK
        assert [name.endswith(".open.jsonl") for name in storage.names("parts")] == [False]

    @pytest.mark.parametrize("cut", [0, 1, 2, 20, 45])
    def test_half_a_line_at_the_end_of_an_open_part_is_cut_off(self, storage, keys, tmp_path, cut, caplog):
        """It is what was being written; the lines before it stay at their places, and nobody is told of damage."""
        journal = Journal(storage, 1)
        for prompt in "abc":
            add(journal, keys, prompt)
        (part,) = (tmp_path / "parts").iterdir()
        whole = part.read_bytes()
        part.write_bytes(whole[: len(whole) - cut])

        for _ in range(2):
            again = Journal(storage, 1)
            again.seal_left_open([])
            states = [again.find(keys.key(prompt))[1] for prompt in "abc"]
            assert states == [State.OK, State.OK, State.NEW if cut else State.OK]
            assert again.is_sealed(again.find(keys.key("a"))[0])

        assert caplog.text == ""
        (sealed,) = (tmp_path / "parts").iterdir()
        assert sealed.name == part.name.replace(".open", "")
        kept = whole if not cut else b"".join(whole.splitlines(keepends=True)[:2])
        assert sealed.read_bytes() == kept

    def test_an_open_part_without_a_line_disappears(self, storage, keys, tmp_path):
        """The process was killed after it had made the file, or within its first line."""
        for content in (b"", b'{"key":"0123'):
            (tmp_path / "parts" / "0001-0001-000001-0123abcd.open.jsonl").write_bytes(content)

            Journal(storage, 1).seal_left_open([])

            assert list((tmp_path / "parts").iterdir()) == []

    @pytest.mark.parametrize("torn", [1, 30, 150])
    def test_half_a_line_in_the_middle_costs_no_other_one(self, storage, keys, tmp_path, torn, caplog):
        """A disk may lose the end of a line with its line feed, and keep what was written behind it."""
        journal = Journal(storage, 1)
        for prompt in "abcd":
            add(journal, keys, prompt)
        (part,) = (tmp_path / "parts").iterdir()
        lines = part.read_bytes().splitlines(keepends=True)
        part.write_bytes(lines[0] + lines[1][:torn] + lines[2] + lines[3])

        again = Journal(storage, 1)
        again.seal_left_open([])

        states = [again.find(keys.key(prompt))[1] for prompt in "abcd"]
        assert states == [State.OK, State.NEW, State.OK, State.OK]
        assert "1 damaged lines" in caplog.text
        reader = PartReader(storage, again)
        for prompt in "acd":
            found = reader.line(*again.place(again.find(keys.key(prompt))[0]))
            assert json.loads(found)["output"] == f"answer to {prompt}"
        reader.close()

    def test_the_digest_of_a_part_left_open_stays_if_the_server_still_has_it(self, storage, keys, tmp_path):
        """Else nobody can say which model gave the answers: they stay, without a digest, and at their places."""
        journal = Journal(storage, 1)
        for prompt, digest in (("a", "0" * 64), ("b", "1" * 64), ("c", None), ("d", "2" * 64)):
            key = keys.key(prompt)
            output = {"digest": "1" * 64, "text": f'of {prompt}, "digest":"{digest}"'}
            shared = shared_fields({"model": "m", "digest": digest, "server": "s"})
            journal.add(journal.find(key)[0], Outcome(key.hex(), "ok", output=output), shared)
        before = journal.place(journal.find(keys.key("d"))[0])

        again = Journal(storage, 1)
        again.seal_left_open(["0" * 64, "2" * 64])

        assert again.place(again.find(keys.key("d"))[0])[1] == before[1]
        reader = PartReader(storage, again)
        found = [json.loads(reader.line(*again.place(again.find(keys.key(prompt))[0]))) for prompt in "abcd"]
        assert [line["digest"] for line in found] == ["0" * 64, None, None, "2" * 64]
        assert {line["output"]["digest"] for line in found} == {"1" * 64}
        assert found[1]["output"]["text"] == f'of b, "digest":"{"1" * 64}"'
        reader.close()

    def test_a_shard_leaves_the_open_parts_of_others_alone(self, storage, keys, tmp_path):
        """They may be at work. A whole run, which excludes them, reads all."""
        other = Journal(storage, 1, shard="1of2")
        add(other, keys, "a")

        shard = Journal(storage, 1, shard="0of2")
        shard.seal_left_open([])
        assert shard.find(keys.key("a"))[1] is State.NEW
        add(other, keys, "b")
        whole = Journal(storage, 1)
        whole.seal_left_open([])
        assert [whole.find(keys.key(prompt))[1] for prompt in "ab"] == [State.OK, State.OK]
        assert [path.name[26:] for path in (tmp_path / "parts").iterdir()] == ["1of2.jsonl"]

    def test_a_directory_copied_into_an_object_store_is_read_whole(self, storage, keys, tmp_path):
        """With the part that was open; and where the copy was sealed and the old one is still there, it counts once."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        (part,) = (tmp_path / "parts").iterdir()
        root = UPath(f"memory://{tmp_path.name}/copy")
        (root / "parts").mkdir(parents=True)
        (root / "parts" / part.name).write_bytes(part.read_bytes() + b'{"key"')
        store = open_storage(root)

        again = Journal(store, 1)
        again.seal_left_open([])

        assert again.find(keys.key("a"))[1] is State.OK
        sealed = part.name.replace(".open", "")
        assert store.names("parts") == [f"parts/{sealed}"]
        assert (root / "parts" / sealed).read_bytes() == part.read_bytes()
        (root / "parts" / part.name).write_bytes(part.read_bytes())
        third = Journal(open_storage(root), 1)
        third.seal_left_open([])
        assert third.part_name(0) == f"parts/{sealed}"
        assert (root / "parts" / sealed).read_bytes() == part.read_bytes()

    @pytest.mark.parametrize("cut", [1, 2, 20, 45])
    def test_a_torn_last_line_is_asked_again_and_harms_nothing_else(self, storage, keys, tmp_path, cut, caplog):
        """A part that lost its end (no disk is perfect) keeps the lines before it."""
        journal = Journal(storage, 1)
        for prompt in "abc":
            add(journal, keys, prompt)
        write_part(journal)
        (part,) = (tmp_path / "parts").iterdir()
        whole = part.read_bytes()
        part.write_bytes(whole[:-cut])

        again = Journal(storage, 1)

        assert [again.find(keys.key(prompt))[1] for prompt in "abc"] == [State.OK, State.OK, State.NEW]
        assert "1 damaged lines" in caplog.text

    def test_no_changed_byte_goes_unnoticed(self, storage, keys, tmp_path, caplog):
        """Wherever a line was changed by a disk or a copy: it is counted, and asked again, and the others are not."""
        journal = Journal(storage, 1)
        for prompt in "abc":
            add(journal, keys, prompt)
        write_part(journal)
        (part,) = (tmp_path / "parts").iterdir()
        first, second, third = part.read_bytes().splitlines(keepends=True)
        for place in range(len(second) - 1):
            changed = bytearray(second)
            changed[place] ^= 1
            part.write_bytes(first + changed + third)
            caplog.clear()

            again = Journal(storage, 1)

            assert [again.find(keys.key(prompt))[1] for prompt in "abc"] == [State.OK, State.NEW, State.OK], place
            assert "1 damaged lines" in caplog.text

    @pytest.mark.parametrize(
        "damage",
        [
            lambda line: line[:80] + bytes(10) + line[90:],
            lambda line: line.replace(b'"answer', b"\"'nswer"[:-1] + b'"a'),
            lambda line: line.replace(b'"error":null', b'"error":nul1'),
            lambda line: line.replace(b"answer", b"\\ud83d"),
            lambda line: line.replace(b'"output"', b'"outqut"'),
            lambda line: line[:50] + line[90:],
        ],
        ids=["zeros", "quote", "word", "half a surrogate pair", "field", "gap"],
    )
    def test_parts_of_earlier_versions_are_read_and_their_damaged_lines_found(
        self, storage, keys, tmp_path, damage, caplog
    ):
        """They have no checksum, so their lines are parsed."""
        journal = Journal(storage, 1)
        for prompt in "abc":
            add(journal, keys, prompt)
        write_part(journal)
        (part,) = (tmp_path / "parts").iterdir()
        lines = [journal.without_checksum(0, line) for line in part.read_bytes().splitlines(keepends=True)]
        part.unlink()
        old = tmp_path / "parts" / "0001-0001-000001.jsonl"
        old.write_bytes(b"".join(lines))

        again = Journal(storage, 1)
        assert [again.find(keys.key(prompt))[1] for prompt in "abc"] == [State.OK] * 3
        assert again.without_checksum(0, lines[1]) == lines[1]
        assert damage(lines[1]) != lines[1]
        old.write_bytes(lines[0] + damage(lines[1]) + lines[2])
        again = Journal(storage, 1)
        assert [again.find(keys.key(prompt))[1] for prompt in "abc"] == [State.OK, State.NEW, State.OK]
        assert "1 damaged lines" in caplog.text

    def test_damage_after_the_first_look_is_found_when_a_line_is_read(self, storage, keys):
        """What the results are made of is what was written, or nothing is made."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        write_part(journal)
        line = storage.local(journal.part_name(0)).read_bytes()

        with pytest.raises(StorageError, match=r"damaged during the run\. Start again"):
            journal.without_checksum(0, line.replace(b"answer", b"Answer"))

    def test_a_line_that_is_no_outcome_is_left_out(self, storage, keys, tmp_path):
        """Rubbish between two outcomes costs neither of them."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        add(journal, keys, "b")
        write_part(journal)
        (part,) = (tmp_path / "parts").iterdir()
        first, second = part.read_bytes().splitlines(keepends=True)
        part.write_bytes(first + b"\0" * 100 + b"\n" + second)

        again = Journal(storage, 1)

        assert again.find(keys.key("b"))[1] is State.OK
        assert again.place(again.find(keys.key("b"))[0])[1] == len(first) + 101


def test_a_look_for_a_reply_that_is_not_there_keeps_nothing(storage):
    """Each new row of a batch with a schema is looked up once: its request key would take 36 bytes."""
    journal = Journal(storage, 1, keep_replies=True)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert not any(journal.find_reply(number.to_bytes(16, "little")) for number in range(10_000))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 10_000


def test_a_part_that_is_sealed_keeps_nothing(storage, keys):
    """A night has thousands of checkpoints: what is said of one in memory is in the places of its rows."""
    journal = Journal(storage, 1)
    number = add(journal, keys, "a")
    write_part(journal)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(500):
            add(journal, keys, "a")
            write_part(journal)
        gc.collect()  # Python keeps some freed tuples until then
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 10_000
    part, offset = journal.place(number)
    assert (part, offset) == (500, 0)
    assert PartReader(storage, journal).line(part, offset).startswith(b'{"key":"' + keys.key("a").hex().encode())


def test_a_line_begins_with_its_key_and_is_ascii(storage, keys, tmp_path):
    """A resume looks at fixed places, and no tool may find a line break where there is none."""
    journal = Journal(storage, 1)
    add(journal, keys, "\x85\u2028\u2029\x0b\x1c😀")
    write_part(journal)

    (part,) = (tmp_path / "parts").iterdir()
    text = part.read_text(encoding="ascii")
    assert len(text.splitlines()) == 1
    assert list(json.loads(text))[:4] == ["key", "status", "output", "error"]


def deep(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


UNSAYABLE = {
    "infinite": {"n": float("inf")},
    "not a number": [float("nan")],
    "half a surrogate pair": "cut \ud83d",
    "half a pair as a name": {"\udc00": 1},
    "too many digits": {"n": 10**5000},
    "deep": deep(500),
    "deeper": deep(100_000),
    "no JSON": {"n": object()},
    "bytes": b"x",
}


@pytest.mark.parametrize("output", UNSAYABLE.values(), ids=UNSAYABLE)
def test_an_answer_that_no_strict_json_can_say_is_refused(storage, keys, output):
    """The journal is as it was, so the row can fail alone."""
    journal = Journal(storage, 1)
    number, _ = journal.find(keys.key("a"))
    journal.mark_requested(number)

    with pytest.raises(RejectedReplyError, match="cannot be written as JSON"):
        journal.add(number, Outcome(keys.key("a").hex(), "ok", output=output), SHARED)

    assert journal.state(number) is State.REQUESTED
    assert not journal.end_part()


@pytest.mark.parametrize("field", ["thinking", "done_reason", "reply"])
def test_no_field_of_a_good_outcome_is_written_otherwise_than_it_came(keys, field):
    """A half pair is refused wherever it stands."""
    with pytest.raises(RejectedReplyError):
        outcome_line(Outcome(keys.key("a").hex(), "ok", output="a", **{field: "\ud800"}), SHARED)


def test_a_failed_outcome_can_always_be_written(keys):
    """With what can be said of it: that a row failed must not fail."""
    outcome = Outcome(
        keys.key("a").hex(),
        "failed",
        output=deep(100_000),
        error={"class": "X", "text": "half \ud83d"},
        reply="\udfff",
        thinking="\ud800\udc00 whole, \ud800 half",
        seconds=float("inf"),
        tokens_per_second=float("nan"),
        tokens=10**5000,
        prompt_tokens=7,
    )

    line = json.loads(outcome_line(outcome, SHARED))

    assert line["output"] is None
    assert line["error"]["text"] == r"half \ud83d"
    assert line["reply"] == r"\udfff"
    assert (line["seconds"], line["tokens_per_second"], line["tokens"]) == (None, None, None)
    assert line["prompt_tokens"] == 7


def test_what_a_server_says_of_itself_is_written_whatever_it_is(keys):
    """Fields that all rows share must not make all of them fail."""
    line = outcome_line(
        Outcome(keys.key("a").hex(), "ok", output="a"), shared_fields({"server_version": "\ud83d", "seed": 1})
    )

    assert json.loads(line)["server_version"] == r"\ud83d"


def test_files_that_are_no_parts_are_left_alone(storage, keys, tmp_path):
    """What file managers, sync tools and people leave behind neither stops a run nor counts as a result."""
    journal = Journal(storage, 1)
    add(journal, keys, "a")
    write_part(journal)
    parts = tmp_path / "parts"
    (part,) = parts.iterdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"{part.stem} (1).jsonl", f"{part.name}.bak", "notes"):
        (parts / name).write_bytes(b"\x00\xff" + part.read_bytes())
    for name in ("1-1-1.jsonl", "0001-0001-000001-xyz.jsonl", "0001-0001.jsonl", "٠٠٠١-0001-000001.jsonl"):
        (parts / name).write_bytes(b"nothing")
    (parts / "old").mkdir()
    (parts / "0001-0001-000009.jsonl").mkdir()

    assert [found.name for found in list_parts(storage)] == [f"parts/{part.name}"]
    assert Journal(storage, 1).find(keys.key("a"))[1] is State.OK
