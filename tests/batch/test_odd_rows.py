"""A bad row fails alone: whatever it holds, whatever the answer is, and whatever unexpected exception it raises."""

import json
import logging

import pytest
from pydantic import BaseModel, field_validator

from ollama_provider.api.schemas import Options
from ollama_provider.batch import Embedding, FailurePolicy, StorageError, SystemRefusedError, TooManyFailedError
from ollama_provider.testing import Answer, Fail, Model, Respond


def texts(count):
    return [f"text {number}" for number in range(count)]


def asks(prompt):
    return lambda body: body.get("prompt") == prompt


def good_lines(count):
    return [json.dumps({"text": f"text {number}"}) for number in range(count)]


class TestRowsThatNeverBecomeARequest:
    """All others are answered, and max_failed_ratio is a share of all rows."""

    @pytest.mark.parametrize(
        ("bad", "prompt", "kind"),
        [
            ({"text": None}, "{{ row.text }}", "RenderError"),
            ({"text": "\ud83d"}, "{{ row.text }}", "RenderError"),
            ({"text": "0"}, "{{ 1 // (row.text | int(1)) }}{{ row.text }}", "RenderError"),
            ({"text": " \n"}, "{{ row.text }}", "EmptyText"),
            ({"text": b"\xff\xfe"}, "{{ row.text }}", "RenderError"),
        ],
        ids=["null", "surrogate", "template", "empty", "bytes"],
    )
    def test_by_what_they_hold(self, batch, bad, prompt, kind):
        """Every tenth of 400 rows is bad; many of them are read before the first answer."""
        rows = [bad | {"id": n} if n % 10 == 9 else {"id": n, "text": f"text {n}"} for n in range(400)]

        summary = batch.run(rows, prompt=prompt, failures=FailurePolicy(max_failed_ratio=0.1, retry_delay=0))

        assert (summary.complete, summary.ok, summary.failed) == (True, 360, 40)
        assert set(summary.errors) == {kind}
        assert len(batch.asked) == 360

    def test_by_how_they_are_written(self, batch, tmp_path):
        """The first 25 of 500 lines are unreadable."""
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(['{"text": '] * 25 + good_lines(475)) + "\n")

        summary = batch.run(file, on_broken_row="dead_letter", failures=FailurePolicy(max_failed_ratio=0.05))

        assert (summary.complete, summary.ok, summary.failed) == (True, 475, 25)

    @pytest.mark.ollama(models=[Model("llava", ("completion", "vision"))])
    def test_by_their_images(self, batch, tmp_path):
        """Images that do not exist, or are no images."""
        (tmp_path / "no.png").write_text("no picture")
        picture = tmp_path / "yes.png"
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
        rows = [{"text": f"{n}", "path": str(tmp_path / ("no.png" if n < 30 else "yes.png"))} for n in range(60)]

        summary = batch.run(
            rows,
            model="llava",
            images="{{ row.path }}",
            images_from=tmp_path,
            failures=FailurePolicy(max_failed_ratio=0.5),
        )

        assert (summary.complete, summary.ok, summary.failed) == (True, 30, 30)

    def test_more_than_are_tolerated_fail_the_batch_at_the_end(self, batch):
        """The others have their results. The next run fails in the same way, without a request."""
        rows = [{"text": None if n % 2 else f"text {n}"} for n in range(100)]

        for _ in range(2):
            with pytest.raises(TooManyFailedError, match="50 of 100 rows failed"):
                batch.run(rows, failures=FailurePolicy(max_failed_ratio=0.1))
            assert len(batch.results) == 100
        assert len(batch.asked) == 50


def test_an_empty_prompt_fails_its_row_in_a_chat_as_well(batch):
    """A server would answer nothing, or answer the system message."""
    summary = batch.run(
        [{"text": "a"}, {"text": ""}, {"text": "\t"}],
        system="Be brief.",
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "{{ row.text }}"}],
    )

    assert (summary.ok, summary.failed, summary.errors) == (1, 2, {"EmptyText": 2})


@pytest.mark.parametrize(
    "body",
    [
        {"model": "llama3.2", "response": "", "done": True, "done_reason": "load"},
        {"model": "llama3.2", "response": "", "done": True, "done_reason": "unload"},
        {"done": True},
    ],
    ids=["load", "unload", "done"],
)
def test_a_reply_without_an_answer_is_tried_again_and_then_a_failed_row(batch, ollama, body):
    """A server that only loaded the model says ``done`` as well."""
    ollama.stand_in.script(Respond(200, json.dumps(body)), where=asks("text 1"), times=3)
    ollama.stand_in.script(Respond(200, json.dumps(body)), where=asks("text 2"))

    summary = batch.run(texts(5))

    assert (summary.ok, summary.failed) == (4, 1)
    assert [row["index"] for row in batch.failed] == [1]


