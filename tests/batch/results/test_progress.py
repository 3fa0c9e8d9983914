"""How far a batch is: counters, pace, and the line in the log."""

import io
import re

import pytest

from ollama_provider.batch.records import Outcome
from ollama_provider.batch.results.progress import Counters, Progress, ProgressBar, ProgressMeter


def read(meter, now, ok, **others):
    given = {"failed": 0, "reused": 0, "tokens": 0, "concurrency": 4, "state": "running"} | others
    return meter.read(now, ok=ok + given["reused"], asked=ok + given["failed"], **given)


def test_the_line():
    """As documented, so that programs may parse it."""
    line = Progress(
        done=4120,
        total=10_000,
        ok=4117,
        failed=3,
        reused=19,
        rows_per_second=2.14,
        tokens_per_second=212.4,
        concurrency=4,
        eta=102.0,
    ).line()

    assert line == "done=4120/10000 (41 %) ok=4117 failed=3 reused=19 rows/s=2.1 tok/s=212 concurrency=4 eta=1 min 42 s"
    assert re.fullmatch(r"done=\d+/\d+ \(\d+ %\) ([a-z/]+=\S+ )+eta=.+", line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.0, "0 s"),
        (0.44, "0.44 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (4_320, "1 h 12 min"),
        (93_784, "26 h 03 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_the_time_to_go(seconds, text):
    """As people say it: two units, of which the larger one tells most."""
    assert Progress(eta=seconds).line().endswith(f"eta={text}")


@pytest.mark.parametrize(("rate", "text"), [(0.0, "0"), (0.0123, "0.012"), (2.0, "2"), (9.96, "10"), (2140.4, "2140")])
def test_rows_a_second(rate, text):
    """Long answers come at a few rows a minute, and embeddings at thousands a second."""
    assert f" rows/s={text} " in Progress(rows_per_second=rate).line()


@pytest.mark.parametrize(("done", "text"), [(0, "0 %"), (199, "99 %"), (200, "100 %"), (201, "100 %")])
def test_the_percentage(done, text):
    """It is rounded down, and never over 100: the total of a shard is an estimate."""
    assert Progress(done=done, total=200).line().startswith(f"done={done}/200 ({text}) ok=")


def test_an_unknown_total():
    """It is a question mark. Neither percentage nor time left are known."""
    progress = read(ProgressMeter(0.0), 10.0, 5)

    assert (progress.total, progress.eta) == (None, None)
    assert "done=5/? ok=5 " in progress.line()


def test_the_pace_is_that_of_the_last_minute():
    """A slow beginning (the load of a model) is forgotten; reused rows do not count as pace."""
    meter = ProgressMeter(0.0, total=1000)
    for second in range(300):
        progress = read(meter, float(second), ok=max(0, second - 200), reused=100, tokens=10 * max(0, second - 200))

    assert progress.done == 199
    assert progress.rows_per_second == pytest.approx(1, rel=0.05)
    assert progress.tokens_per_second == pytest.approx(10, rel=0.05)
    assert progress.eta == pytest.approx(801, rel=0.05)


def test_nothing_left_is_no_time_to_go():
    """This holds also before the first request."""
    assert read(ProgressMeter(0.0, total=7), 0.0, 0, reused=7).eta == 0


def test_the_commonest_errors_come_first():
    """For a sentence in an error."""
    counters = Counters()
    assert counters.reasons() == "in an earlier run"
    for kind in ["B", "A", "A"]:
        counters.add(Outcome("", "failed", error={"class": kind, "text": ""}))
    counters.add(Outcome("", "ok", tokens=3, prompt_tokens=5))

    assert counters.reasons() == "A 2 times, B 1 times"
    assert (counters.tokens, counters.prompt_tokens) == (3, 5)


def test_the_bar():
    """It is drawn over itself, and the last one stays."""
    stream = io.StringIO()
    bar = ProgressBar(stream, width=4)
    bar.show(Progress(done=1, total=2))
    bar.show(Progress(done=2, total=2, state="complete"))

    first, second = stream.getvalue().split("\r")[1:]
    assert "[##..] done=1/2 (50 %)" in first
    assert "[####] done=2/2 (100 %)" in second
    assert second.endswith("\n")
    assert not first.endswith("\n")
