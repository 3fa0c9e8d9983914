"""An answer bound to a format comes back as plain JSON data, or as an error that quotes none of it."""

import dataclasses
import json
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from ollama_provider.api.errors import InvalidOutputError, InvalidRequestError
from ollama_provider.api.structured_output import Output


class Review(BaseModel):
    stars: int
    topics: tuple[str, ...] = ()
    day: date | None = None
    weight: float = 1.0


@dataclasses.dataclass
class Point:
    x: float


SCHEMA = {
    "type": "object",
    "properties": {"stars": {"type": "integer", "maximum": 5}},
    "required": ["stars"],
    "additionalProperties": False,
}


def test_json_takes_any_json() -> None:
    """``"json"`` asks for no shape."""
    output = Output("json")

    assert output.format == "json"
    assert output.read(' {"a": [1, null, "ä"]} ') == {"a": [1, None, "ä"]}


@pytest.mark.parametrize("wanted", [SCHEMA, json.dumps(SCHEMA)])
def test_a_schema_is_sent_as_it_is_and_checked(wanted: Any) -> None:
    """A schema may come as a dict or, out of a template, as text."""
    output = Output(wanted)

    assert output.format == SCHEMA
    assert output.read('{"stars": 4}') == {"stars": 4}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"stars": 9}', "stars: maximum 5"),
        ('{"stars": "secret"}', "stars: type integer"),
        ("{}", "required"),
        ('{"stars": 1, "secret": 2}', "additionalProperties False"),
    ],
)
def test_a_misfit_names_place_and_rule_and_no_value(text: str, told: str) -> None:
    """What the model wrote is not for logs."""
    with pytest.raises(InvalidOutputError) as caught:
        Output(SCHEMA).read(text)

    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.retryable


def test_a_type_gives_its_schema_and_plain_data() -> None:
    """Tuples, dates and models come out as JSON data, so that XCom gives back what was put in."""
    output = Output(Review)

    data = output.read('{"stars": 4, "topics": ["a"], "day": "2026-11-22"}')

    assert output.format == Review.model_json_schema()
    assert data == {"stars": 4, "topics": ["a"], "day": "2026-11-22", "weight": 1.0}
    assert type(data["topics"]) is list