@pytest.mark.ollama(models=[Model("emb", ("embedding",), context_length=64, embedding_length=2)])
@pytest.mark.parametrize("vector", [[], [None, None], [10**400, 1.0], "ab", {"a": 1}])
def test_a_text_without_a_vector_fails_alone(batch, ollama, vector):
    """The vector is empty, or has members that are no numbers."""
    answer = Respond(200, json.dumps({"model": "emb", "embeddings": [vector]}))
    ollama.stand_in.script(answer, where=lambda body: body["input"] == ["text 1"], always=True, path="embed")

    summary = batch.run(texts(3), model="emb", embedding=Embedding(pack=1), results="jsonl")

    assert (summary.ok, summary.failed) == (2, 1)


class Strict(BaseModel):
    """A user's class, whose own code fails on some values."""

    n: int

    @field_validator("n")
    @classmethod
    def look_up(cls, value: int) -> int:
        return {7: value}[value]


class TestUnexpectedExceptions:
    def test_they_fail_their_rows_with_class_and_place_and_are_logged_once(self, batch, ollama, caplog):
        """A KeyError of the user's code. Its text quotes the answer, so neither log nor error has it."""
        ollama.stand_in.script({"n": 7}, where=lambda body: is_row(body) and body["prompt"] not in bad, always=True)
        bad = {"text 3", "text 11"}
        ollama.stand_in.script({"n": 424242}, where=lambda body: body.get("prompt") in bad, always=True)

        summary = batch.run(texts(20), output_type=Strict)

        assert (summary.complete, summary.ok, summary.failed) == (True, 18, 2)
        assert {row["error"]["class"] for row in batch.failed} == {"UnforeseenError"}
        assert "KeyError in test_odd_rows.py, line" in batch.failed[0]["error"]["text"]
        told = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(told) == 1
        assert "in look_up" in told[0].getMessage()
        assert "424242" not in caplog.text
        assert "424242" not in str([row["error"] for row in batch.failed])

    def test_they_are_counted(self, batch, ollama):
        """As every failed row."""
        ollama.stand_in.script({"n": 1}, where=is_row, always=True)

        with pytest.raises(TooManyFailedError, match="UnforeseenError 20 times"):
            batch.run(texts(200), output_type=Strict, failures=FailurePolicy(max_failed_ratio=0.2), concurrency=1)


def is_row(body):
    return bool(body.get("prompt"))


def test_a_number_that_overflows_is_a_failed_row(batch, ollama):
    """It is valid JSON and fits the schema, but no float holds it; also in the next run."""
    ollama.stand_in.script(
        Answer('{"n": 1e400}'), where=lambda body: body.get("prompt", "").startswith("text 2"), always=True
    )
    ollama.stand_in.script('{"n": 1}', where=is_row, always=True)
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}

    for _ in range(2):
        summary = batch.run(texts(4), output_type=schema)
        assert summary.complete
        assert [row["index"] for row in batch.failed] == [2]


def test_a_schema_is_not_to_blame_once_an_answer_fitted_it(batch, ollama):
    """A 400 with "format" in its text ends the batch at its beginning; later it fails the row."""
    ollama.stand_in.script(Fail("image: unknown format", 400), where=asks("text 5"), always=True)

    summary = batch.run(texts(10), output_type={"type": "object"}, concurrency=1)

    assert (summary.ok, summary.failed) == (9, 1)


@pytest.mark.ollama(version="0.12.5", models=[Model("small", context_length=2048)])
def test_a_context_larger_than_the_model_s_does_not_hide_a_cut_prompt(batch, caplog):
    """The server reads no more tokens than the model was trained for, whatever num_ctx is; the log warns of it."""
    summary = batch.run(["a", "word " * 8000], model="small", options=Options(num_ctx=32_768))

    assert (summary.ok, summary.failed) == (1, 1)
    assert batch.failed[0]["error"]["class"] == "CutPromptError"
    assert "num_ctx is 32768" in caplog.text
    assert "2048" in caplog.text


class TestTheOperatingSystem:
    def test_an_error_outside_of_the_directory_is_no_storage_error(self, batch):
        """Such as too many open files in the caller's code."""

        def fail(progress):
            raise OSError(24, "Too many open files")

        with pytest.raises(SystemRefusedError, match="Too many open files") as raised:
            batch.run(texts(20), on_progress=fail)

        assert raised.value.retryable
        assert "cannot be written" not in str(raised.value)

    def test_an_error_in_the_directory_is_a_storage_error(self, batch):
        """A folder is where a file must be."""
        batch.run(texts(1))
        (batch.directory / "progress.json").unlink()
        (batch.directory / "progress.json").mkdir()

        with pytest.raises(StorageError, match="cannot be written"):
            batch.run(texts(1))
