"""The history of a batch: small, however long it takes, and whole after a crash."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.batch.report.history import (
    Event,
    History,
    Sample,
    compact,
    history_for,
    read_history,
    side_by_side,
)
from ollama_provider.batch.store.storage import open_storage, write

NIGHT = 30 * 3600


@pytest.fixture
def storage(tmp_path):
    return open_storage(tmp_path)


def filled(history, *, began, seconds):
    """A run that answers a row every second, with an outage in its first minute."""
    history.begin(began)
    for second in range(1, seconds + 1):
        history.add(began + second, rows=second, tokens=7 * second, in_flight=4, out=min(second, 60))
    return history


def test_a_long_night_is_small_and_nothing_of_it_is_lost(storage):
    """Sums are exact, all samples take equally long, and the outage is still short."""
    history = filled(History(1), began=1e9, seconds=NIGHT)
    history.save(storage, "history.json")

    assert len(storage.read("history.json")) < 200_000
    found = read_history(storage, "history.json")
    assert sum(sample.rows for sample in found.samples) == NIGHT
    assert sum(sample.tokens for sample in found.samples) == 7 * NIGHT
    assert sum(sample.out for sample in found.samples) == pytest.approx(60)
    assert {sample.in_flight for sample in found.samples} == {4}
    assert len(found.samples) > 300
    assert {sample.seconds for sample in found.samples[:-1]} == {found.samples[0].seconds}


def test_many_short_runs_are_small_too(storage):
    """Samples of different runs stay apart, so the oldest go."""
    history = History(1)
    for run in range(3000):
        filled(history, began=1e9 + 100 * run, seconds=3)
        history.note(1e9 + 100 * run + 3, "ended", "x" * 5000)
    history.save(storage, "history.json")

    assert len(storage.read("history.json")) < 200_000
    assert history.samples[-1].end == 1e9 + 100 * 2999 + 3


def test_it_goes_on_with_the_next_run_of_the_same_pass(storage):
    """What the first run did before it was killed is there, and the gap."""
    filled(history_for(storage, "h.json", 3), began=1e9, seconds=5).save(storage, "h.json")
    filled(history_for(storage, "h.json", 3), began=2e9, seconds=5).save(storage, "h.json")

    found = read_history(storage, "h.json")
    assert [event for event in found.events if event.what == "began"] == [
        Event(1e9, "began", ""),
        Event(2e9, "began", ""),
    ]
    assert sum(sample.rows for sample in found.samples) == 10
    assert history_for(storage, "h.json", 4).samples == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format":9,"pass_number":1,"samples":[],"events":[]}', b'{"format":1,"samples":[["x"]]}'],
)
def test_a_damaged_one_begins_again(storage, content):
    """It is for people, and no run fails of it; neither of that of a later version."""
    write(storage, "h.json", content)

    assert read_history(storage, "h.json") is None
    assert history_for(storage, "h.json", 1).events == []


def test_a_clock_that_stands_still_adds_nothing():
    """A sample without time would have no rate."""
    history = History(1)
    history.begin(5.0)
    history.add(5.0, rows=1, tokens=1, in_flight=1, out=0.0)
    history.add(6.0, rows=1, tokens=1, in_flight=1, out=0.0)

    assert history.samples == [Sample(5.0, 1.0, 1, 1, 1, 0.0)]


def test_runs_stay_apart_when_samples_are_merged():
    """Also with as few samples as runs."""
    samples = [Sample(at, 1.0, 1, 1, 1.0, 0.0) for at in (*range(50), *range(1000, 1050))]

    found, width = compact(samples, 4)

    assert [(sample.at, sample.rows) for sample in found] in (
        [(0, 50), (1000, 50)],
        [(0, 32), (32, 18), (1000, 32), (1032, 18)],
    )
    assert width >= 32


def test_the_content_is_plain_json():
    """For readers in other languages, without NaN."""
    found = json.loads(filled(History(1), began=1e9, seconds=3).as_json(), parse_constant=pytest.fail)

    assert found["format"] == 1
    assert found["samples"][0] == [1e9, 1.0, 1, 7, 4, 1.0]


@given(
    st.lists(
        st.lists(
            st.builds(
                Sample,
                at=st.floats(0, 5000).map(lambda at: round(at, 2)),
                seconds=st.floats(0.01, 2000).map(lambda seconds: round(seconds, 2)),
                rows=st.integers(0, 1000),
                tokens=st.integers(0, 100_000),
                in_flight=st.floats(0, 50),
                out=st.just(0.0),
            ),
            max_size=20,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_histories_side_by_side_lose_nothing(histories):
    """Neither rows nor tokens, nor the requests of all at the same time; and they stay small."""
    found = side_by_side(histories)

    given_samples = [sample for history in histories for sample in history]
    assert sum(sample.rows for sample in found) == sum(sample.rows for sample in given_samples)
    assert sum(sample.tokens for sample in found) == sum(sample.tokens for sample in given_samples)
    requests = sum(sample.in_flight * sample.seconds for sample in given_samples)
    assert sum(sample.in_flight * sample.seconds for sample in found) == pytest.approx(requests, rel=0.02, abs=1)
    assert len(found) <= 1200
    assert found == sorted(found)


def test_two_shards_at_the_same_time():
    """Their requests add up while both are at work, and the time in which none is at work is a gap."""
    one = [Sample(1000.0, 100.0, 10, 100, 4.0, 0.0), Sample(2000.0, 10.0, 5, 50, 4.0, 5.0)]
    two = [Sample(1050.0, 100.0, 20, 200, 2.0, 0.0)]

    found = side_by_side([one, two])

    assert {round(sample.in_flight, 6) for sample in found if 1001 < sample.at < 1048} == {4.0}
    assert {round(sample.in_flight, 6) for sample in found if 1051 < sample.at < 1098} == {6.0}
    assert {round(sample.in_flight, 6) for sample in found if 1101 < sample.at < 1148} == {2.0}
    assert sum(sample.out for sample in found) == pytest.approx(5.0)
    assert [sample.at for sample in found if 1150 < sample.at < 2000] == []