@pytest.mark.parametrize(
    ("kind", "text", "data"),
    [
        (Point, '{"x": 1}', {"x": 1.0}),
        (list[Point], '[{"x": 2}]', [{"x": 2.0}]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
    ],
)
def test_any_type_that_pydantic_knows_will_do(kind: Any, text: str, data: Any) -> None:
    """Dataclasses and containers are as good as model classes."""
    assert Output(kind).read(text) == data


def test_a_type_that_does_not_fit_says_where() -> None:
    """pydantic's finding, without the value."""
    with pytest.raises(InvalidOutputError, match=r"stars: Input should be a valid integer") as caught:
        Output(Review).read('{"stars": "secret"}')

    assert "secret" not in str(caught.value)


def test_a_long_list_of_faults_is_cut() -> None:
    """Three faults are enough to understand."""
    with pytest.raises(InvalidOutputError, match="and 7 more"):
        Output({"items": {"type": "integer"}}).read(json.dumps(["x"] * 10))


@pytest.mark.parametrize("text", ["", "Sure! Here is your JSON", '{"stars": 4', '{"stars": NaN}', "[-Infinity]"])
@pytest.mark.parametrize("wanted", ["json", SCHEMA, Review])
def test_what_is_not_json_is_refused(wanted: Any, text: str) -> None:
    """Prose, cut JSON, and the constants that only Python takes for JSON."""
    with pytest.raises(InvalidOutputError, match="the answer is not JSON"):
        Output(wanted).read(text)


class Exact(BaseModel):
    amount: Decimal
    anything: Any = None


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("json", '{"n": 1e400}'),
        ("json", "[1, [-1E+999]]"),
        ({"type": "number"}, "1e400"),
        ({"properties": {"n": {"type": "number"}}}, '{"n": 1e400}'),
        (Review, '{"stars": 1, "weight": 1e400}'),
        (Review, '{"stars": 1, "weight": "Infinity"}'),
        (Review, '{"stars": 1, "weight": "nan"}'),
        (Review, f'{{"stars": 1, "weight": 1{"0" * 400}}}'),
        (Point, '{"x": "-inf"}'),
        (list[Point], '[{"x": 1e400}]'),
        (dict[str, float], '{"a": "Infinity"}'),
        (Exact, '{"amount": 1, "anything": [1e400]}'),
        (Exact, '{"amount": "Infinity"}'),
        ({"type": "number", "multipleOf": 0.5}, "1" + "0" * 400),
        ("json", "9" * 5000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_number_that_overflows_is_refused(wanted: Any, text: str) -> None:
    """It fits JSON and many a schema, and no XCom, no line of results, no table; null in its place would be made up."""
    with pytest.raises(InvalidOutputError):
        Output(wanted).read(text)


@pytest.mark.parametrize("levels", [101, 100_000])
@pytest.mark.parametrize("wanted", ["json", {"items": {"$ref": "#"}}, Any])
def test_deep_data_are_refused(wanted: Any, levels: int) -> None:
    """What reads them later would end in its own recursion."""
    with pytest.raises(InvalidOutputError, match="deeper than 100"):
        Output(wanted).read("[" * levels + "]" * levels)


@pytest.mark.parametrize("wanted", ["json", {"type": "object"}, dict[str, str]])
@pytest.mark.parametrize("half", [r"\ud83d", "\ud83d", r"\udc00"])
def test_half_a_surrogate_pair_in_data_becomes_a_replacement_character(wanted: Any, half: str) -> None:
    """In values and in keys: what comes out can be said in UTF-8, as Ollama writes half a character."""
    data = Output(wanted).read(f'{{"a{half}": "b{half}", "whole": "\\ud83d\\ude00"}}')

    assert data == {"a\ufffd": "b\ufffd", "whole": "😀"}


def test_numbers_of_any_length_that_are_whole_stay() -> None:
    """JSON bounds no whole number."""
    assert Output("json").read(str(10**400)) == 10**400


def test_a_schema_that_cannot_be_applied_is_a_wrong_request() -> None:
    """A reference that leads nowhere is found by the first answer."""
    with pytest.raises(InvalidRequestError, match="cannot be applied"):
        Output({"properties": {"a": {"$ref": "#/definitions/none"}}}).read('{"a": 1}')


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("xml", "use"),
        ('{"type": ', "not valid JSON"),
        ('{"type": ' * 10_000, "not valid JSON"),
        ('{"maximum": Infinity}', "not valid JSON"),
        ({"type": "nonsense"}, "not a JSON schema: type"),
        (object(), "pydantic cannot read"),
        (3, "pydantic cannot read"),
    ],
)
def test_what_is_no_format_is_refused_before_anything_is_sent(wanted: Any, told: str) -> None:
    """The server answers 500 to these, after loading the model."""
    with pytest.raises(InvalidRequestError, match=told):
        Output(wanted)


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Pet(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("wanted", "answer", "place"),
    [
        ({"additionalProperties": {"type": "integer"}}, {"Zurich\n\x1b[31m": "x"}, "*: type integer"),
        ({"additionalProperties": False}, {"Zurich": 1}, "at the top: additionalProperties"),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"a": ["b", 1]}, "a.1: type string"),
        (dict[str, int], {"Zurich": "x"}, "*: Input should be a valid integer"),
        (Cat, {"kind": "Zurich"}, "kind: Input should be 'cat'"),
        (Pet, {"pet": {"kind": "Zurich"}}, "pet: no member of the union has this tag"),
        (Pet, {"pet": {"kind": "cat"}, "Zurich": 1}, None),
    ],
)
def test_keys_and_tags_that_the_model_made_up_are_not_quoted(wanted, answer, place):
    """They are text of the answer. Names of the schema show where it does not fit."""
    output = Output(wanted)
    if place is None:
        assert output.read(json.dumps(answer)) == {"pet": {"kind": "cat"}}
        return

    with pytest.raises(InvalidOutputError) as raised:
        output.read(json.dumps(answer))

    assert place in str(raised.value)
    assert "Zurich" not in str(raised.value)
