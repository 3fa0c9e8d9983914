"""What a batch does, over real HTTP against a stand-in."""

import datetime as dt
import decimal
import json
import logging
import threading

import pytest

from ollama_provider.api.errors import AuthenticationError, ContextLengthError, InvalidRequestError, UnsupportedError
from ollama_provider.api.schemas import Options
from ollama_provider.batch import FailurePolicy, InputError, ModelChangedError, StopSignal, TooManyFailedError
from ollama_provider.testing import Answer, Cut, Fail, Model, Pace, Respond, Stall


def texts(count):
    return [f"text {number}" for number in range(count)]


def asks(prompt):
    return lambda body: body.get("prompt") == prompt


def test_results_are_in_the_order_of_the_input(batch, ollama):
    """Whatever order the answers came in, and with the ids that were asked for."""
    rows = [{"id": f"r{number}", "text": f"text {number}"} for number in range(50)]
    for number in range(0, 50, 7):
        ollama.stand_in.script((f"slow {number}", Pace(first_token=0.05)), where=asks(f"text {number}"))

    summary = batch.run(rows, id_column="id", concurrency=8)

    assert summary.complete
    assert (summary.rows, summary.ok, summary.failed, summary.requests) == (50, 50, 0, 50)
    assert [row["index"] for row in batch.results] == list(range(50))
    assert [row["id"] for row in batch.results] == [f"r{number}" for number in range(50)]
    assert batch.results[7]["output"] == "slow 7"
    assert batch.failed == []


def test_a_result_says_how_it_was_made(batch):
    """Everything it takes to explain a number a year later."""
    summary = batch.run(["a"], options=Options(seed=7, num_ctx=2048))

    (row,) = batch.results
    assert list(row)[:6] == ["key", "index", "id", "status", "output", "error"]
    assert (row["index"], row["id"], row["status"], row["error"]) == (0, None, "ok", None)
    assert row["model"] == "llama3.2"
    assert row["digest"] == batch.server.stand_in.model("llama3.2").digest
    assert row["server"] == batch.server.url
    assert row["server_version"] == batch.server.stand_in.version
    assert (row["seed"], row["num_ctx"], row["attempts"], row["done_reason"]) == (7, 2048, 1, "stop")
    assert (row["prompt_cut"], row["answer_cut"]) == (False, False)
    assert row["tokens"] > 0
    assert row["prompt_tokens"] > 0
    assert row["seconds"] >= 0
    assert len(row["options_hash"]) == 16
    assert json.loads((batch.directory / "summary.json").read_text()) == json.loads(summary.as_json())


def test_what_is_sent(batch, ollama):
    """System, options and reasoning for the whole run; never a num_predict that the user did not set."""
    batch.run(["a"], system="Be brief.", prompt="Say {{ row.text }}", keep_alive="10m", options=Options(seed=1))

    (request,) = [seen.json for seen in ollama.stand_in.requests if seen.json and seen.json.get("prompt")]
    assert request == {
        "model": "llama3.2",
        "prompt": "Say a",
        "system": "Be brief.",
        "options": {"num_ctx": 4096, "seed": 1},
        "keep_alive": "10m",
        "think": False,
        "truncate": False,
        "stream": True,
    }


def test_a_prompt_file(batch, tmp_path):
    """A path as prompt is read as a template."""
    (tmp_path / "prompt.txt").write_text("From a file: {{ row.text }}\n")

    batch.run(["a"], prompt=tmp_path / "prompt.txt")

    assert batch.asked == ["From a file: a"]
    with pytest.raises(InputError, match=r"prompt file .*missing\.txt cannot be read"):
        batch.run(["a"], prompt=tmp_path / "missing.txt")


