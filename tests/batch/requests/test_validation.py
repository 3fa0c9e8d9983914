"""Answers that must fit a schema: repairs, and schemas that change, over real HTTP against a stand-in."""

import enum
import json

import pydantic
import pytest

from ollama_provider.api.errors import BadRequestError, InvalidRequestError, UnsupportedError
from ollama_provider.api.schemas import GenerateReply, Options
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.requests.validation import RepairStrategy
from ollama_provider.batch.requests.work_item import UNCHANGED, Variant
from ollama_provider.testing import Answer, Fail, Model


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Label(pydantic.BaseModel):
    colour: Colour
    score: int = pydantic.Field(ge=0, le=10)


GOOD = {"colour": "red", "score": 3}
MISSED = {"colour": "green", "score": 3}


def asks(text):
    return lambda body: body.get("prompt", "").startswith(text)


def requests(ollama):
    seen = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/generate"]
    return [body for body in seen if body.get("prompt")]


def test_the_output_is_the_validated_data(batch, ollama):
    """The schema is sent as format, the output is data, and the raw reply is kept beside it."""
    ollama.stand_in.script(GOOD, where=asks("a"))

    summary = batch.run(["a"], output_type=Label)

    (row,) = batch.results
    assert row["output"] == GOOD
    assert json.loads(row["reply"]) == GOOD
    assert requests(ollama)[-1]["format"] == Label.model_json_schema()
    assert (summary.ladder, summary.ok) == ({}, 1)


@pytest.mark.parametrize("bad", ["I think it is red.", json.dumps(MISSED), '{"colour": "red"'])
def test_a_wrong_answer_is_asked_again_with_what_was_wrong(batch, ollama, bad):
    """The model is shown its answer and what is wrong: prose, a wrong value of an enum, or incomplete JSON."""
    ollama.stand_in.script(bad, GOOD, where=asks("a"))

    summary = batch.run(["a"], output_type=Label)

    first, second = requests(ollama)
    assert first["prompt"] == "a"
    assert second["prompt"].startswith("a\n\nYour earlier answer was:\n\n" + bad)
    assert "the answer" in second["prompt"].rpartition("This is no good: ")[2]
    (row,) = batch.results
    assert (row["output"], row["attempts"], row["rungs"]) == (GOOD, 2, ["asked_again"])
    assert summary.ladder == {"asked_again": {"tried": 1, "good": 1}}


def test_a_cut_answer_may_be_longer_the_second_time(batch, ollama):
    """The prompt is the same: the answer is not shown again, since it was not wrong."""
    ollama.stand_in.script(Answer('{"colour": "r', done_reason="length"), GOOD, where=asks("a"))

    batch.run(["a"], output_type=Label, options=Options(num_predict=50))

    assert [(seen["prompt"], seen["options"]["num_predict"]) for seen in requests(ollama)] == [("a", 50), ("a", 200)]
    assert batch.results[0]["rungs"] == ["more_tokens"]


@pytest.mark.ollama(models=[Model("thinker", ("completion", "thinking"))])
def test_an_answer_that_thinking_used_up_is_asked_without_thinking(batch, ollama):
    """All tokens went into reasoning. First there are more tokens, then there is no reasoning."""
    lost = Answer("", thinking="hm " * 20, done_reason="length")
    ollama.stand_in.script(lost, lost, GOOD, where=asks("a"))

    batch.run(["a"], model="thinker", output_type=Label, think=True, options=Options(num_predict=50))

    assert [(seen["think"], seen["options"]["num_predict"]) for seen in requests(ollama)] == [
        (True, 50),
        (True, 200),
        (False, 200),
    ]
    assert batch.results[0]["rungs"] == ["more_tokens", "no_thinking"]


@pytest.mark.ollama(models=[Model("small"), Model("large")])
def test_the_fallback_model_is_asked_after_all_other_rows(batch, ollama):
    """Otherwise two models would push each other out of memory with each row. A row names the model that answered."""
    ollama.stand_in.script("prose", model="small", where=asks("bad"), always=True)
    ollama.stand_in.script(GOOD, model="small", where=asks("good"), always=True)
    ollama.stand_in.script(GOOD, model="large", always=True)

    rows = ["bad 0", "good 0", "bad 1", "good 1", "good 2"]
    summary = batch.run(rows, model="small", fallback_model="large", output_type=Label, concurrency=1)

    asked = [seen["model"] for seen in requests(ollama)]
    assert asked == ["small"] * 7 + ["large"] * 2
    assert requests(ollama)[-1]["prompt"] == "bad 1"
    assert [row["model"] for row in batch.results] == ["large", "small", "large", "small", "small"]
    assert batch.results[0]["digest"] == ollama.stand_in.model("large").digest
    assert batch.results[0]["digest"] != batch.results[1]["digest"]
    assert summary.ladder == {
        "asked_again": {"tried": 2, "good": 0},
        "fallback_model": {"tried": 2, "good": 2},
    }


