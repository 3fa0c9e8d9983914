"""The usual answers, without a script."""

import importlib.metadata
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.testing import StandIn
from ollama_provider.testing.answers.json_schema import InvalidSchemaError, instance
from ollama_provider.testing.answers.summaries import summarise
from ollama_provider.testing.answers.vectors import text_vector

ARTICLE = """Summarise this text in two sentences.

# The harbour

![badge](https://example.com/badge.svg)
The harbour of the old town was rebuilt after the flood of 1953.
Today the harbour serves fishing boats and a small ferry.

* Boats are repaired in the harbour during the winter.

Visitors like the cafes. The ferry links the old town with the islands, and the harbour lives from it.
"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
}


def generate(prompt: str, **fields: object) -> dict:
    body = {"model": "llama3.2", "prompt": prompt, "stream": False, **fields}
    return StandIn().answer("POST", "/api/generate", body).json


def chat(*messages: tuple[str, str], model: str = "llama3.2", **fields: object) -> dict:
    body = {"model": model, "messages": [{"role": role, "content": content} for role, content in messages]}
    return StandIn().answer("POST", "/api/chat", {**body, "stream": False, **fields}).json


def test_a_summary_is_made_of_sentences_of_the_text() -> None:
    """One or two central sentences, without markup and without the instruction."""
    summary = generate(ARTICLE)["response"]

    assert summary
    assert "harbour" in summary
    assert "Summarise" not in summary
    for sentence in summary.replace(". ", ".\n").splitlines():
        assert sentence in ARTICLE


def test_the_system_message_may_ask_for_the_summary() -> None:
    """Chat prompts often put the instruction there."""
    reply = chat(("system", "You summarise texts."), ("user", ARTICLE.partition("\n\n")[2]))

    assert "harbour" in reply["message"]["content"]


@pytest.mark.parametrize("distribution", ["httpx", "pydantic", "tenacity", "pytest", "aiohttp"])
def test_real_readmes_have_readable_summaries(distribution: str) -> None:
    """Sentences of prose: no badges, links, directives, tables or code."""
    text = (
        importlib.metadata.metadata(distribution).get_payload()
        or importlib.metadata.metadata(distribution)["Description"]
    )

    summary = summarise(f"Summarise this README in two sentences:\n\n{text}")

    assert 40 < len(summary) < 900
    assert summary[-1] in ".!?"
    assert not any(noise in summary for noise in ("http", "```", "](", ".. ", "<img", "|", "`_"))


def test_without_sentences_there_is_still_an_answer() -> None:
    """A text that is only a heading is its own summary. An empty text gets the answer of any other prompt."""
    assert summarise("Summarise:\n\nRelease notes of the harbour") == "Release notes of the harbour"
    assert "stand-in" in generate("Summarise")["response"]


def test_any_other_answer_says_where_it_comes_from() -> None:
    """Deterministic, and different for different prompts."""
    first, again, other = (
        generate("Why is the sky blue?"),
        generate("Why is the sky blue?"),
        generate("Why is grass green?"),
    )

    assert "stand-in for Ollama" in first["response"]
    assert first["response"] == again["response"] != other["response"]


def test_json_format_is_a_json_object() -> None:
    """`format: "json"` gives any JSON object, since it has no schema."""
    assert isinstance(json.loads(generate("hello", format="json")["response"]), dict)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "stand-in"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "number", "exclusiveMinimum": 1}, 1.5),
        ({"type": "null"}, None),
        ({"const": 7}, 7),
        ({"enum": ["red", "blue"]}, "blue"),
        ({"type": "array", "items": {"const": 1}}, [1]),
        ({"type": "array", "items": {"const": 1}, "minItems": 3}, [1, 1, 1]),
        ({"type": "array", "items": {"const": 1}, "maxItems": 0}, []),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "maxItems": 2}, [1, "a"]),
        ({"type": ["null", "integer"]}, 0),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 0),
        ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, 5),
        ({"type": "string", "minLength": 12}, "stand-in...."),
        ({"type": "string", "maxLength": 3}, "sta"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        (
            {"$defs": {"L": {"enum": ["blue"]}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/L"}}},
            {"a": "blue"},
        ),
        ({"properties": {"b": {"const": 1}, "a": {"const": 2}}, "required": ["a", "c"]}, {"b": 1, "a": 2, "c": {}}),
    ],
)
def test_schemas_are_satisfied(schema: dict, expected: object) -> None:
    """An enum prefers a value that the prompt mentions."""
    assert instance(schema, "The sky is blue") == expected


def test_a_recursive_schema_ends() -> None:
    """Optional branches of a tree are left out at some depth."""
    node = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
        "required": ["value", "children"],
    }

    assert instance({"$defs": {"Node": node}, "$ref": "#/$defs/Node"}, "")["value"] == 0


@pytest.mark.parametrize(
    "schema",
    [{"type": "wat"}, {"$ref": "#/definitions/x"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}],
)
def test_schemas_that_are_none(schema: dict) -> None:
    """An unknown type, a reference to nothing and one to itself."""
    with pytest.raises(InvalidSchemaError):
        instance(schema, "")


def test_many_rows_do_not_get_one_label() -> None:
    """If the prompt mentions no value of the enum, the value still depends on the prompt."""
    labels = {instance({"enum": ["red", "blue", "green"]}, f"row {number}") for number in range(50)}

    assert labels == {"red", "blue", "green"}


def test_a_tool_that_is_mentioned_is_called() -> None:
    """The arguments satisfy the tool's schema. The result of the tool gets an answer in text."""
    asked = chat(("user", "Use get_weather for Paris"), tools=[WEATHER])
    answered = chat(("user", "Use get_weather"), ("assistant", ""), ("tool", "12 degrees"), tools=[WEATHER])
    not_asked = chat(("user", "hello"), tools=[WEATHER])

    assert asked["message"]["tool_calls"][0]["function"] == {
        "index": 0,
        "name": "get_weather",
        "arguments": {"city": "stand-in", "days": 1},
    }
    assert asked["done_reason"] == "stop"
    assert "12 degrees" in answered["message"]["content"]
    assert "tool_calls" not in not_asked["message"]


