"""Lists that a template has made text of."""

import json

import pytest
from pydantic import ValidationError

from ollama_provider.api.arguments import read_list
from ollama_provider.api.schemas import Options


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
