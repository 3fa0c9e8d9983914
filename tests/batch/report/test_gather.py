"""What the report says of more rows than it looks at, in parts that the journal has written."""

from hashlib import md5

import pytest

from ollama_provider.batch import Outcome
from ollama_provider.batch.report.gather import gather
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import shared_fields
from ollama_provider.batch.store.storage import open_storage

ROWS, PER_PART = 5000, 1300
SHARED = shared_fields({"model": "m"})


def outcome(number, **given):
    found = {"output": f"answer {number}", "tokens": number, "prompt_tokens": 7, "seconds": 1.0 + number / ROWS}
    key = md5(
        str(number).encode(), usedforsecurity=False
    ).hexdigest()  # the index needs keys that are as good as random
    return Outcome(key, given.pop("status", "ok"), **(found | given))


def write(journal, outcomes):
    for number, each in enumerate(outcomes, 1):
        journal.add(journal.find(bytes.fromhex(each.key))[0], each, SHARED)
        if number % PER_PART == 0:
            journal.end_part()
            journal.seal_parts()
    journal.end_part()
    journal.seal_parts()


@pytest.fixture
def storage(tmp_path):
    return open_storage(tmp_path)


def marked(number):
    """Each kind of mark, some of them in rows that failed, and answers that only quote one."""
    if number % 500 == 1:
        return outcome(number, prompt_cut=True, answer_cut=True)
    if number % 500 == 2:
        return outcome(number, output={"a": 1, "prompt_cut": True, "rungs": ["x"]})
    if number % 500 == 3:
        return outcome(number, output='","answer_cut":true,"rungs":["')
    if number % 1000 == 4:
        return outcome(number, rungs=("again",))
    if number % 1000 == 504:
        return outcome(number, status="failed", error={"class": "InvalidOutputError", "text": "no"}, rungs=("again",))
    return outcome(number)


def test_counts_are_exact(storage):
    """Of all rows, and not of the sample; what was asked again counts by its last outcome."""
    earlier = [
        outcome(number, status="failed", output=None, error={"class": "X", "text": "x"}, prompt_cut=True)
        for number in range(9, 3000, 7)
    ]
    journal = Journal(storage, 1)
    write(journal, [*earlier, *map(marked, range(ROWS))])

    for report in (gather(storage), gather(storage, journal)):
        assert (report.ok, report.failed, report.outcomes) == (ROWS - 5, 5, ROWS)
        assert (report.prompts_cut, report.answers_cut) == (10, 10)
        assert report.ladder == {"again": {"tried": 10, "good": 5}}
        assert [(reason.error, reason.count) for reason in report.reasons] == [("InvalidOutputError", 5)]
        assert report.sampled == 2000


def test_the_sample_is_fair_and_the_same_each_time(storage):
    """Its median and tail are near those of all rows; the first and the last rows are shown."""
    write(Journal(storage, 1), map(outcome, range(ROWS)))

    report, again = gather(storage), gather(storage)

    tokens = next(each for each in report.distributions if each.label == "Tokens written")
    assert tokens.median == pytest.approx(ROWS / 2, rel=0.06)
    assert tokens.p95 == pytest.approx(ROWS * 0.95, rel=0.02)
    shown = {why: [row.tokens for row in report.good if row.why == why] for why in {row.why for row in report.good}}
    ends = {0, 1, 2, ROWS - 3, ROWS - 2, ROWS - 1}
    assert shown["first"] == [0, 1, 2]
    assert {row.tokens for row in report.good} >= ends
    assert min(shown["longest"]) > ROWS * 0.99
    assert len(report.good) == len({row.key for row in report.good}) == 20
    assert (report.good, report.distributions) == (again.good, again.distributions)


def test_marks_in_damaged_lines_do_not_count(storage, tmp_path):
    """A line that lost its end is left out, and the whole one behind it in the same line is not."""
    write(Journal(storage, 1), [outcome(number, answer_cut=True) for number in range(4)])
    (part,) = (tmp_path / "parts").iterdir()
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1][:-9] + lines[2] + lines[3][:-9] + b"\n")

    report = gather(storage)

    assert (report.ok, report.damaged, report.answers_cut) == (2, 2, 2)


def test_a_run_shares_its_index(storage):
    """While it appends to a part, the report has what is sealed, and so do the parts that wait for it."""
    journal = Journal(storage, 1)
    write(journal, map(outcome, range(10)))
    journal.add(journal.find(bytes.fromhex(outcome(10).key))[0], outcome(10), SHARED)
    assert gather(storage, journal).outcomes == 10

    journal.end_part()
    journal.add(journal.find(bytes.fromhex(outcome(11).key))[0], outcome(11), SHARED)
    assert gather(storage, journal).outcomes == 10

    journal.seal_parts()
    report = gather(storage, journal)
    assert report.outcomes == 11
    assert "answer 10" in [row.text for row in report.good]
