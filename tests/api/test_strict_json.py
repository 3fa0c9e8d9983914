"""JSON that every reader takes: the same data as Python reads, or a refusal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from ollama_provider.api.strict_json import DEEPEST, is_finite, mend, read_json

#: With half a surrogate pair here and there.
TEXTS = st.text(
    st.characters(codec="utf-16", exclude_categories=[]) | st.sampled_from('\ud83d\ude00a\\"\n'), max_size=6
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(DATA)
def test_what_is_read_is_what_was_written_and_every_reader_takes_it(data):
    """Half a surrogate pair is replaced, an infinite number is refused, all else is as it was."""
    text = json.dumps(data)
    if not is_finite(data):
        with pytest.raises(ValueError, match="JSON"):
            read_json(text)
        return
    found = read_json(text)

    assert found == mend(data) == mend(found)
    assert from_json(json.dumps(found, ensure_ascii=False).encode(), allow_inf_nan=False) == found


@given(st.binary(max_size=40) | st.text('[]{}:,"0123456789.eE-nulltruefalse\\u', max_size=30).map(str.encode))
def test_any_bytes_are_json_or_a_value_error(data):
    """No other error comes out."""
    try:
        found = read_json(data)
    except ValueError:
        return
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("levels", [DEEPEST - 1, DEEPEST, DEEPEST + 1, 10**5])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_it_nests_so_deep_and_no_deeper(levels, begin, end):
    """Whether it is far too deep, or by one level."""
    text = begin * levels + "1" + end * levels
    if levels > DEEPEST:
        with pytest.raises(ValueError, match="nests deeper"):
            read_json(text)
    else:
        assert read_json(text) == json.loads(text)
