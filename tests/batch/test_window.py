"""The end of the night: when it is, and what a batch does then."""

import threading
from datetime import UTC, date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch.window import closing_time, read_timezone, timezone_name
from ollama_provider.testing import Fail, Gate, Pace, Stall

BERLIN = ZoneInfo("Europe/Berlin")
EVENING = datetime(2026, 11, 22, 22, 0, tzinfo=BERLIN)
MORNING = datetime(2026, 11, 23, 6, 0, tzinfo=BERLIN)


class TestClosingTime:
    def test_a_time_of_day_is_the_next_one(self):
        """Of tomorrow in the evening, of today after midnight."""
        assert closing_time("06:00", "Europe/Berlin", now=EVENING) == MORNING
        assert closing_time("06:00", "Europe/Berlin", now=EVENING + timedelta(hours=5)) == MORNING
        assert closing_time("23:30:30", "Europe/Berlin", now=EVENING) == EVENING + timedelta(minutes=90, seconds=30)

    def test_it_is_of_the_named_timezone(self):
        """Whatever timezone the clock of the caller shows."""
        assert closing_time("06:00", "UTC", now=EVENING) == datetime(2026, 11, 23, 6, tzinfo=UTC)
        assert closing_time("06:00", "Europe/Berlin", now=EVENING.astimezone(UTC)) == MORNING

    def test_without_a_name_it_is_the_machines_own(self):
        """As its clock on the wall shows it."""
        found = closing_time("06:00", None, now=EVENING).astimezone()

        assert (found.hour, found.minute) == (6, 0)
        assert timedelta(0) < found - EVENING <= timedelta(days=1, hours=1)

    def test_a_late_retry_does_not_take_the_next_nights_end_for_its_own(self):
        """The run was due in the evening, so at half past six its window has closed."""
        late = MORNING + timedelta(minutes=30)

        assert closing_time("06:00", "Europe/Berlin", now=late, due=EVENING) == MORNING
        assert closing_time("06:00", "Europe/Berlin", now=late) == MORNING + timedelta(days=1)

    def test_summer_time_begins_in_the_night(self):
        """Six o'clock is six o'clock, also in a night of seven hours."""
        evening = datetime(2027, 3, 27, 22, 0, tzinfo=BERLIN)

        assert closing_time("06:00", "Europe/Berlin", now=evening).astimezone(UTC) - evening.astimezone(
            UTC
        ) == timedelta(hours=7)

    def test_moments_and_durations(self):
        """A datetime or ISO 8601 with or without an offset; a timedelta from now on."""
        plus_two = datetime(2026, 11, 23, 6, tzinfo=timezone(timedelta(hours=2)))

        assert closing_time("2026-11-23T06:00+02:00", "Europe/Berlin", now=EVENING) == plus_two
        assert closing_time("2026-11-23T06:00", "Europe/Berlin", now=EVENING) == MORNING
        assert closing_time(plus_two, None, now=EVENING) == plus_two
        assert closing_time(timedelta(hours=8), None, now=EVENING) == EVENING + timedelta(hours=8)

    def test_a_duration_counts_from_when_the_run_was_due(self):
        """A retry does not begin the night anew."""
        late = EVENING + timedelta(hours=7, minutes=55)

        assert closing_time(timedelta(hours=8), None, now=late, due=EVENING) == EVENING + timedelta(hours=8)
        assert closing_time("PT8H", None, now=late + timedelta(hours=3), due=EVENING) == EVENING + timedelta(hours=8)

    @pytest.mark.parametrize(
        "form",
        [
            time(6),
            time(6, tzinfo=BERLIN),
            "6:00",
            " 06:00\n",
            "06:00:00",
            "05:00Z",
            "06:00+01:00",
            "06:00 +0100",
            MORNING,
            "2026-11-23T06:00",
            "2026-11-23 06:00:00",
            "2026-11-23T05:00:00Z",
            "20261123T060000",
            timedelta(hours=8),
            "PT8H",
            "PT480M",
            "pt7h59m60s",
        ],
        ids=str,
    )
    def test_forms_with_one_meaning_are_taken(self, form):
        """From Python, YAML, a form, a template or a command line."""
        assert closing_time(form, "Europe/Berlin", now=EVENING) == MORNING

    def test_the_end_of_a_day_is_the_beginning_of_the_next(self):
        """As ISO 8601 has it."""
        midnight = datetime(2026, 11, 23, 0, 0, tzinfo=BERLIN)

        assert closing_time("24:00", "Europe/Berlin", now=EVENING) == midnight
        assert closing_time("P1DT2H", "Europe/Berlin", now=EVENING) == midnight + timedelta(days=1)

    def test_a_time_with_a_timezone_of_its_own_counts_days_there(self):
        """It is tomorrow already in Tokyo."""
        found = closing_time(time(6, tzinfo=ZoneInfo("Asia/Tokyo")), "America/Los_Angeles", now=EVENING)

        assert found == datetime(2026, 11, 23, 6, tzinfo=ZoneInfo("Asia/Tokyo")) + timedelta(days=1)

    def test_the_hour_that_comes_twice(self):
        """In the second of the two, the first is past, whatever timezone the moment is told in."""
        due = datetime(2026, 10, 25, 2, 15, fold=1, tzinfo=BERLIN)

        for told in (due, due.astimezone(UTC)):
            found = closing_time("02:30", "Europe/Berlin", now=told)
            assert found == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN)

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ("six", "no time of day"),
            ("6am", "no time of day"),
            ("06.00", "no time of day"),
            ("25:00", "there is no time"),
            ("24:30", "there is no time"),
            ("06:00+99:00", "there is no time"),
            ("", "it is empty"),
            ("  ", "it is empty"),
            (None, "of type NoneType"),
            (1350, "as YAML makes of 22:30 without quotes"),
            ("1350", "as YAML makes of 22:30 without quotes"),
            (81000, "is a number"),
            (6, "is a number"),
            (6.5, "is a number"),
            (True, "is a number"),
            ("0600", "is a number"),
            (date(2026, 11, 26), "a whole day"),
            ("2026-11-26", "a whole day"),
            ("6:00:00", "a timedelta that a template has turned into text"),
            (timedelta(0), "above zero"),
            (timedelta(hours=-1), "above zero"),
            ("PT0S", "above zero"),
            ("P", "no time of day"),
            ("PT", "no time of day"),
            (timedelta.max, "calendar"),
            (["06:00"], "of type list"),
        ],
        ids=repr,
    )
    def test_what_is_no_end_or_more_than_one_is_refused(self, wrong, told):
        """By the name of the argument, and with what is meant by it."""
        with pytest.raises(InvalidRequestError, match=rf"^stop_at: .*{told}"):
            closing_time(wrong, None, now=EVENING)

    @pytest.mark.parametrize("zone", ["Europe/Bärlin", "Europe", "../UTC", "+25:00", "+02:99", "", 2, "None"])
    def test_an_unknown_timezone_is_refused(self, zone):
        """By name."""
        with pytest.raises(InvalidRequestError, match=r"^timezone: there is no"):
            closing_time("06:00", zone, now=EVENING)

    @pytest.mark.parametrize("zone", ["+02:00", "UTC+2", "+0200", timezone(timedelta(hours=2)), ZoneInfo("Etc/GMT-2")])
    def test_a_timezone_may_be_an_offset(self, zone):
        """As a DAG has it whose start_date has an offset."""
        six = datetime(2026, 11, 23, 6, tzinfo=timezone(timedelta(hours=2)))

        assert closing_time("06:00", zone, now=EVENING) == six
        assert closing_time("06:00", timezone_name(read_timezone(zone)), now=EVENING) == six


