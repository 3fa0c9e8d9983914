"""What the answers of a rehearsal say of the night."""

from dataclasses import replace
from datetime import time, timedelta

import pytest

from ollama_provider.api.schemas import Options
from ollama_provider.batch import BatchSpec, Embedding, FailurePolicy, Pace, Window
from ollama_provider.batch.records import Row
from ollama_provider.batch.rehearsal import forecast
from ollama_provider.batch.rehearsal.calls import Call, Parallel
from ollama_provider.batch.rehearsal.result import ContextUse, RehearsedRow, Spread
from ollama_provider.batch.rows.sampling import RowSample, SampledRow

ROWS = [
    RehearsedRow("random", f"row {number}", None, fresh=True, length=100, status="ok", prompt_tokens=30, tokens=20,
                 seconds=2.5, queue_seconds=0.5, attempts=1)
    for number in range(20)
]  # fmt: skip
SAMPLE = RowSample(tuple(SampledRow(Row({}, row.place), row.why) for row in ROWS), 3600, True, 3600, (100,) * 1000)
FOUR = Parallel(4.0, waited=True)


def spec(**given):
    return BatchSpec(model="m", rows=["a"], **given)


def test_the_night():
    """3,600 rows of two seconds each, four at a time, are half an hour; the wait for a slot is no work."""
    found = forecast.night(spec(), SAMPLE, ROWS, [], FOUR)

    assert (found.seconds, found.low, found.high) == (1800, 1800, 1800)
    assert (found.ends, found.requests_at_a_time, found.waited) == ("22:30", 4, True)
    assert (found.rows_per_second, found.tokens_per_second) == (2, 40)
    assert (found.window, found.fits) == (None, None)


@pytest.mark.parametrize(
    ("stop_at", "hours", "fits"),
    [
        (time(6), 8, True),
        (time(22, 15), 0.25, False),
        (time(22), 24, True),
        (timedelta(hours=1), 1, True),
        ("2026-01-02T06:00", None, None),
    ],
)
def test_the_window(stop_at, hours, fits):
    """From 22:00 on; a moment is none that comes every night."""
    found = forecast.night(spec(window=Window(stop_at=stop_at)), SAMPLE, ROWS, [], FOUR)

    assert (found.window, found.fits) == (hours and hours * 3600, fits)


def test_a_night_of_days():
    """The time of day, and how many days later."""
    found = forecast.night(spec(), replace(SAMPLE, total=3600 * 100), ROWS, [], FOUR)

    assert found.ends == "+3 d 00:00"


def test_a_limit_of_requests():
    """Makes it longer, whatever the server could do."""
    assert forecast.night(spec(pace=Pace(requests_per_minute=60)), SAMPLE, ROWS, [], FOUR).seconds == 3600


def test_vectors_of_which_some_were_there():
    """Requests are shared by the rows that were asked now: ten rows in ten seconds, whatever was asked before."""
    calls = [Call(float(number), number + 1.0, 0.0) for number in range(10)]
    rows = [replace(row, fresh=place < 10, tokens=None) for place, row in enumerate(ROWS)]

    found = forecast.night(spec(embedding=Embedding()), SAMPLE, rows, calls, FOUR)
    none_now = [replace(row, fresh=False) for row in rows]

    assert found.seconds == 3600
    assert forecast.night(spec(embedding=Embedding()), SAMPLE, none_now, [], FOUR) is None


def test_a_limit_of_requests_for_vectors():
    """One request a minute, each for ten rows: six seconds a row."""
    calls = [Call(float(number), number + 1.0, 0.0) for number in range(2)]
    slow = spec(embedding=Embedding(), pace=Pace(requests_per_minute=1))

    assert forecast.night(slow, SAMPLE, ROWS, calls, FOUR).seconds == 3600 * 6


def test_what_is_not_known():
    """Without a request there is no pace; rows that were never answered have no time."""
    never = [replace(row, status="failed", seconds=None) for row in ROWS]

    assert forecast.night(spec(), SAMPLE, ROWS, [], None) is None
    assert forecast.night(spec(), SAMPLE, never, [], FOUR) is None


def test_answers_that_take_no_time():
    """Seconds are kept to the millisecond: a night of such rows is short, not unknown."""
    at_once = [replace(row, seconds=0.0, queue_seconds=0.0) for row in ROWS]

    found = forecast.night(spec(), SAMPLE, at_once, [], FOUR)

    assert (found.seconds, found.rows_per_second) == (0, 0)


def test_tokens():
    """Median, 95th percentile and longest."""
    assert forecast.spread(list(range(100))) == Spread(50, 95, 99)
    assert forecast.spread([]) is None


def test_the_context():
    """What is needed for the longest prompt, by its length, and the longest answer or the limit of answers."""
    sample = replace(SAMPLE, lengths=(100,) * 900 + (10_000,) * 100)
    rows = [*ROWS[:10], *(replace(row, length=200, prompt_tokens=60) for row in ROWS[10:])]

    found = forecast.context_use(spec(), 2048, rows, sample)
    limited = forecast.context_use(spec(options=Options(num_predict=500)), 2048, rows, sample)

    assert found == ContextUse(2048, 3020, 0.1, 0.0)
    assert limited.needed == 3500


def test_what_is_expected_to_fail():
    """Rows chosen for being odd do not count, unless there are no others; prompts that are too long do."""
    rows = [*ROWS[:18], replace(ROWS[18], status="failed"), replace(ROWS[19], why="longest", status="failed")]
    context = ContextUse(2048, 3020, 0.1, 0.0)

    assert forecast.failing(rows, None, spec()) == 1 / 19
    assert forecast.failing(rows, context, spec()) == 0.1
    assert forecast.failing(rows, context, spec(failures=FailurePolicy(on_truncation="flag"))) == 1 / 19
    assert forecast.failing(rows[-1:], None, spec()) == 1.0
    assert forecast.failing([], None, spec()) == 0.0