def test_three_new_rows_are_three_requests(batch):
    """The next run requests rows without a good result. Rows may be added, removed and moved."""
    batch.run(texts(20))
    before = len(batch.asked)

    summary = batch.run(["new 1", *reversed(texts(10)), "new 2", "new 3"])

    assert sorted(batch.asked[before:]) == ["new 1", "new 2", "new 3"]
    assert (summary.rows, summary.ok, summary.reused) == (13, 13, 10)
    assert len(batch.results) == 13
    assert 'beginning with "text 9"' in batch.results[1]["output"]


def test_nothing_new_is_no_request_and_loads_no_model(batch, ollama):
    """The next run does not even load the model."""
    batch.run(texts(5))
    results = (batch.directory / "results.jsonl").read_bytes()
    ollama.stand_in.restart()
    loads = len(ollama.stand_in.loads)

    summary = batch.run(texts(5))

    assert (summary.ok, summary.reused, summary.requests) == (5, 5, 0)
    assert len(ollama.stand_in.loads) == loads
    assert (batch.directory / "results.jsonl").read_bytes() == results


def test_duplicate_rows_are_asked_once_and_written_each_time(batch):
    """Ten rows of two texts are two requests and ten results."""
    summary = batch.run([{"id": number, "text": f"text {number % 2}"} for number in range(10)], id_column="id")

    assert sorted(batch.asked) == ["text 0", "text 1"]
    assert (summary.rows, summary.ok, summary.reused) == (10, 10, 8)
    assert [row["id"] for row in batch.results] == list(range(10))
    assert len({row["key"] for row in batch.results}) == 2


def test_duplicates_of_a_row_that_fails(batch, ollama):
    """They fail with it, each in its place."""
    ollama.stand_in.script(Fail("the prompt kills me", 400), where=asks("bad"), always=True)

    summary = batch.run(["bad", "good", "bad"])

    assert (summary.ok, summary.failed, summary.reused) == (1, 2, 0)
    assert [row["status"] for row in batch.results] == ["failed", "ok", "failed"]
    assert [row["index"] for row in batch.failed] == [0, 2]


def test_an_empty_input_is_a_complete_empty_result(batch, ollama, tmp_path):
    """Nothing to do is done at once, also when the server is not there."""
    (tmp_path / "rows.jsonl").write_text("")
    ollama.stop()

    for rows in ([], tmp_path / "rows.jsonl"):
        summary = batch.run(rows)
        assert (summary.complete, summary.rows) == (True, 0)
        assert batch.results == batch.failed == []
        assert batch.lines("progress.json")[0]["done"] == 0


@pytest.mark.ollama(models=[Model("big", context_length=10_000_000)])
def test_rows_of_one_byte_and_of_five_megabytes(batch, ollama):
    """Sizes do not matter, and a long answer comes back whole."""
    ollama.stand_in.script("y" * 500_000, where=asks("a"))
    ollama.stand_in.script("short", where=asks("b" * 5_000_000))

    batch.run(["a", "b" * 5_000_000, "c"], options=Options(num_ctx=8_000_000), model="big")

    assert [row["status"] for row in batch.results] == ["ok"] * 3
    assert [row["output"] for row in batch.results][:2] == ["y" * 500_000, "short"]


def test_values_that_json_does_not_know(batch):
    """Dates, decimals, bytes and NaN as ids and in prompts: the same in every run."""
    rows = [
        {"id": dt.date(2026, 11, 22), "text": decimal.Decimal("1.10")},
        {"id": decimal.Decimal("1.10"), "text": dt.datetime(2026, 11, 22, 6, 30, tzinfo=dt.UTC)},
        {"id": b"\x00\xff", "text": "ü".encode()},
        {"id": float("nan"), "text": float("nan")},
        {"id": None, "text": float("inf")},
    ]

    batch.run(rows, id_column="id")
    summary = batch.run(rows, id_column="id")

    assert batch.asked == ["1.10", "2026-11-22 06:30:00+00:00", "ü", "inf"]
    assert [row["id"] for row in batch.results] == ["2026-11-22", "1.10", "00ff", None, None]
    assert (summary.reused, summary.failed) == (4, 1)
    assert "null" in batch.failed[0]["error"]["text"]