def test_after_the_last_repair_the_row_fails_with_its_raw_reply(batch, ollama):
    """It gets no default value, and no further attempt."""
    ollama.stand_in.script("prose", where=asks("bad"), always=True)
    ollama.stand_in.script(GOOD, where=asks("good"), always=True)

    summary = batch.run(["bad", "good"], output_type=Label)

    (failed,) = batch.failed
    assert (failed["output"], failed["reply"], failed["error"]["class"]) == (None, "prose", "InvalidOutputError")
    assert (failed["attempts"], failed["rungs"]) == (2, ["asked_again"])
    assert (summary.ok, summary.failed, summary.requests) == (1, 1, 3)
    assert summary.ladder == {"asked_again": {"tried": 1, "good": 0}}
    assert "prose" not in failed["error"]["text"]


def test_feedback_that_makes_the_prompt_too_long_is_left_out(batch, ollama):
    """A row must not fail because of what we added to its prompt."""
    ollama.stand_in.script("word " * 120, where=asks("a"))
    ollama.stand_in.script(GOOD, where=lambda body: body.get("prompt") == "a")

    batch.run(["a"], output_type=Label, options=Options(num_ctx=100))

    assert len(requests(ollama)) == 3
    assert batch.results[0]["output"] == GOOD


def test_a_changed_schema_asks_only_for_what_does_not_fit(batch, ollama):
    """Stored replies, failed ones too, are validated with the new schema first, and keep their provenance."""
    kept = {"a": {"n": 1}, "b": {"n": 200}, "c": {"n": "seven"}}
    for text, answer in kept.items():
        ollama.stand_in.script(answer, where=asks(text), always=True)
    narrow = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wide = {"type": "object", "properties": {"n": {"type": ["integer", "string"], "maximum": 100}}, "required": ["n"]}

    first = batch.run([*kept], output_type=narrow)
    before = len(requests(ollama))
    second = batch.run([*kept], output_type=wide)

    assert (first.ok, first.failed) == (2, 1)
    assert [seen["prompt"][0] for seen in requests(ollama)[before:]] == ["b", "b"]
    assert (second.revalidated, second.failed, second.reused) == (2, 1, 2)
    assert [row["output"] for row in batch.results] == [{"n": 1}, None, {"n": "seven"}]
    third = batch.run(["a", "c"], output_type=wide)
    assert (third.requests, third.revalidated, third.reused) == (0, 0, 2)


def test_a_cut_reply_is_not_taken_for_a_whole_one(batch, ollama):
    """The beginning of a number is a valid number, but not the answer."""
    ollama.stand_in.script(Answer("12", done_reason="length"), where=asks("a"), times=1)
    batch.run(["a"], output_type={"type": "string"})
    ollama.stand_in.script("1234", where=asks("a"))

    summary = batch.run(["a"], output_type={"type": "integer"})

    assert (summary.revalidated, batch.results[0]["output"]) == (0, 1234)


def test_a_schema_that_the_server_cannot_take_stops_the_batch(batch, ollama):
    """All rows have the same schema, so one refusal is enough."""
    refusal = Fail("failed to parse grammar: invalid JSON schema in format", 400)
    ollama.stand_in.script(refusal, where=lambda body: body.get("format"), always=True)

    with pytest.raises(BadRequestError, match="schema"):
        batch.run([f"text {number}" for number in range(100)], output_type=Label, concurrency=1)

    assert len(requests(ollama)) == 1


def test_contradictory_settings_are_refused_before_the_first_request(batch, ollama):
    """Examples are an unknown type, and a fallback model without a schema."""
    with pytest.raises(InvalidRequestError, match="JSON schema"):
        batch.run(["a"], output_type={"type": "nonsense"})
    with pytest.raises(InputError, match="output_type"):
        batch.run(["a"], fallback_model="large")
    assert ollama.stand_in.requests == []


@pytest.mark.ollama(models=[Model("small"), Model("vectors", ("embedding",))])
def test_a_fallback_model_that_cannot_answer_is_refused_before_the_first_row(batch, ollama):
    """It is not noticed only after the other rows."""
    with pytest.raises(UnsupportedError, match="completion"):
        batch.run(["a"], model="small", fallback_model="vectors", output_type=Label)
    assert requests(ollama) == []


class TestRepairs:
    def replies(self, text="", *, cut=False):
        return GenerateReply(response=text, done=True, done_reason="length" if cut else "stop")

    def test_each_repair_is_used_once(self):
        """So the attempts end, whatever the answers are."""
        strategy = RepairStrategy(num_predict=10, think=True, has_fallback=True)
        variant = UNCHANGED
        for cut in (True, False) * 10:
            variant = strategy.next_variant(variant, self.replies("x", cut=cut), "wrong") or variant

        assert sorted(variant.repairs) == ["asked_again", "fallback_model", "more_tokens", "no_thinking"]
        assert strategy.next_variant(variant, self.replies("x"), "wrong") is None

    def test_an_empty_answer_is_not_shown_again(self):
        """There is nothing in it to correct."""
        assert (
            RepairStrategy(None, think=False, has_fallback=False).next_variant(UNCHANGED, self.replies(), "empty")
            is None
        )

    def test_without_a_limit_more_tokens_are_not_tried(self):
        """Then it was the context that ended the answer."""
        strategy = RepairStrategy(None, think="high", has_fallback=False)

        assert strategy.next_variant(UNCHANGED, self.replies("x", cut=True), "cut") == Variant(
            repairs=("no_thinking",), thinking=False
        )
