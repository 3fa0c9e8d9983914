"""A rehearsal, over real HTTP against a stand-in: what it asks, what it tells, and that the night is none the worse."""

import json
import threading
from dataclasses import replace
from typing import ClassVar

import pytest

from ollama_provider.api.errors import PullFailedError
from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import (
    BatchSpec,
    DirectoryBusyError,
    Embedding,
    FailurePolicy,
    InputError,
    Pace,
    StoppedError,
    StopSignal,
    Window,
    rehearsal_as_text,
    rehearse_batch,
    run_batch,
)
from ollama_provider.testing import Answer, Fail, Gate, Model, Stall
from ollama_provider.testing import Pace as Speed

ROWS = [{"id": f"r{number}", "text": f"text {number} " + "word " * (number % 37)} for number in range(300)]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class RowsOfQuery:
    """A query that counts how often it is run."""

    question: ClassVar = {"sql": "SELECT"}
    occasion = "night 1"
    fetched = 0

    def fetch(self):
        self.fetched += 1
        yield ROWS


@pytest.fixture
def rehearse(batch):
    """Rehearse in the directory of the batch."""

    def run(rows=ROWS, sample=20, *, stop=None, **spec):
        given = {"model": "llama3.2", "id_column": "id"} | spec
        return rehearse_batch(BatchSpec(rows=rows, **given), batch.settings, batch.directory, sample, stop=stop)

    return run


def asks(text):
    return lambda body: text in (body.get("prompt") or "")


class TestWhatIsAsked:
    def test_rows_from_all_over_the_input(self, rehearse, batch):
        """The first, the last, the shortest, the longest and random ones, each once; the prompts are the night's."""
        found = rehearse(prompt="Say {{ row.text }}")

        assert len(batch.asked) == 20
        assert [row.status for row in found.rows] == ["ok"] * 20
        why = {row.why: row.id for row in found.rows}
        assert (why["first"], why["last"], why["longest"]) == ("r0", "r299", "r110")  # the first is the shortest, too
        assert sorted(batch.asked) == sorted(f"Say {ROWS[int(row.id[1:])]['text']}" for row in found.rows)
        assert found.prompt == f"Say {ROWS[0]['text']}"
        assert (found.total, found.counted, found.looked_at) == (300, True, 300)

    def test_the_night_does_not_ask_them_again(self, rehearse, batch):
        """The answers have the same keys."""
        rehearse()

        summary = batch.run(ROWS, id_column="id")

        assert (summary.complete, summary.rows, summary.ok, summary.reused, summary.requests) == (
            True, 300, 300, 20, 280,
        )  # fmt: skip
        assert len(set(batch.asked)) == len(batch.asked) == 300
        assert [row["id"] for row in batch.results] == [row["id"] for row in ROWS]

    def test_a_second_rehearsal_asks_only_what_is_new(self, rehearse, batch):
        """It has the same rows, and tells the same."""
        first = rehearse()
        second = rehearse()

        assert len(batch.asked) == 20
        assert [row.fresh for row in second.rows] == [False] * 20
        assert [row.output for row in second.rows] == [row.output for row in first.rows]
        assert second.night is not None
        assert second.night.requests_at_a_time == first.night.requests_at_a_time

    def test_a_large_file(self, rehearse, batch, tmp_path):
        """Of which only blocks are read."""
        with (tmp_path / "rows.jsonl").open("w") as lines:
            for number in range(40_000):
                lines.write(json.dumps({"id": number, "text": f"text {number} " + "word " * 100}) + "\n")

        found = rehearse(tmp_path / "rows.jsonl")

        assert not found.counted
        assert found.total == pytest.approx(40_000, rel=0.02)
        assert len(batch.asked) == 20
        assert f"20 of about {found.total:,} rows" in rehearsal_as_text(found, texts=False)

    def test_a_query(self, rehearse, batch):
        """It is run once, for the rehearsal and for the night."""
        query = RowsOfQuery()

        found = rehearse(query)
        summary = batch.run(query, id_column="id")

        assert (found.total, summary.rows, summary.reused, query.fetched) == (300, 300, 20, 1)

    def test_several_servers(self, ollama_servers, tmp_path):
        """All of them take part, as in the night."""
        first, *others = [server.url for server in ollama_servers]
        for server in ollama_servers:
            server.stand_in.script(Speed(first_token=0.05), where=lambda body: bool(body.get("prompt")), always=True)
        settings = Settings(base_url=first, other_urls=tuple(others), max_attempts=1)

        found = rehearse_batch(BatchSpec(model="llama3.2", rows=ROWS), settings, tmp_path / "out")

        asked = [
            {body["prompt"] for seen in server.stand_in.requests if (body := seen.json or {}).get("prompt")}
            for server in ollama_servers
        ]
        assert all(asked)
        assert len(set.union(*asked)) == 20
        assert [row.status for row in found.rows] == ["ok"] * 20
        assert found.night is not None

    @pytest.mark.ollama(parallel=16)
    def test_as_many_at_a_time_as_there_are_slots(self, rehearse, ollama):
        """Four, and when these are answered without a wait, all the others."""
        gate = Gate()
        replies = [Speed(first_token=0.05)] * 4 + [Stall(until=gate)] * 16
        ollama.stand_in.script(*replies, where=lambda body: bool(body.get("prompt")))
        opening = threading.Thread(
            target=lambda: (
                ollama.stand_in.wait_until(lambda server: len(server.open_requests) == 16, seconds=60),
                gate.open(),
            )
        )
        opening.start()
        try:
            found = rehearse()
        finally:
            gate.open()
            opening.join()

        assert (found.night.requests_at_a_time, found.night.waited) == (16, False)

    def test_an_empty_input(self, rehearse, batch):
        """Has nothing to rehearse."""
        found = rehearse([])

        assert (found.rows, found.total, found.night) == ((), 0, None)
        assert batch.asked == []

    def test_chat_and_its_schema(self, rehearse, ollama):
        """The prompt is the messages."""
        found = rehearse(messages=[{"role": "user", "content": "Say {{ row.text }}"}], output_type=SCHEMA)

        assert [row.status for row in found.rows] == ["ok"] * 20
        assert set(json.loads(found.rows[0].output)) == {"n"}
        assert "  | user: Say text 0" in rehearsal_as_text(found, texts=True)

    @pytest.mark.ollama(models=[Model("emb", ("embedding",))])
    def test_vectors(self, rehearse):
        """They are not shown; a request is for several rows."""
        found = rehearse(model="emb", embedding=Embedding())

        assert [(row.status, row.output) for row in found.rows] == [("ok", None)] * 20
        assert found.night is not None