def texts(count):
    return [f"text {number}" for number in range(count)]


def test_no_row_is_sent_after_the_end_and_what_is_in_flight_comes_back(batch, ollama):
    """The summary tells what is left and how long it would take; the next run goes on from there."""
    ollama.stand_in.script(("answer", Pace(first_token=0.02)), where=lambda body: body.get("prompt"), always=True)

    summary = batch.run(texts(500), concurrency=2, stop_at=timedelta(seconds=2))

    assert not summary.complete
    assert "the window closed at" in summary.reason
    assert 0 < summary.ok == len(batch.asked) < 500
    assert summary.left == 500 - summary.ok
    assert summary.seconds_left > 0
    assert not (batch.directory / "summary.json").exists()
    asked = set(batch.asked)
    second = batch.run(texts(500), concurrency=8)
    assert second.complete
    assert second.reused == summary.ok
    assert second.left == 0
    assert len(batch.asked) == 500
    assert asked < set(batch.asked)


def test_a_long_answer_is_waited_for(batch, ollama):
    """What was paid for is not thrown away."""
    gate = Gate()
    ollama.stand_in.script((Stall(after=None, until=gate), "late"), where=lambda body: body.get("prompt") == "text 0")
    # A busy machine sends the first request late, yet it has to come before the window closes.
    threading.Timer(2.5, gate.open).start()

    summary = batch.run(texts(3), concurrency=1, stop_at=timedelta(seconds=2))

    assert (summary.ok, summary.left) == (1, 2)
    assert batch.asked == ["text 0"]