def strict(line):
    """Return a line of JSON as a reader sees it that takes nothing else."""

    def refuse(name):
        raise ValueError(name)

    found = json.loads(line, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()  # refuses half a surrogate pair
    return found


ODD_IDS = {
    "half \ud83d": r"half \ud83d",
    "whole \U0001f600 and half \udc00": "whole \U0001f600 and half " + r"\udc00",
    r"text \ud83d": r"text \ud83d",
    float("inf"): None,
    10**30: 10**30,
}


def test_ids_are_strict_json_whatever_they_are(batch):
    """An id comes from the input, so it never fails a row; what JSON cannot say of it is said in its own words."""
    nested = [[float("nan")], {"a": "\ud83d"}, {(1, 2): 3}, [[]], 10**5000]
    ids = [*ODD_IDS, *nested]

    batch.run([{"id": each, "text": f"t{number}"} for number, each in enumerate(ids)], id_column="id")

    lines = (batch.directory / "results.jsonl").read_bytes().splitlines()
    found = [strict(line)["id"] for line in lines]
    assert found[: len(ODD_IDS)] == list(ODD_IDS.values())
    assert found[len(ODD_IDS) :] == [
        "[nan]",
        r"{'a': '\ud83d'}",
        "{(1, 2): 3}",
        [[]],
        "a value of type int that has no text",
    ]


@pytest.mark.parametrize("old", [False, True], ids=["with checksums", "of an earlier version"])
def test_damaged_lines_are_counted_and_their_rows_asked_again(batch, caplog, old):
    """Ten zeroed bytes in the middle of good lines never come into the results."""
    batch.run(texts(30))
    wanted = batch.results
    part = batch.one_part()
    lines = part.read_bytes().splitlines(keepends=True)
    if old:
        lines = [line[: line.rindex(b',"crc32"')] + b"}\n" for line in lines]
        part.unlink()
        part = part.with_name("0001-0001-000001.jsonl")
    for number in (3, 17):
        lines[number] = lines[number][:60] + bytes(10) + lines[number][70:]
    part.write_bytes(b"".join(lines))
    before = len(batch.asked)

    summary = batch.run(texts(30))

    assert summary.complete
    assert "2 damaged lines" in caplog.text
    assert len(batch.asked) - before == 2
    assert [row["output"] for row in batch.results] == [row["output"] for row in wanted]
    assert b"\0" not in (batch.directory / "results.jsonl").read_bytes()
    assert all("crc32" not in row for row in batch.results)
    batch.run(texts(30))
    assert len(batch.asked) - before == 2


def test_line_breaks_of_all_kinds_stay_within_their_line(batch, ollama):
    """A reader may split the results at whatever Python calls a line break."""
    answer = "a\x85b\u2028c\u2029d\x0be\x1cf\rg\nh"
    ollama.stand_in.script(answer, where=asks("text"))

    batch.run(["text"])

    text = (batch.directory / "results.jsonl").read_text(encoding="ascii")
    assert len(text.splitlines()) == 1
    assert json.loads(text)["output"] == answer


class TestFailures:
    def test_a_bad_row_is_sent_again_last_and_then_fails(self, batch, ollama):
        """It is tried three times, the others are done before its second attempt."""
        ollama.stand_in.script(
            Fail("llama runner process has terminated: signal: killed"), where=asks("text 0"), times=3
        )

        summary = batch.run(texts(5), concurrency=1)

        assert batch.asked == ["text 0", "text 1", "text 2", "text 3", "text 4", "text 0", "text 0"]
        assert (summary.ok, summary.failed, summary.requests) == (4, 1, 7)
        (failed,) = batch.failed
        assert (failed["index"], failed["status"], failed["output"], failed["attempts"]) == (0, "failed", None, 3)
        assert failed["error"]["class"] == "RunnerError"
        assert summary.errors == {"RunnerError": 1}

    def test_a_crash_of_the_model_fails_only_the_row_that_causes_it(self, batch, ollama):
        """The other rows in flight are sent once more, and are good."""
        crash = Fail("an error was encountered while running the model: unexpected EOF", after=1)
        ollama.stand_in.script(crash, where=asks("text 3"), always=True)
        innocent = {"text 0", "text 1", "text 2"}
        ollama.stand_in.script(crash, where=lambda body: body.get("prompt") in innocent, times=3)

        summary = batch.run(texts(20), concurrency=4)

        assert (summary.ok, summary.failed) == (19, 1)
        assert [row["index"] for row in batch.failed] == [3]

    def test_a_passing_failure_leaves_no_trace_but_the_attempts(self, batch, ollama):
        """The second attempt counts."""
        ollama.stand_in.script(Cut(after=2), where=asks("text 1"))

        batch.run(texts(3))

        assert [row["attempts"] for row in batch.results] == [1, 2, 1]

    def test_no_failed_row_is_tolerated_unless_it_was_said(self, batch, ollama):
        """All other rows are answered and written, and a retry of the task requests only the failed ones."""
        ollama.stand_in.script(Fail("no", 400), where=asks("text 1"))

        with pytest.raises(TooManyFailedError, match="1 of 5 rows failed") as raised:
            batch.run(texts(5), failures=FailurePolicy(retry_delay=0))

        assert raised.value.retryable
        assert raised.value.summary.ok == 4
        assert len(batch.results) == 5
        summary = batch.run(texts(5), failures=FailurePolicy(retry_delay=0))
        assert (summary.ok, summary.reused, summary.requests) == (5, 4, 1)
        assert batch.failed == []

    def test_a_batch_in_which_everything_fails_stops_early(self, batch, ollama):
        """After twenty failed rows the other rows are not requested; the next run requests all again."""
        ollama.stand_in.script(Fail("no", 400), always=True, where=lambda body: body.get("prompt"))

        for tries in (1, 2):
            with pytest.raises(TooManyFailedError, match=r"BadRequestError 2. times"):
                batch.run(texts(1000), failures=FailurePolicy(max_failed_ratio=0.5, retry_delay=0), concurrency=4)
            assert batch.asked.count("text 0") == tries
            assert len(set(batch.asked)) < 40
        assert not (batch.directory / "summary.json").exists()

    def test_it_does_not_stop_early_when_rows_of_an_earlier_run_were_good(self, batch, ollama):
        """Thirty new rows fail first, and the ones behind them are requested all the same."""
        batch.run(["good before"])
        ollama.stand_in.script(
            Fail("no", 400), always=True, where=lambda body: (body.get("prompt") or "").startswith("text")
        )

        summary = batch.run(["good before", *texts(30), "good after"], concurrency=1)

        assert (summary.ok, summary.reused, summary.failed) == (2, 1, 30)

    def test_a_repair_asks_the_failed_rows_and_nothing_else(self, batch, ollama):
        """mode="failed_only" leaves good rows and new rows alone, and says so."""
        ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") in {"text 1", "text 3"}, times=2)
        batch.run(texts(5))
        before = len(batch.asked)

        summary = batch.run([*texts(5), "new"], mode="failed_only")

        assert sorted(batch.asked[before:]) == ["text 1", "text 3"]
        assert (summary.complete, summary.ok, summary.reused, summary.skipped, summary.left) == (False, 5, 3, 1, 1)
        assert [row["index"] for row in batch.results] == [0, 1, 2, 3, 4]
        assert batch.run(texts(5), mode="failed_only").complete

    def test_a_fault_of_the_setup_stops_at_once(self, batch, ollama):
        """401 for one row is 401 for all; what was answered is kept."""
        ollama.stand_in.script(Respond(401, {"error": "unauthorized"}), where=asks("text 5"))

        with pytest.raises(AuthenticationError):
            batch.run(texts(100), concurrency=1)

        assert len(batch.asked) == 6
        assert sum(len(part.read_bytes().splitlines()) for part in batch.parts) == 5

    def test_an_overloaded_server_costs_time_and_no_row(self, batch, ollama):
        """503 pauses all requests once and uses up no attempt."""
        busy = Respond(503, {"error": "server busy, please try again.  maximum pending requests exceeded"})
        ollama.stand_in.script(busy, times=3, where=lambda body: body.get("prompt"))

        summary = batch.run(texts(30), concurrency=3, failures=FailurePolicy(max_attempts=1))

        assert (summary.ok, summary.failed) == (30, 0)
        assert {row["attempts"] for row in batch.results} == {1}

    def test_a_server_that_restarts_costs_time_and_no_row(self, batch, ollama):
        """Killed in the middle of answers and started again: every row is answered, by its first attempt."""
        ollama.stand_in.script(Stall(after=2), where=lambda body: body.get("prompt"), times=3)

        def restart():
            ollama.stand_in.wait_until(lambda stand_in: len(stand_in.open_requests) == 3)
            ollama.stop()
            ollama.start()

        helper = threading.Thread(target=restart)
        helper.start()
        summary = batch.run(texts(20), concurrency=3, failures=FailurePolicy(max_attempts=2, retry_delay=0))
        helper.join()

        assert (summary.ok, summary.failed) == (20, 0)

    def test_an_outage_without_end_stops_the_batch(self, batch, ollama):
        """After max_outage seconds it gives up; what was answered is kept for the next run."""

        def leave():
            ollama.stand_in.wait_until(lambda _: len(batch.asked) == 5)
            ollama.stop()

        ollama.stand_in.script(Stall(), where=asks("text 4"))
        helper = threading.Thread(target=leave)
        helper.start()
        with pytest.raises(Exception, match="Is the server running"):
            batch.run(texts(20), concurrency=1, failures=FailurePolicy(max_outage=0.5, retry_delay=0))
        helper.join()

        ollama.start()
        assert batch.run(texts(20)).reused == 4


class TestTruncation:
    LONG = "word " * 3000

    def test_a_prompt_over_the_context_fails_its_row(self, batch):
        """The server is told not to cut, and its refusal is the row's error."""
        summary = batch.run(["a", self.LONG], options=Options(num_ctx=2048))

        assert (summary.ok, summary.failed) == (1, 1)
        assert batch.failed[0]["error"]["class"] == "ContextLengthError"
        assert "word" not in batch.failed[0]["error"]["text"]

    def test_or_the_batch(self, batch):
        """With on_truncation="fail"."""
        with pytest.raises(ContextLengthError):
            batch.run(["a", self.LONG], options=Options(num_ctx=2048), on_truncation="fail")

    def test_or_is_flagged(self, batch, ollama):
        """With on_truncation="flag" it is asked again with leave to cut, and the result says so."""
        summary = batch.run(["a", self.LONG], options=Options(num_ctx=2048), on_truncation="flag")

        assert (summary.ok, summary.failed) == (2, 0)
        assert [row["prompt_cut"] for row in batch.results] == [False, True]
        sent = [seen.json.get("truncate") for seen in ollama.stand_in.requests if seen.json and seen.json.get("prompt")]
        assert sorted(sent, key=str) == [False, False, None]

    @pytest.mark.ollama(version="0.12.5")
    @pytest.mark.parametrize(("policy", "status"), [("dead_letter", "failed"), ("flag", "ok")])
    def test_an_old_server_is_judged_by_what_it_read(self, batch, policy, status):
        """Before 0.12.6 the server cuts in silence; the number of tokens it read gives it away."""
        batch.run(["a", self.LONG], options=Options(num_ctx=2048), on_truncation=policy)

        assert [row["status"] for row in batch.results] == ["ok", status]
        assert [row["prompt_cut"] for row in batch.results] == [False, True]

    def test_a_cut_answer_fails_its_row_and_is_kept(self, batch, ollama):
        """done_reason "length" is half an answer: a failed row, with the half in it."""
        ollama.stand_in.script(Answer("half an ans", done_reason="length"), where=asks("a"))

        summary = batch.run(["a"])

        assert summary.failed == 1
        (failed,) = batch.failed
        assert (failed["error"]["class"], failed["reply"], failed["output"]) == ("CutAnswerError", "half an ans", None)
        assert failed["answer_cut"]

    def test_unless_it_is_allowed(self, batch, ollama):
        """With allow_cut it is a result, and marked."""
        ollama.stand_in.script(Answer("half an ans", done_reason="length"), where=asks("a"))

        batch.run(["a"], allow_cut=True)

        assert (batch.results[0]["output"], batch.results[0]["answer_cut"]) == ("half an ans", True)

    def test_the_context_is_chosen_once_and_kept(self, batch, ollama):
        """Long first rows ask for a larger context; a later run with short rows keeps it, so nothing is reloaded."""
        batch.run(["word " * 4000, "b"])
        first = batch.results[0]["num_ctx"]
        batch.run(["c", "d", "b"])

        assert first > 8000
        assert batch.results[0]["num_ctx"] == first
        assert len(ollama.stand_in.loads) == 1


class TestTheModel:
    @pytest.mark.ollama(models=[], registry=["fresh"])
    def test_a_missing_model_is_pulled(self, batch, ollama):
        """Before the first row, and once."""
        assert batch.run(texts(3), model="fresh").ok == 3
        assert sum(ollama.stand_in.downloads.values()) == 1

    def test_a_demanded_digest(self, batch, ollama):
        """name@sha256:… is verified before anything is asked; the request carries the name alone."""
        digest = ollama.stand_in.model("llama3.2").digest

        assert batch.run(["a"], model=f"llama3.2@sha256:{digest[:12]}").ok == 1
        with pytest.raises(ModelChangedError, match="not the demanded"):
            batch.run(["b"], model=f"llama3.2@sha256:{'0' * 12}")
        with pytest.raises(InputError, match="sha256"):
            batch.run(["b"], model="llama3.2@latest")
        assert batch.asked == ["a"]

    def test_a_model_that_cannot_do_it_is_refused_before_it_is_loaded(self, batch, ollama):
        """An embedding model cannot complete; a plain one cannot think."""
        with pytest.raises(UnsupportedError, match="completion"):
            batch.run(["a"], model="nomic-embed-text")
        with pytest.raises(UnsupportedError, match="thinking"):
            batch.run(["a"], think=True)
        assert ollama.stand_in.loads == []

    def test_other_weights_are_other_work(self, batch, ollama):
        """After the tag has moved, everything is asked again: old answers are the old model's."""
        batch.run(texts(3))
        ollama.stand_in.retag("llama3.2")

        assert batch.run(texts(3)).ok == 3

    def test_a_model_that_changes_during_the_run_stops_it(self, batch, ollama):
        """No result has the digest of weights that did not answer it."""
        ollama.stand_in.script(Pace(first_token=0.05), where=asks("text 5"))

        def retag(body):
            if body.get("prompt") == "text 6":
                ollama.stand_in.retag("llama3.2")
            return False

        ollama.stand_in.script("never", where=retag, always=True)
        with pytest.raises(ModelChangedError, match="changed during the run"):
            batch.run(texts(20), concurrency=1)

        assert batch.parts == []

    def test_or_goes_on_and_says_so(self, batch, ollama, caplog):
        """With on_digest_change="continue" there is a warning instead."""

        def retag(body):
            if body.get("prompt") == "text 6":
                ollama.stand_in.retag("llama3.2")
            return False

        ollama.stand_in.script("never", where=retag, always=True)
        summary = batch.run(texts(20), concurrency=1, on_digest_change="continue")

        assert (summary.complete, summary.ok) == (True, 20)
        assert "changed during the run" in caplog.text
        assert summary.provenance.digest == ollama.stand_in.model("llama3.2").digest


class TestInput:
    def test_a_missing_column_is_refused_before_the_first_request(self, batch, ollama):
        """Naming it and those there are."""
        with pytest.raises(InputError, match=r"'txt'.*'id', 'text'"):
            batch.run([{"id": 1, "text": "a"}], prompt="{{ row.txt }}")
        with pytest.raises(InputError, match=r"'key' is missing.*'text'"):
            batch.run(["a"], id_column="key")
        assert ollama.stand_in.requests == []

    def test_a_broken_line_stops_the_batch(self, batch, tmp_path, ollama):
        """By default: near the beginning before the first request, later after a checkpoint of the rows before it."""
        file = tmp_path / "rows.jsonl"
        file.write_text('"a"\n{"text": \n')
        with pytest.raises(InputError, match=r"rows\.jsonl, line 2: this is not JSON"):
            batch.run(file)
        assert ollama.stand_in.requests == []

        file.write_text("".join(f'"text {number}"\n' for number in range(1100)) + "{\n")
        with pytest.raises(InputError, match=r"rows\.jsonl, line 1101"):
            batch.run(file)
        assert batch.parts

    def test_or_fails_alone(self, batch, tmp_path):
        """With on_broken_row="dead_letter" it is a failed row that names file and line, and is never asked."""
        file = tmp_path / "rows.jsonl"
        file.write_text('"a"\n{"text": \n"b"\n{"text": \n')

        summary = batch.run(file, on_broken_row="dead_letter")

        assert [row["status"] for row in batch.results] == ["ok", "failed", "ok", "failed"]
        assert [row["error"]["text"].split(":")[0] for row in batch.failed] == [f"{file}, line 2", f"{file}, line 4"]
        assert summary.errors == {"BrokenRow": 2}
        assert batch.asked == ["a", "b"]

    def test_a_prompt_that_cannot_be_sent_fails_its_row(self, batch):
        """Half a surrogate pair is no UTF-8; the others are answered."""
        summary = batch.run(["a", "\ud83d", "b"])

        assert [row["status"] for row in batch.results] == ["ok", "failed", "ok"]
        assert summary.failed == 1

    def test_a_wrong_setting_is_told_before_the_first_row(self, batch):
        """What pydantic finds is one error of the batch, not of each row."""
        with pytest.raises(InvalidRequestError, match="keep_alive"):
            batch.run(["a"], keep_alive="1d")
        assert batch.asked == []


class TestStopping:
    def test_stopped_runs_store_what_they_have(self, batch, ollama):
        """The summary says why, and the next run goes on."""
        stop = StopSignal()
        ollama.stand_in.script(Stall(), where=asks("text 7"))
        helper = threading.Thread(
            target=lambda: (ollama.stand_in.wait_until(lambda _: "text 7" in batch.asked), stop.set("enough"))
        )
        helper.start()
        summary = batch.run(texts(20), concurrency=1, stop=stop)
        helper.join()

        assert (summary.complete, summary.reason, summary.ok) == (False, "enough", 7)
        assert not (batch.directory / "summary.json").exists()
        assert batch.lines("progress.json")[0]["state"] == "incomplete"
        ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)
        assert batch.run(texts(20)).reused == 7

    def test_told_to_stop_before_it_began(self, batch, ollama):
        """Nothing is asked."""
        stop = StopSignal()
        stop.set()

        assert not batch.run(texts(3), stop=stop).complete
        assert batch.asked == []

    def test_an_exception_in_the_callers_thread_stores_it_as_well(self, batch):
        """KeyboardInterrupt, or what Airflow raises from its signal handler: what came is kept."""

        def interrupt(progress):
            if progress.ok:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            batch.run(texts(50), report_every=0.02, on_progress=interrupt, requests_per_minute=6000, concurrency=1)

        assert batch.parts
        assert batch.run(texts(50)).reused > 0