class TestTheDirectory:
    def test_it_does_not_look_like_a_finished_night(self, rehearse, batch):
        """No results, no manifest and no summary of the batch: only answers, and what is the rehearsal's own."""
        rehearse()

        names = {path.relative_to(batch.directory).parts[0] for path in batch.directory.rglob("*") if path.is_file()}
        assert names - {".lock"} == {"parts", "rehearsal", "report.html", "report.json"}
        kept = json.loads((batch.directory / "rehearsal/summary.json").read_text())
        assert (kept["rows"], kept["failed"], kept["prompt"]) == (300, 0, None)

    def test_a_stopped_night_goes_on_as_if_nothing_had_been(self, rehearse, batch, ollama):
        """What failed in its pass is not asked again by it; what it has answered is not asked by the rehearsal."""
        stop = StopSignal()
        ollama.stand_in.script(Fail("no", 400), where=asks("text 5 "), always=True)

        def after_some(progress):
            if progress.done >= 50:
                stop.set("morning")

        gate = Gate()
        ollama.stand_in.script(Stall(until=gate), where=asks("text 60 "), always=True)
        timer = threading.Timer(60, gate.open)
        timer.start()
        try:
            first = batch.run(ROWS, stop=stop, on_progress=after_some, concurrency=4, id_column="id")
        finally:
            gate.open()
            timer.cancel()
        assert not first.complete
        manifest = (batch.directory / "batch.json").read_bytes()

        found = rehearse()

        assert (batch.directory / "batch.json").read_bytes() == manifest
        assert found.total == 300
        before = len(batch.asked)
        summary = batch.run(ROWS, id_column="id")
        assert summary.complete
        assert summary.failed == 1
        assert not [prompt for prompt in batch.asked[before:] if "text 5 " in prompt]

    def test_a_finished_night_stays_finished(self, rehearse, batch):
        """Its results and its summary are not touched, and its next pass begins as it would have."""
        batch.run(ROWS, id_column="id")
        names = ("results.jsonl", "failed.jsonl", "summary.json", "batch.json", "progress.json", "history.json")
        before = {name: (batch.directory / name).read_bytes() for name in names}

        found = rehearse()

        assert {name: (batch.directory / name).read_bytes() for name in names} == before
        assert not any(row.fresh for row in found.rows)
        assert batch.run([*ROWS, {"id": "new", "text": "new"}], id_column="id").requests == 1

    def test_failed_rows_are_asked_again(self, rehearse, batch, ollama):
        """By the next rehearsal, and by the night: somebody may have mended what was wrong."""
        ollama.stand_in.script(Fail("no", 400), Fail("no", 400), where=asks("text 299 "))
        assert rehearse().failed == 1
        assert rehearse().failed == 1

        summary = batch.run(ROWS, id_column="id")

        assert (summary.ok, summary.failed) == (300, 0)

    def test_while_the_night_is_running(self, rehearse, batch, ollama):
        """It is refused: the directory is the night's."""
        gate = Gate()
        ollama.stand_in.script(Stall(until=gate), always=True, where=asks("text 3 "))
        night = threading.Thread(target=batch.run, args=(ROWS[:5],), kwargs={"id_column": "id"})
        night.start()
        try:
            ollama.stand_in.wait_until(lambda server: any("text 3 " in str(seen.json) for seen in server.requests))
            with pytest.raises(DirectoryBusyError):
                rehearse()
        finally:
            gate.open()
            night.join(60)

        assert len(batch.results) == 5

    def test_the_context_that_it_chose_is_the_nights(self, rehearse, batch):
        """So the model is loaded once, and a long row in the middle fits."""
        rows = [{"id": number, "text": "short"} for number in range(250)]
        rows[200]["text"] = "word " * 8000
        found = rehearse(rows)

        summary = batch.run(rows, id_column="id")

        assert found.context.num_ctx > 8192
        assert summary.provenance.num_ctx == found.context.num_ctx
        assert summary.failed == 0


