"""The journal's three promises, each under its own name, and what keeps them."""

import json

import pytest

from ollama_provider.batch.journal import Journal, Keys, State, shared_fields
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.storage import open_storage

SHARED = shared_fields({"model": "m"})
REQUEST = {"task": "generate", "options": {"seed": 1}, "system": None, "think": False}


def add(journal: Journal, keys: Keys, prompt: str, status: str = "ok") -> int:
    key = keys.key(prompt)
    number, _ = journal.find(key)
    journal.add(number, Outcome(key.hex(), status, output=f"answer to {prompt}"), SHARED)
    return number


def seal(journal: Journal) -> None:
    assert journal.cut_off()
    journal.seal()


@pytest.fixture
def storage(tmp_path):
    return open_storage(tmp_path)


@pytest.fixture
def keys():
    return Keys("digest", REQUEST)


class TestTheKeyIsTheWork:
    """First promise."""

    def test_the_same_work_has_the_same_key(self, keys):
        """Two runs agree on the key, in whatever order options were given."""
        again = Keys("digest", dict(reversed(REQUEST.items())))

        assert keys.key("a") == again.key("a")
        assert len(keys.key("a")) == 16

    @pytest.mark.parametrize(
        "change",
        [{"options": {"seed": 2}}, {"options": {}}, {"system": "Be brief."}, {"think": True}, {"task": "chat"}],
        ids=str,
    )
    def test_whatever_bears_on_the_answer_makes_another_key(self, keys, change):
        """Options, system message, reasoning and endpoint are part of the work."""
        assert Keys("digest", REQUEST | change).key("a") != keys.key("a")

    def test_digest_prompt_and_images_make_another_key(self, keys):
        """So are the weights, the prompt and the images, and no two of them can be taken for one another."""
        found = {
            Keys("other", REQUEST).key("a"),
            keys.key("a"),
            keys.key("b"),
            keys.key(""),
            keys.key("a", ["b"]),
            keys.key("ab"),
            keys.key("a", ["b", "c"]),
            keys.key("a", ["bc"]),
            keys.unasked("a"),
        }

        assert len(found) == 9

    def test_half_a_surrogate_pair_has_a_key(self, keys):
        """Also a text that cannot be sent is told apart from others."""
        assert keys.unasked("\ud800") != keys.unasked("\ud801")


class TestWhatIsSealedStays:
    """Second promise."""

    def test_a_good_result_is_found_again(self, storage, keys):
        """Another process finds what was sealed, whatever round it is in."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        seal(journal)

        for round_number in (1, 2):
            assert Journal(storage, round_number).find(keys.key("a"))[1] is State.OK

    def test_a_failure_counts_until_its_round_has_ended(self, storage, keys):
        """A resume does not ask again what failed; the next run does."""
        journal = Journal(storage, 1)
        add(journal, keys, "a", "failed")
        seal(journal)

        assert Journal(storage, 1).find(keys.key("a"))[1] is State.FAILED
        assert Journal(storage, 2).find(keys.key("a"))[1] is State.FAILED_BEFORE

    def test_a_later_success_wins_over_a_failure(self, storage, keys):
        """What was repaired is good from then on, in whichever order the parts are read."""
        journal = Journal(storage, 1)
        add(journal, keys, "a", "failed")
        seal(journal)
        repair = Journal(storage, 2)
        add(repair, keys, "a")
        seal(repair)

        assert Journal(storage, 3).find(keys.key("a"))[1] is State.OK

    def test_no_part_is_written_twice(self, storage, keys, tmp_path):
        """Each try within a round, and each round, has names of its own."""
        for round_number in (1, 1, 2):
            journal = Journal(storage, round_number)
            for prompt in "ab":
                add(journal, keys, prompt)
                seal(journal)

        assert [part.name for part in sorted((tmp_path / "parts").iterdir())] == [
            "0001-0001-000001.jsonl",
            "0001-0001-000002.jsonl",
            "0001-0002-000001.jsonl",
            "0001-0002-000002.jsonl",
            "0002-0001-000001.jsonl",
            "0002-0001-000002.jsonl",
        ]

    def test_the_place_of_an_outcome_is_where_its_line_is(self, storage, keys):
        """The index leads to the very line, also after a restart."""
        journal = Journal(storage, 1)
        prompts = ["a", "b", "ü\u2028" * 50, "d"]
        for prompt in prompts:
            add(journal, keys, prompt)
            if prompt == "b":
                seal(journal)
        seal(journal)

        for found in (journal, Journal(storage, 1)):
            for prompt in prompts:
                part, offset = found.place(found.find(keys.key(prompt))[0])
                line = storage.local(found.part(part)).read_bytes()[offset:].split(b"\n")[0]
                assert json.loads(line)["output"] == f"answer to {prompt}"


class TestACrashLosesLittle:
    """Third promise."""

    def test_what_is_not_sealed_is_not_there(self, storage, keys):
        """An outcome counts from the moment its part appears, and not before."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        journal.cut_off()

        assert Journal(storage, 1).find(keys.key("a"))[1] is State.NEW
        assert journal.unsealed > 0
        journal.seal()
        assert Journal(storage, 1).find(keys.key("a"))[1] is State.OK
        assert journal.unsealed == 0

    @pytest.mark.parametrize("cut", [1, 2, 20, 45])
    def test_a_torn_last_line_is_asked_again_and_harms_nothing_else(self, storage, keys, tmp_path, cut, caplog):
        """A part that lost its end (no disk is perfect) keeps the lines before it."""
        journal = Journal(storage, 1)
        for prompt in "abc":
            add(journal, keys, prompt)
        seal(journal)
        (part,) = (tmp_path / "parts").iterdir()
        whole = part.read_bytes()
        part.write_bytes(whole[:-cut])

        again = Journal(storage, 1)

        assert [again.find(keys.key(prompt))[1] for prompt in "abc"] == [State.OK, State.OK, State.NEW]
        assert "1 damaged lines" in caplog.text

    def test_a_line_that_is_no_outcome_is_left_out(self, storage, keys, tmp_path):
        """Rubbish between two outcomes costs neither of them."""
        journal = Journal(storage, 1)
        add(journal, keys, "a")
        add(journal, keys, "b")
        seal(journal)
        (part,) = (tmp_path / "parts").iterdir()
        first, second = part.read_bytes().splitlines(keepends=True)
        part.write_bytes(first + b"\0" * 100 + b"\n" + second)

        again = Journal(storage, 1)

        assert again.find(keys.key("b"))[1] is State.OK
        assert again.place(again.find(keys.key("b"))[0])[1] == len(first) + 101


def test_a_line_begins_with_its_key_and_is_ascii(storage, keys, tmp_path):
    """A resume looks at fixed places, and no tool may find a line break where there is none."""
    journal = Journal(storage, 1)
    add(journal, keys, "\x85\u2028\u2029\x0b\x1c😀")
    seal(journal)

    (part,) = (tmp_path / "parts").iterdir()
    text = part.read_text(encoding="ascii")
    assert len(text.splitlines()) == 1
    assert list(json.loads(text))[:4] == ["key", "status", "output", "error"]