class TestProgress:
    def test_the_line_can_be_read_and_parsed(self, batch, caplog):
        """At the end at least, and the same in progress.json."""
        caplog.set_level(logging.INFO)
        batch.run(texts(20), concurrency=2)

        assert "done=20/20 (100 %) ok=20 failed=0 reused=0 rows/s=" in caplog.text
        progress = batch.lines("progress.json")[0]
        assert (progress["done"], progress["total"], progress["state"]) == (20, 20, "complete")

    def test_it_is_told_while_it_runs(self, batch):
        """The caller sees the count grow."""
        seen = []
        batch.run(texts(30), report_every=0.02, on_progress=seen.append, requests_per_minute=6000, concurrency=1)

        done = [progress.done for progress in seen]
        assert done == sorted(done)
        assert any(0 < count < 30 for count in done)
        assert done[-1] == 30

    def test_no_prompt_and_no_answer_in_any_log(self, batch, caplog):
        """At INFO; with failures, pauses and all."""
        caplog.set_level(logging.INFO)
        batch.server.stand_in.script(Fail("oops"), Respond(503, ""), where=lambda body: body.get("prompt"))
        batch.server.stand_in.script("secret answer", where=lambda body: body.get("prompt"), always=True)
        batch.run(["secret prompt"] * 3 + texts(3))

        assert caplog.text
        assert "secret" not in caplog.text