class TestWhatIsTold:
    def test_rows_that_fail_do_not_end_it(self, rehearse, ollama):
        """Whatever the batch tolerates; the share of the rows that were not chosen for being odd is what to expect."""
        ollama.stand_in.script(Fail("the prompt kills me", 400), where=asks("text 299 "), always=True)

        found = rehearse(failures=FailurePolicy(max_failed_rows=0))

        assert found.failed == 1
        (failure,) = found.failures
        assert (failure.error, failure.count, failure.text) == ("BadRequestError", 1, failure.text)
        fair = [row for row in found.rows if row.represents_others]
        assert found.failing == 1 / len(fair)
        text = rehearsal_as_text(found, texts=False)
        assert "1 of 20: BadRequestError" in text

    def test_where_all_rows_fail(self, rehearse, ollama):
        """That is what it tells; a batch would have ended after twenty of them."""
        ollama.stand_in.script(Fail("no", 400), always=True, where=lambda body: bool(body.get("prompt")))

        found = rehearse(sample=60)

        assert (found.failed, found.failing, found.night) == (60, 1.0, None)
        assert "Time       not known" in rehearsal_as_text(found, texts=False)

    def test_broken_rows_and_bad_templates(self, rehearse, batch):
        """A row that cannot be read is a failed one; a column that no row has is refused at once."""
        found = rehearse([{"id": 1, "text": "a"}, 7, {"id": 3, "text": "b"}])

        assert [row.error_class for row in found.rows] == [None, "BrokenRow", None]
        with pytest.raises(InputError, match="'nothing'"):
            rehearse(prompt="{{ row.nothing }}")

    def test_the_context(self, rehearse, ollama):
        """Prompts are counted in tokens, of those that were asked and, by their lengths, of all others."""
        rows = [{"id": number, "text": "word " * (10 + 4 * (number % 200))} for number in range(1000)]

        found = rehearse(rows, options=Options(num_ctx=512, num_predict=50))

        assert found.context.num_ctx == 512
        assert 806 < found.context.needed < 900
        assert found.context.too_long == pytest.approx(0.37, abs=0.05)
        assert found.failing >= found.context.too_long
        assert "of the prompts do not fit" in rehearsal_as_text(found, texts=False)

    def test_answers_that_are_cut(self, rehearse, ollama):
        """They fail unless they are allowed, and are counted in either case."""
        ollama.stand_in.script(Answer("word " * 50, done_reason="length"), always=True,
                               where=lambda body: bool(body.get("prompt")))  # fmt: skip

        found = rehearse(options=Options(num_predict=50), failures=FailurePolicy(allow_cut=True))

        assert found.context.answers_cut == 1.0
        assert [row.status for row in found.rows] == ["ok"] * 20
        assert found.failing == 0.0

    def test_where_the_model_is(self, rehearse):
        """As /api/ps says."""
        found = rehearse()

        assert found.memory.size > 0
        assert found.memory.fits is (found.memory.in_vram >= found.memory.size)

    def test_the_window(self, rehearse):
        """It does not end the rehearsal; it is compared with how long the night takes from 22:00 on."""
        found = rehearse(window=Window(stop_at="06:00"))

        assert found.night.window == 8 * 3600
        assert found.night.fits
        assert "the window is open for 8 h 00 min, which is enough" in rehearsal_as_text(found, texts=False)

    def test_requests_per_minute(self, rehearse):
        """Are a limit of the night as well."""
        found = rehearse(sample=3, pace=Pace(requests_per_minute=6000))

        assert found.night.seconds >= 300 / 6000 * 60

    def test_as_plain_data(self, rehearse):
        """For XCom: with or without texts."""
        found = rehearse()

        with_texts = found.as_dict(prompt=True, answers=True)
        without = found.as_dict(prompt=False, answers=False)
        assert json.loads(json.dumps(with_texts))["sample"][0]["output"] == found.rows[0].output
        assert (without["prompt"], {row["output"] for row in without["sample"]}) == (None, {None})
        # As in the summary of a batch, for those who read either.
        assert {name: without[name] for name in ("complete", "reason", "rows", "ok", "failed")} == {
            "complete": False, "reason": "a rehearsal of 20 rows", "rows": 300, "ok": 20, "failed": 0,
        }  # fmt: skip

    def test_without_texts_there_are_none(self, rehearse, ollama):
        """Neither prompt nor answer."""
        ollama.stand_in.script("<quetzal>", always=True, where=lambda body: bool(body.get("prompt")))

        found = rehearse(prompt="axolotl {{ row.text }}")

        assert "axolotl" not in rehearsal_as_text(found, texts=False)
        assert "quetzal" not in rehearsal_as_text(found, texts=False)
        assert "axolotl" in rehearsal_as_text(found, texts=True)
        assert "quetzal" in rehearsal_as_text(found, texts=True)

    def test_a_terminal_obeys_no_row(self, rehearse, ollama):
        """Escapes become visible, in prompts, ids and answers."""
        ollama.stand_in.script("\x1b[2Jgone", always=True, where=lambda body: bool(body.get("prompt")))

        found = rehearse([{"id": "\x1b[31mred", "text": "\x1b]0;title\x07"}])

        assert "\x1b" not in rehearsal_as_text(found, texts=True)
        assert "␛[2Jgone" in rehearsal_as_text(found, texts=True)

    def test_the_report_has_it(self, rehearse, batch, ollama):
        """Before the night, and after it."""
        ollama.stand_in.script("<b>word</b>", always=True, where=lambda body: bool(body.get("prompt")))

        rehearse()
        before = (batch.directory / "report.html").read_text()
        batch.run(ROWS, id_column="id")
        after = (batch.directory / "report.html").read_text()

        assert "<title>Rehearsed: " in before
        assert "20 of 300 rows were asked beforehand." in before
        assert "<title>Complete: " in after
        assert "20 of 300 rows were asked beforehand." in after
        assert "<b>word</b>" not in before + after
        assert "&lt;b&gt;word&lt;/b&gt;" in before


