"""The tables at the end of the log, as text and at the end of real batches."""

import logging

import pytest

from ollama_provider.batch import FailurePolicy, StopSignal, TooManyFailedError
from ollama_provider.batch.records import ServerShare
from ollama_provider.batch.report.advice import advice
from ollama_provider.batch.report.shown_rows import Reason, ShownRow
from ollama_provider.batch.report.tables import reasons_table, servers_table
from ollama_provider.testing import Fail, Stall

ROWS = [{"id": f"doc-{number}", "text": f"text {number}."} for number in range(30)]


def shown(row_id, index=0, key="k"):
    return ShownRow("", key, index, row_id, "the error", None, 1, None, None)


def reason(error, count, *rows):
    return Reason(error, count, 0.5, advice(error), rows)


def asking(*numbers):
    return lambda body: any(f"text {number}." in body.get("prompt", "") for number in numbers)


def log_of(caplog):
    """The lines of the run's end, without those of Airflow or the client."""
    return [
        record.getMessage() for record in caplog.records if record.name == "ollama_provider.batch.report.run_report"
    ]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="ollama_provider")
    return caplog


def test_the_table_of_the_servers():
    """A line each; what is out of service says since when and why."""
    shares = [
        ServerShare("http://gpu1:11434", rows=1200, tokens_per_second=310.2, concurrency=4),
        ServerShare("https://gpu2.example.com", rows=310, tokens_per_second=80, seconds_out=95.2, reason="refused"),
        ServerShare("http://gpu3:11434", reason="another digest"),
    ]

    assert servers_table(shares).splitlines() == [
        "server                        rows   tok/s  concurrency  out of service",
        "http://gpu1:11434            1,200     310            4",
        "https://gpu2.example.com       310      80            0  95 s: refused",
        "http://gpu3:11434                0       0            0  another digest",
    ]


def test_the_table_of_the_reasons():
    """How many, three ids, and what to do; what has no advice has none."""
    reasons = [
        reason("InvalidOutputError", 1200, *map(shown, ["a-17", "a-23", 7, "a-99"])),
        reason("RenderError", 2, shown(None, 12), shown(None, 40)),
        reason("OddError", 1, shown({"b": 1})),
    ]

    assert reasons_table(reasons, {}).splitlines() == [
        " rows  reason              such as         what to do",
        f"1,200  InvalidOutputError  a-17, a-23, 7   {advice('InvalidOutputError')}",
        f"    2  RenderError         row 12, row 40  {advice('RenderError')}",
        '    1  OddError            {"b": 1}',
    ]


def test_rows_that_the_directory_cannot_name():
    """By what the run knows of them, else by their key."""
    rows = [shown(None, None, "aa"), shown(None, None, "bb"), shown(None, None, "cc")]

    table = reasons_table([reason("RenderError", 3, *rows)], {"aa": (3, "doc-3"), "bb": (4, None)})

    assert "  doc-3, row 4, key cc  " in table


def test_an_id_is_text_on_one_line():
    """Whatever it holds, a terminal has nothing to obey, and no line is forged. A long one is cut."""
    odd = ["\x1b[31mred\x9b", "a\nINFO forged", "x" * 200]

    table = reasons_table([reason("RenderError", 3, *map(shown, odd))], {})

    assert "␛[31mred\\u009b, a INFO forged, " + "x" * 40 + "…  " in table
    assert len(table.splitlines()) == 2


def test_many_reasons_are_summed_up():
    """Ten have a line of their own."""
    table = reasons_table([reason(f"Odd{number}", 3, shown("a")) for number in range(14)], {})

    assert len(table.splitlines()) == 12
    assert table.splitlines()[-1].split() == ["12", "4", "others", "See", "the", "report."]


def test_the_end_of_a_batch_with_failed_rows(batch, log):
    """The reasons, then where the report is."""
    batch.server.stand_in.script(Fail("no", status=400), where=asking(3, 7, 11, 19), always=True)

    batch.run(ROWS, id_column="id")

    *_, table, where = log_of(log)
    assert table.splitlines() == [
        "Failed rows: 4",
        "rows  reason           such as               what to do",
        f"   4  BadRequestError  doc-3, doc-7, doc-11  {advice('BadRequestError')}",
    ]
    assert where == f"Report: {batch.directory}/report.html"


def test_a_batch_without_failed_rows_has_no_table(batch, log):
    """Only the address."""
    batch.run(ROWS)

    assert log_of(log) == [f"Report: {batch.directory}/report.html"]


def test_the_end_of_a_run_that_was_stopped(batch, log):
    """The rows are named, although the results that name them are not written yet."""
    stop = StopSignal()

    def end_soon(progress):
        if progress.done >= 10:
            stop.set("stopped by a test")

    batch.server.stand_in.script(Fail("no", status=400), where=asking(2, 3), always=True)
    batch.server.stand_in.script(Stall(), where=asking(29))
    batch.run(ROWS, id_column="id", stop=stop, on_progress=end_soon)

    assert "  BadRequestError  doc-2, doc-3  " in log_of(log)[0]


def test_the_end_of_a_batch_with_too_many_failed_rows(batch, log):
    """The table is there before the error ends the task."""
    batch.server.stand_in.script(Fail("no", status=400), where=asking(2), always=True)

    with pytest.raises(TooManyFailedError):
        batch.run(ROWS, failures=FailurePolicy(max_failed_rows=0))

    assert "  BadRequestError  row 2  " in log_of(log)[0]