def tags(digest):
    return Respond(200, {"models": [{"name": "llama3.2:latest", "model": "llama3.2:latest", "digest": digest}]})


class TestDigestsThatCannotBeLookedUp:
    """A result has a digest only if it is known to come from that model."""

    OTHER = "f" * 64

    @pytest.fixture
    def own(self, ollama):
        return ollama.stand_in.model("llama3.2").digest

    def test_what_was_seen_to_have_changed_stays_changed(self, batch, ollama, own):
        """One look-up shows the change and the last one hangs: nothing is written to a checkpoint after that."""
        ollama.stand_in.script(tags(own), tags(self.OTHER), path="tags")
        ollama.stand_in.script(Stall(), path="tags", always=True)

        with pytest.raises(ModelChangedError):
            batch.run(texts(200), concurrency=1, checkpoint_every=0.2, requests_per_minute=3000)

        assert batch.parts == []

    @pytest.mark.parametrize(
        "look", [Respond(503, {"error": "busy"}), Respond(200, "<html>"), tags(None), Respond(200, {"models": []})]
    )
    def test_a_look_up_that_fails_gives_no_digest_to_the_rows_before_it(self, batch, ollama, own, look):
        """The rows are kept, with digest null, and found again by the next run; the others have theirs."""
        ollama.stand_in.script(tags(own), look, path="tags")

        summary = batch.run(texts(100), concurrency=1, checkpoint_every=0.3, requests_per_minute=6000)

        assert (summary.complete, summary.ok) == (True, 100)
        digests = [row["digest"] for row in batch.results]
        assert digests[0] is None
        assert digests[-1] == own
        assert set(digests) == {None, own}
        assert batch.run(texts(100)).reused == 100

    def test_nor_does_one_at_the_end(self, batch, ollama, own):
        """The server is gone when the run is over."""
        ollama.stand_in.script(tags(own), path="tags")
        ollama.stand_in.script(Respond(502, ""), path="tags")

        batch.run(texts(3))

        assert [row["digest"] for row in batch.results] == [None] * 3

    def test_rows_around_a_change_have_no_digest(self, batch, ollama, own):
        """With on_digest_change="continue" the rows between two looks may be either model's."""
        ollama.stand_in.script(tags(own), tags(own), path="tags")
        ollama.stand_in.script(tags(self.OTHER), path="tags", always=True)

        summary = batch.run(
            texts(100), concurrency=1, checkpoint_every=0.25, requests_per_minute=6000, on_digest_change="continue"
        )

        digests = [row["digest"] for row in batch.results]
        assert summary.ok == 100
        assert [digest for place, digest in enumerate(digests) if digest != digests[place - 1]] == [
            own,
            None,
            self.OTHER,
        ]