class TestHowItEnds:
    def test_a_missing_model(self, rehearse):
        """Is refused at once, as by a batch."""
        with pytest.raises(PullFailedError):
            rehearse(model="nope")

    def test_shards(self, rehearse):
        """Have none of their own."""
        with pytest.raises(InputError, match="shard: "):
            rehearse(shard=(0, 2))

    def test_it_is_stopped(self, rehearse, ollama, batch):
        """What is there is kept and returned; before the first request there is nothing to return."""
        stop = StopSignal()
        gate = Gate()
        ollama.stand_in.script(Stall(until=gate), always=True, where=asks("text 299 "))

        def stop_it():
            ollama.stand_in.wait_until(
                lambda server: any(asks("text 299 ")(seen.json or {}) for seen in server.requests)
            )
            stop.set("enough")

        timer = threading.Thread(target=stop_it)
        timer.start()
        try:
            found = rehearse(stop=stop)
        finally:
            gate.open()
            timer.join()

        assert found.stopped
        assert 0 < sum(row.status == "ok" for row in found.rows) < 20
        with pytest.raises(StoppedError):
            rehearse(stop=stop)

    def test_a_batch_is_not_run_as_one(self, batch):
        """The two return different things."""
        with pytest.raises(InputError, match="rehearse_batch"):
            run_batch(BatchSpec(model="m", rows=["a"], mode="rehearse"), batch.settings, batch.directory)

    def test_the_mode_of_the_batch_does_not_count(self, rehearse):
        """Also a night that sends only failed rows is rehearsed as a whole."""
        assert replace(BatchSpec(model="m", rows=[]), mode="failed_only").mode == "failed_only"
        assert rehearse(mode="failed_only").failed == 0
