"""Lists that a template has made text of."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ollama_provider.api.arguments import is_null, one_of, read_flag, read_list, read_number, read_text, read_whole
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas import GenerateRequest, Options


@pytest.mark.parametrize("value", [["a", "b"], [], ["it's", 'a "b"'], [{"a": [1, None, True]}], [["ü\n"]]], ids=repr)
@pytest.mark.parametrize("write", [str, json.dumps, lambda value: f" {value}\n"], ids=["python", "json", "blanks"])
def test_a_list_is_read(value, write):
    """As Python writes it, which is what a template does, and as the filter ``tojson`` does."""
    assert read_list(write(value)) == value


def test_a_tuple_is_a_list():
    assert read_list("('a', 'b')") == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "[draft] A text",
        "[draft]",
        "(a)",
        "('a')",
        "{'a': 1}",
        "[a",
        "[f()]",
        "[" * 100_000 + "]" * 100_000,
        "[1](x)",
    ],
    ids=lambda text: text[:20],
)
def test_any_other_text_is_none(text):
    """Nothing of it is run."""
    assert read_list(text) is None


def test_stop_words_out_of_a_template():
    """One text or a list, however the list comes; a bracket may itself be a stop word."""
    assert Options(stop="['a', 'b']").stop == ["a", "b"]
    assert Options(stop=["['a']"]).stop == ["['a']"]
    assert [Options(stop=text).stop for text in ("[]", "[1]", "]")] == [["[]"], ["[1]"], ["]"]]
    with pytest.raises(ValidationError):
        Options(stop=7)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ANYTHING = PLAIN | st.floats() | st.binary(max_size=3) | st.integers()
#: A value as a DAG file has it, and as a template gives it.
WRITTEN = st.sampled_from([lambda value: value, str, lambda value: f" {value}\n"])


@given(
    st.lists(PLAIN, max_size=4), st.sampled_from([str, json.dumps, lambda value: json.dumps(value, ensure_ascii=False)])
)
def test_every_list_is_read_as_it_was_written(value, write):
    """Python's and JSON's way alike."""
    assert read_list(write(value)) == value


@given(st.integers(0, 10**18 - 1), WRITTEN)
def test_every_number_is_read_as_it_was_rendered(number, write):
    """A template makes text of it, with blanks around it where its author left some."""
    assert read_whole("n", write(number), least=0) == number
    assert read_number("n", write(float(number))) == float(number)
    assert read_flag("n", write(number % 2 == 0)) is (number % 2 == 0)


@given(ANYTHING)
def test_anything_else_is_refused_by_its_name(value):
    """The value comes out in the type that was asked for, or an error names the argument and is short."""
    readers = {
        read_whole: lambda: read_whole("this_one", value, least=1),
        read_number: lambda: read_number("this_one", value, most=9.0),
        read_flag: lambda: read_flag("this_one", value),
        read_text: lambda: read_text("this_one", value),
        one_of: lambda: one_of("this_one", value, "a", "b"),
    }
    kinds = {read_whole: int, read_number: int | float, read_flag: bool, read_text: str, one_of: str}
    for reader, read in readers.items():
        try:
            found = read()
        except InvalidRequestError as error:
            assert str(error).startswith("this_one: ")
            assert len(str(error)) < 500
        else:
            assert isinstance(found, kinds[reader])
            assert not isinstance(found, float) or math.isfinite(found)
    is_null(value)


@given(
    num_ctx=st.integers(-1, 2**31),
    temperature=st.floats(0, 2),
    stop=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3),
    write=WRITTEN,
)
def test_options_are_the_same_from_a_template(num_ctx, temperature, stop, write):
    """Numbers and lists that have become text are numbers and lists again."""
    given_ = {"num_ctx": num_ctx, "temperature": temperature, "stop": stop}

    assert Options(**{name: write(value) for name, value in given_.items()}) == Options(**given_)


@given(ANYTHING | st.from_regex(r"[-+]?[0-9]{1,5}(ns|us|ms|s|m|h|d| )?(5s)?", fullmatch=True))
def test_keep_alive_is_what_the_server_takes_or_is_refused(value):
    """Seconds as a number, durations of Go's as text; nothing that would become null on its way."""
    try:
        body = GenerateRequest(model="m", prompt="p", keep_alive=value).body()
    except InvalidRequestError as error:
        assert "keep_alive" in str(error)
        return
    sent = json.loads(body).get("keep_alive")
    assert (sent is None) == (value is None)
    assert not isinstance(sent, str) or sent[-1] in "smh"