def test_a_window_that_has_closed_asks_nothing(batch, ollama):
    """A retry that comes too late ends at once, says why, and leaves everything as it is."""
    summary = batch.run(texts(3), stop_at=datetime(2020, 1, 1, tzinfo=UTC))

    assert (summary.complete, summary.requests) == (False, 0)
    assert "had closed at 2020-01-01T00:00+00:00, before this run began" in summary.reason
    assert ollama.stand_in.requests == []


def test_a_batch_that_is_done_in_time_is_complete(batch):
    """The window plays no part then, nor in what is the same work."""
    summary = batch.run(texts(3), stop_at=timedelta(hours=8))

    assert summary.complete
    assert batch.run(texts(3)).requests == 0


def test_unload_after(batch, ollama):
    """The GPU is free when the batch ends, early or not; and a model that was not used is left alone."""
    batch.run(texts(2), unload_after=True)

    last = ollama.stand_in.requests[-1]
    assert (last.path, last.json["keep_alive"], last.json.get("prompt", "")) == ("/api/generate", 0, "")
    seen = len(ollama.stand_in.requests)
    batch.run(texts(2), unload_after=True)
    assert not [request for request in ollama.stand_in.requests[seen:] if request.path == "/api/generate"]


def test_a_server_that_is_gone_at_the_end_does_not_spoil_the_results(batch, ollama, caplog):
    """To unload is a courtesy."""

    ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("keep_alive") == 0)

    summary = batch.run(texts(2), unload_after=True)

    assert summary.complete
    assert "may still be in memory" in caplog.text


def _since_midnight(moment):
    return timedelta(hours=moment.hour, minutes=moment.minute, seconds=moment.second)


#: Summer time in the north and in the south, by half an hour, at midnight, and none.
ZONES = st.sampled_from(
    [
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "America/Santiago",
        "Africa/Cairo",
        "UTC",
        "+05:45",
        "-09:30",
    ]
)


@given(
    st.integers(0, 2 * 365 * 24 * 60).map(
        lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    ),
    st.times(timezones=st.none()).map(lambda moment: moment.replace(microsecond=0)),
    ZONES,
)
def test_a_time_of_day_is_the_first_one_after_the_run_was_due(due, wanted, zone):
    """In every timezone and in the nights in which its clocks change: after the beginning, and within a day."""
    found = closing_time(wanted.isoformat(), zone, now=due).astimezone(UTC)
    shown = found.astimezone(read_timezone(zone))

    # Clocks change by an hour at most, and a time that they skip is shown an hour later.
    assert timedelta(0) < found - due <= timedelta(hours=25)
    skipped = (datetime.combine(shown.date(), shown.time()) - datetime.combine(shown.date(), wanted)) % timedelta(
        days=1
    )
    assert skipped % timedelta(days=1) <= timedelta(hours=1)
    assert closing_time(wanted, zone, now=due) == found
    late = due + timedelta(hours=3)
    assert closing_time(wanted, zone, now=late, due=due) == found


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.integers(0, 99_999), st.integers(1, 999_999))
def test_a_duration_lasts_as_long_as_it_says(days, hours, minutes, seconds):
    """Across every change of the clocks, since it is counted and not read off one."""
    lasting = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)

    assert closing_time(f"P{days}DT{hours}H{minutes}M{seconds}S", "Europe/Berlin", now=EVENING) - EVENING == lasting


@given(st.text("0123456789:PTDHMSZ+-. ", max_size=20) | st.text(max_size=12), st.text(max_size=9) | ZONES)
def test_any_other_text_is_refused(text, zone):
    """An end is a moment with a timezone, or an error that names the argument."""
    try:
        end = closing_time(text, zone, now=EVENING)
    except InvalidRequestError as error:
        assert str(error).startswith(("stop_at: ", "timezone: "))
    else:
        assert end.utcoffset() is not None
