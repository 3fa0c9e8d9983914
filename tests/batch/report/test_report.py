"""report.html of real batches: what it says, and that nothing in it is more than text."""

import base64
import gc
import hashlib
import json
import logging
import re
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser

import pytest

from ollama_provider.api import errors
from ollama_provider.api.schemas import Options
from ollama_provider.batch import Embedding, FailurePolicy, Pace, StopSignal, TooManyFailedError
from ollama_provider.batch.report.advice import advice
from ollama_provider.batch.report.gather import Report, gather
from ollama_provider.batch.report.page import render, visible
from ollama_provider.batch.report.run_report import write_report
from ollama_provider.batch.store.lines import with_checksum
from ollama_provider.batch.store.storage import open_storage
from ollama_provider.testing import Answer, Fail, Gate, Model, Stall
from tests.docs.pages import ROOT

ROWS = [{"id": f"doc-{number}", "text": f"text {number}"} for number in range(30)]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CANARY = "answercanary"
#: Elements that need no end.
EMPTY = {"meta", "link", "br"}


class Page(HTMLParser):
    """What a browser would find in a page: elements, attributes and text. Fails if an element is not closed."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(content.decode("utf-8"))
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data


def page_of(batch):
    return Page((batch.directory / "report.html").read_bytes())


def gathered(batch):
    return gather(open_storage(batch.directory))


def ending(number):
    return lambda body: body.get("prompt", "").endswith(f"text {number}")


def about(text):
    return lambda body: text in json.dumps(body)


def test_a_complete_batch(batch):
    """Its numbers are those of the summary, and its good rows have their ids."""
    summary = batch.run(ROWS, id_column="id")

    report, page = gathered(batch), page_of(batch)
    assert (report.state, report.rows, report.ok, report.failed) == ("complete", 30, 30, 0)
    assert "All 30 rows have a good answer" in page.text
    assert report.provenance["digest"] in page.text
    assert len(report.good) == 20
    places = {(f"doc-{row.index}", row.id) for row in report.good}
    assert all(name == row_id for name, row_id in places)
    assert {row.why for row in report.good} >= {"first", "last", "random"}
    assert sum(sample.rows for sample in report.samples) == 30
    assert sum(sample.tokens for sample in report.samples) == summary.tokens
    assert [each.label for each in report.distributions] == [
        "Seconds a row",
        "Seconds in the server's queue",
        "Seconds before the first token",
        "Tokens read",
        "Tokens written",
    ]


def test_what_a_page_was_made_of_does_not_stay_in_memory(batch):
    """Not even until the garbage collector runs: a long batch writes its page again and again."""
    batch.run(ROWS, id_column="id")
    render(gathered(batch))  # templates are compiled once

    def reports():
        return sum(type(found) is Report for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = reports()  # of other tests
        render(gathered(batch))
        after = reports()
    finally:
        gc.enable()

    assert after == before


def test_what_failed(batch):
    """By reason, the most frequent first, with advice, id, attempts, and what the model said."""
    for number in (3, 4, 5):
        batch.server.stand_in.script(Answer("no JSON"), where=about(f"text {number}"), always=True)
    batch.server.stand_in.script(Fail("the model says no", status=400), where=about("text 7"), always=True)
    batch.server.stand_in.script({"n": 1}, where=about("text"), always=True)

    batch.run(ROWS, id_column="id", output_type=SCHEMA)

    often, once = gathered(batch).reasons
    assert (often.error, often.count, often.share) == ("InvalidOutputError", 3, 0.75)
    assert [(row.id, row.index, row.reply) for row in often.rows] == [
        (f"doc-{number}", number, "no JSON") for number in (3, 4, 5)
    ]
    assert (once.error, once.count) == ("BadRequestError", 1)
    page = page_of(batch)
    assert "4 of 30 rows failed" in page.text
    assert advice("InvalidOutputError") in page.text
    assert "the model says no" in page.text
    assert gathered(batch).ladder


def test_everything_is_shown_as_text(batch):
    """A reply with HTML, a script or terminal escapes does nothing; neither does an id, or an error of the server."""
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31mred\u202eback\x9b\u2028'\"&amp;"
    batch.server.stand_in.script(Answer(hostile), where=ending(1), always=True)
    batch.server.stand_in.script(Fail(hostile, status=400), where=ending(2), always=True)

    batch.run([{"id": hostile, "text": f"text {number}"} for number in range(4)], id_column="id")

    content, page = (batch.directory / "report.html").read_bytes(), page_of(batch)
    assert not {"script", "img", "iframe", "object", "a", "form"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert visible(hostile) in page.text
    assert "␛[31m" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", content.decode())


def test_it_loads_nothing_and_runs_nothing(batch):
    """The policy allows this style and nothing else; no address but that of an empty icon."""
    batch.run(ROWS)

    content, page = (batch.directory / "report.html").read_text(), page_of(batch)
    style = re.search("<style>(.*?)</style>", content, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(each["content"] for tag, each in page.elements if tag == "meta" and "http-equiv" in each)
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert [each[name] for _, each in page.elements for name in ("src", "href") if name in each] == ["data:,"]
    assert "url(" not in style
    assert "@import" not in style
    assert "style" not in {name for _, attributes in page.elements for name in attributes}


def test_it_can_be_read_aloud(batch):
    """A language, one title of the page, a name for each picture and section, a caption and headers for each table."""
    batch.run(ROWS)

    page = page_of(batch)
    tags = [tag for tag, _ in page.elements]
    assert ("html", {"lang": "en"}) in page.elements
    assert tags.count("h1") == 1
    assert all("aria-label" in each or "aria-hidden" in each for tag, each in page.elements if tag == "svg")
    ids = {each["id"] for _, each in page.elements if "id" in each}
    assert {each["aria-labelledby"] for tag, each in page.elements if tag == "section"} == ids
    assert tags.count("caption") == tags.count("table") > 0
    assert all("scope" in each for tag, each in page.elements if tag == "th")


def test_prompts_are_not_in_it(batch):
    """Neither those of rows nor their template, which may hold what is as secret."""
    for name in ("prompt", "system"):
        batch.server.stand_in.script("fine", path="generate", always=True)
        batch.run([{"text": "rowcanary"}], **{name: "templatecanary {{ row.text }}"})

        content = (batch.directory / "report.html").read_text()
        assert "canary" not in content


def test_more_failed_than_is_tolerated(batch):
    """The report says so in the words of the task."""
    batch.server.stand_in.script(Fail("no", status=400), where=ending(1), always=True)

    with pytest.raises(TooManyFailedError) as raised:
        batch.run(ROWS, failures=FailurePolicy(max_failed_rows=0))

    report = gathered(batch)
    assert (report.state, report.failed, report.rows) == ("failed", 1, 30)
    assert report.reason == str(raised.value)[:300]
    assert "1 failed" in page_of(batch).text


def test_a_run_that_cannot_begin(batch):
    """No server: the report is written all the same, with what to do."""
    batch.server.stop()

    with pytest.raises(errors.UnreachableError):
        batch.run(ROWS, failures=FailurePolicy(max_outage=0))

    report = gathered(batch)
    assert (report.state, report.ok, report.failed) == ("failed", 0, 0)
    assert errors.UnreachableError.advice in page_of(batch).text
    assert "No good row yet." in page_of(batch).text


def test_a_run_that_is_stopped_and_goes_on(batch):
    """Incomplete at first, with the rows so far; then complete, with both runs in one history."""
    stop = StopSignal()

    def end_soon(progress):
        if progress.done >= 5:
            stop.set("stopped by a test")

    batch.server.stand_in.script(Stall(), where=ending(29))
    first = batch.run(ROWS, stop=stop, on_progress=end_soon)
    report = gathered(batch)
    assert (report.state, report.reason) == ("incomplete", "stopped by a test")
    assert report.ok == first.ok == report.outcomes
    assert f"{first.ok} of 30 rows done" in page_of(batch).text

    batch.run(ROWS)
    report = gathered(batch)
    assert report.state == "complete"
    assert [event.what for event in report.events if event.what != "outage"] == ["began", "ended", "began", "ended"]
    assert "another run began" in page_of(batch).text
    assert sum(sample.rows for sample in report.samples) == 30


def test_a_new_pass_has_a_history_of_its_own(batch):
    """A directory that is used every night shows the last one."""
    batch.run(ROWS[:10])
    batch.run(ROWS[:12])

    report = gathered(batch)
    assert [event.what for event in report.events] == ["began", "ended"]
    assert sum(sample.rows for sample in report.samples) == 2
    assert report.reused == 10


def test_a_report_that_cannot_be_written_fails_no_run(batch, caplog):
    """The results are what counts."""
    for name in ("report.html", "history.json"):
        (batch.directory / name).mkdir(parents=True)

    with caplog.at_level(logging.WARNING):
        assert batch.run(ROWS).complete

    assert len(batch.results) == 30
    assert "The report cannot be written" in caplog.text
    assert "The history for the report cannot be written" in caplog.text


def test_an_unexpected_error_fails_no_run_either(batch, caplog, monkeypatch):
    """Its own text may quote an answer, so it is not logged."""

    def broken(storage, journal):
        raise ValueError(CANARY)

    monkeypatch.setattr("ollama_provider.batch.report.run_report.gather", broken)
    with caplog.at_level(logging.WARNING):
        assert batch.run(ROWS).complete

    assert "an unexpected ValueError" in caplog.text
    assert CANARY not in caplog.text


class TestShards:
    def test_each_is_beside_the_others(self, batch):
        """Also before the merge; the history is that of all, and the merge keeps it."""
        batch.server.stand_in.script(Fail("no", status=400), where=ending(7), always=True)
        for number in (0, 1):
            batch.run(ROWS, shard=(number, 2))
        assert not (batch.directory / "report.html").exists()

        before = gathered(batch)
        assert (before.state, before.reason) == ("incomplete", "all shards are complete, and are not merged yet")
        assert [share.name for share in before.shards] == ["0 of 2", "1 of 2"]
        assert {share.state for share in before.shards} == {"complete"}
        assert (before.rows, before.ok, before.failed, before.left) == (30, 29, 1, 0)
        write_report(open_storage(batch.directory))
        assert "0 of 2" in page_of(batch).text

        batch.run(ROWS, mode="merge")

        report = gathered(batch)
        assert (report.state, report.rows, report.ok, report.failed) == ("complete", 30, 29, 1)
        assert report.shards == before.shards
        assert sum(share.rows for share in report.shards) == 30
        assert sum(share.failed for share in report.shards) == 1
        assert sum(sample.rows for sample in report.samples) == 30
        assert sum(sample.tokens for sample in report.samples) == sum(row["tokens"] or 0 for row in batch.results)
        assert [(share["server"], share["rows"]) for share in report.servers] == [(batch.server.url, 30)]
        assert report.as_dict()["shards"][0]["name"] == "0 of 2"
        assert "What each server did for all shards" in page_of(batch).text
        assert "another run began" not in page_of(batch).text
        assert list((batch.directory / "shards").glob("*.history.json")) == []

    def test_one_that_is_missing(self, batch):
        """What is not known of it is not known of all."""
        batch.run(ROWS, shard=(1, 3))

        report = gathered(batch)
        assert (report.state, report.reason) == ("incomplete", "1 of 3 shards are complete")
        assert (report.rows, report.left, report.seconds_left) == (None, None, None)
        assert report.ok == len(batch.asked)

    def test_one_that_was_killed_and_one_that_failed(self, batch):
        """A killed one cannot be told from one that runs."""
        batch.server.stand_in.script(Fail("no", status=400), where=lambda body: bool(body.get("prompt")), times=1)
        with pytest.raises(TooManyFailedError):
            batch.run(ROWS, shard=(0, 2), failures=FailurePolicy(max_failed_rows=0))
        failed = gathered(batch)
        assert (failed.state, failed.reason[:14]) == ("failed", "shard 0 of 2: ")

        batch.run(ROWS, shard=(1, 2))
        history = batch.directory / "shards/1of2.history.json"
        content = json.loads(history.read_text())
        history.write_text(json.dumps(content | {"events": content["events"][:-1]}))
        assert gathered(batch).state == "running"

    def test_a_whole_run_that_is_newer_counts(self, batch):
        """And the one before the shards does not."""
        batch.run(ROWS[:5])
        batch.run(ROWS, shard=(0, 2))
        assert gathered(batch).reason == "1 of 2 shards are complete"

        batch.run(ROWS)

        assert (gathered(batch).state, gathered(batch).shards) == ("complete", ())

    def test_they_keep_their_prompts_for_the_merge(self, batch):
        """Of rows that the merge does not ask."""
        for number in (0, 1):
            batch.run(ROWS, shard=(number, 2), report_prompts=True)
        batch.run(ROWS, mode="merge", report_prompts=True)

        assert [row.prompt for row in gathered(batch).good].count(None) == 0
        assert list((batch.directory / "shards").glob("*.prompts.json")) == []

    def test_a_shard_whose_files_are_damaged(self, batch):
        """It has a line with what is known."""
        for number in (0, 1):
            batch.run(ROWS, shard=(number, 2))
        for kind in ("history", "summary", "progress", "prompts"):
            (batch.directory / f"shards/1of2.{kind}.json").write_text("{")

        write_report(open_storage(batch.directory))

        assert [share.state for share in gathered(batch).shards] == ["complete", "unknown"]
        assert "1 of 2" in page_of(batch).text


@pytest.mark.ollama(parallel=1, tokens_per_second=500)
def test_rows_that_wait_for_the_server(batch):
    """Eight requests at a time at a server that answers one: most of their seconds are seconds in its queue."""
    batch.run(ROWS, concurrency=8)

    shown = {each.label: each for each in gathered(batch).distributions}
    queued, seconds = shown["Seconds in the server's queue"], shown["Seconds a row"]
    assert queued.median > seconds.median / 2
    assert all(row["queue_seconds"] <= row["seconds"] for row in batch.results)
    assert "Seconds in the server's queue" in page_of(batch).text


def test_parts_of_an_earlier_version_have_no_seconds_in_the_queue(batch):
    """They are read without it, and nothing is shown in its place."""
    batch.run(ROWS[:3])
    part = batch.one_part()
    lines = [re.sub(rb'"queue_seconds":[^,]+,', b"", line[:-20]) for line in part.read_bytes().splitlines()]
    part.write_bytes(b"".join(map(with_checksum, lines)))

    report = gathered(batch)
    assert report.ok == 3
    assert "Seconds in the server's queue" not in {each.label for each in report.distributions}


@pytest.mark.ollama(models=[Model("emb", ("embedding",), embedding_length=8)])
def test_vectors(batch):
    """Parquet has no lines, so index and id are not there; a vector is nothing to read."""
    batch.run(ROWS, model="emb", embedding=Embedding(), id_column="id")

    report = gathered(batch)
    assert (report.state, report.ok) == ("complete", 30)
    assert {row.text for row in report.good} == {"a vector"}
    assert "a vector" in page_of(batch).text


def test_equal_rows_and_rows_of_two_passes_count_once(batch):
    """A key has one line that counts: the good one, however often it failed before."""
    batch.server.stand_in.script(Fail("no", status=400), where=ending(1), times=1)
    rows = [*ROWS[:3], ROWS[1]]
    batch.run(rows)
    assert gathered(batch).reasons[0].count == 2
    batch.run(rows)

    report = gathered(batch)
    assert (report.ok, report.outcomes, report.reasons) == (4, 3, ())


def test_the_value_is_plain_data(batch):
    """A program can store it, and a page elsewhere be made of it."""
    batch.run(ROWS, id_column="id")
    report = gathered(batch)

    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    assert report.as_dict()["good"][0]["id"] == "doc-0"


def test_settings_say_what_differs_from_the_defaults(batch):
    """Those of groups by their full name."""
    batch.run(ROWS, id_column="id", max_attempts=7)

    changed = {
        setting.name: (setting.value, setting.default) for setting in gathered(batch).settings if setting.changed
    }
    assert changed["id_column"] == ("id", "")
    assert changed["failures.max_attempts"] == ("7", "3")
    assert "pace.report_every" not in changed


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"rows": "thirty", "ok": []}',
        b'{"total": 30, "done": "all", "servers": 3}',
    ],
)
@pytest.mark.parametrize("name", ["summary.json", "progress.json", "history.json"])
def test_a_damaged_file_leaves_something_out(batch, name, damage):
    """The page can be made again of any directory."""
    batch.run(ROWS)
    (batch.directory / name).write_bytes(damage)

    write_report(open_storage(batch.directory))

    assert "30" in page_of(batch).text
    assert gathered(batch).outcomes == 30


def test_a_damaged_part_leaves_its_rows_out(batch):
    """As in a run, which asks them again."""
    batch.run(ROWS)
    part = batch.one_part()
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"garbage\n" + b"".join(lines[1:10]) + lines[10][:50] + b"".join(lines[11:]))

    assert gathered(batch).outcomes == 28
    assert gathered(batch).damaged == 2
    write_report(open_storage(batch.directory))
    assert "2 damaged lines are left out" in page_of(batch).text


def test_a_slow_refresh_does_not_outlive_its_run(batch, monkeypatch):
    """Another run may have the directory then."""
    begun, ended = Gate(), []

    def refresh(*_):
        begun.open()
        time.sleep(0.5)
        ended.append(True)

    monkeypatch.setattr("ollama_provider.batch.report.run_report.RunReport.refresh", refresh)
    batch.server.stand_in.script(Stall(until=begun), where=ending(29))

    batch.run(ROWS, pace=Pace(report_every=0.1))

    assert ended
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("batch-report")]


def test_it_is_refreshed_while_the_batch_runs(batch):
    """It says where the batch is, and that it runs; at the end it is written once more."""
    gate, seen = Gate(), []
    batch.server.stand_in.script(Stall(until=gate), where=ending(29))

    def look(progress):
        page = batch.directory / "report.html"
        if page.exists() and "29 of 30 rows done" in (text := page_of(batch).text):
            seen.append(text)
            gate.open()

    batch.run(ROWS, on_progress=look, pace=Pace(report_every=0.1))

    assert "Running" in seen[0]
    assert "29 of 30 rows done" in seen[0]
    assert "It ends at about" in seen[0]
    assert "All 30 rows have a good answer" in page_of(batch).text


def test_a_refresh_that_fails_is_tried_again(batch, monkeypatch):
    """Here each second time; the batch does not notice."""
    made, gate = [], Gate()
    batch.server.stand_in.script(Stall(until=gate), where=ending(29))

    def sometimes(storage, journal):
        made.append(None)
        if len(made) % 2:
            raise ValueError(CANARY)
        return gather(storage, journal)

    def look(progress):
        if len(made) > 3:
            gate.open()

    monkeypatch.setattr("ollama_provider.batch.report.run_report.gather", sometimes)
    assert batch.run(ROWS, on_progress=look, pace=Pace(report_every=0.1)).complete


class TestCommand:
    def report(self, directory):
        command = [sys.executable, "-m", "ollama_provider.batch", "--report", str(directory)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def test_it_makes_the_page_anew(self, batch):
        """Nothing else is needed: no server, no rows."""
        batch.run(ROWS)
        page = batch.directory / "report.html"
        before = page.read_text()
        page.unlink()

        done = self.report(batch.directory)

        assert (done.returncode, done.stdout.strip()) == (0, str(page)), done.stderr
        made = re.compile("Made .* by")
        assert made.sub("", page.read_text()) == made.sub("", before)

    def test_a_directory_of_an_earlier_version(self, batch):
        """It has no history."""
        batch.run(ROWS)
        (batch.directory / "history.json").unlink()

        assert self.report(batch.directory).returncode == 0
        assert "Nothing was measured." in page_of(batch).text

    def test_what_is_no_batch_is_left_alone(self, tmp_path):
        """Neither made nor written into."""
        for directory in (tmp_path, tmp_path / "none"):
            done = self.report(directory)
            assert (done.returncode, done.stderr.strip()) == (1, f"InputError: There is no batch in {directory}.")
        assert list(tmp_path.iterdir()) == []


def test_each_reason_of_the_docs_has_its_advice():
    """A reader of the page needs no table elsewhere."""
    table = (ROOT / "docs/operate.md").read_text().partition("| `error.class` |")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`([A-Z]\w+)`", line.split(" | ")[0])]

    assert len(named) > 8
    assert [name for name in named if not advice(name)] == []
    assert advice("NoSuchClass") == ""


class TestPrompts:
    """With report_prompts the report shows the prompts of the rows that it shows."""

    def prompts_of(self, batch):
        report = gathered(batch)
        failed = [row for reason in report.reasons for row in reason.rows]
        return {row.key: row.prompt for row in (*report.good, *failed)}

    def test_all_rows_that_are_shown_have_theirs(self, batch):
        """Good ones and failed ones, in a batch with more of both than are shown."""
        batch.server.stand_in.script(
            Fail("no", status=400), where=lambda body: body.get("prompt", "").endswith("7"), always=True
        )
        rows = [{"id": number, "text": f"<b>text {number}"} for number in range(200)]

        batch.run(rows, prompt="Of {{ row.text }}", id_column="id", report_prompts=True)

        report, page = gathered(batch), page_of(batch)
        assert len(report.good) == 20
        assert {row.why for row in report.good} == {"first", "longest", "slowest", "last", "random"}
        for row in (*report.good, *report.reasons[0].rows):
            assert row.prompt == f"Of <b>text {row.id}"
            assert row.prompt in page.text
        assert {row.id % 10 for row in report.reasons[0].rows} == {7}
        assert len(report.reasons[0].rows) == 10

    def test_without_it_they_go_away(self, batch):
        """Those of an earlier run are neither shown nor kept."""
        batch.server.stand_in.script("fine", path="generate", always=True)
        batch.run(ROWS, prompt="promptcanary {{ row.text }}", report_prompts=True)
        assert "promptcanary" in (batch.directory / "report.html").read_text()

        batch.run(ROWS, prompt="promptcanary {{ row.text }}")

        assert not (batch.directory / "prompts.json").exists()
        assert "promptcanary" not in (batch.directory / "report.html").read_text()

    def test_a_run_that_goes_on_keeps_them(self, batch):
        """And the command makes the page anew with them: they do not come from the input."""
        stop = StopSignal()

        def end_soon(progress):
            if progress.done >= 5 and not batch.server.stand_in.unused:  # else the next run would wait
                stop.set("stopped by a test")

        batch.server.stand_in.script(Stall(), where=ending(29))
        batch.run(iter(ROWS), stop=stop, on_progress=end_soon, report_prompts=True)
        assert all(self.prompts_of(batch).values())

        batch.run(iter(ROWS), report_prompts=True)

        assert len(found := self.prompts_of(batch)) == 20
        assert all(found.values())
        write_report(open_storage(batch.directory))
        assert page_of(batch).text.count("text 0") > 1

    def test_rows_that_were_asked_before_have_none(self, batch):
        """Their prompts were not kept. They are shown where there are too few others."""
        batch.run(ROWS)
        batch.run([*ROWS, {"id": "new", "text": "a new text"}], id_column="id", report_prompts=True)

        assert [row.prompt for row in gathered(batch).good if row.prompt] == ["a new text"]
        assert len(gathered(batch).good) == 20

    def test_messages_of_a_chat_are_readable(self, batch):
        """With their roles, as a person would write them down."""
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say „{{ row.text }}“"}]
        batch.run(ROWS[:1], messages=messages, report_prompts=True)

        assert set(self.prompts_of(batch).values()) == {"system: Be brief.\n\nuser: Say „text 0“"}

    def test_a_row_without_a_prompt(self, batch):
        """It could not be rendered, so there is none to show."""
        batch.run([{"text": "a"}, {"text": " "}], report_prompts=True)

        assert sorted(self.prompts_of(batch).values(), key=str) == [None, "a"]

    def test_only_their_beginnings_are_kept(self, batch):
        """However long they are."""
        batch.run(["x" * 100_000], report_prompts=True, options=Options(num_ctx=131_072))

        assert set(self.prompts_of(batch).values()) == {"x" * 1000 + " …"}
        assert (batch.directory / "prompts.json").stat().st_size < 20_000

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b'{"format":9,"pass_number":1,"good":{},"failed":{}}',
                    b'{"format":1,"pass_number":1,"good":{"odd":[]},"failed":{}}'],
    )  # fmt: skip
    def test_a_damaged_file_leaves_them_out(self, batch, content):
        """The page is made without them."""
        batch.run(ROWS, report_prompts=True)
        (batch.directory / "prompts.json").write_bytes(content)

        write_report(open_storage(batch.directory))

        assert set(self.prompts_of(batch).values()) == {None}