def test_thinking_models_think_unless_told_not_to() -> None:
    """Since 0.12.5 a model thinks unless `think` is false."""
    assert chat(("user", "hello"), model="qwen3")["message"]["thinking"]
    assert "thinking" not in chat(("user", "hello"), model="qwen3", think=False)["message"]


def test_the_words_are_the_same_streamed_or_not() -> None:
    """The lines of a stream add up to the whole answer."""
    stand_in = StandIn()
    body = {"model": "qwen3", "messages": [{"role": "user", "content": "hello"}]}
    lines = stand_in.answer("POST", "/api/chat", body).lines
    whole = stand_in.answer("POST", "/api/chat", body | {"stream": False}).json

    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert "".join(line["message"].get("thinking", "") for line in lines) == whole["message"]["thinking"]
    assert lines[-1]["eval_count"] == whole["eval_count"] == len(lines) - 1


@given(st.text(max_size=200), st.sampled_from([8, 384, 768]))
def test_vectors_are_normalised_and_stable(text: str, width: int) -> None:
    """Every text has a vector of length 1, always the same."""
    vector = text_vector(text, width)

    assert len(vector) == width
    assert math.isclose(math.sqrt(sum(value * value for value in vector)), 1.0, abs_tol=1e-5)
    assert text_vector(text, width) == vector


@pytest.mark.parametrize("dimensions", [768, 64])
def test_similar_texts_are_near(dimensions: int) -> None:
    """Texts that share words or parts of words are near, also after a cut to the first dimensions."""
    texts = ["The ferry leaves the harbour", "Ferries leave from the harbours", "Quarterly revenue grew strongly"]
    body = {"model": "nomic-embed-text", "input": texts, "dimensions": dimensions}
    vectors = StandIn().answer("POST", "/api/embed", body).json["embeddings"]

    def cosine(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert len(vectors[0]) == dimensions
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.2
