"""The lines of parts: strict JSON in ASCII, from whatever a row has come to."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.errors import RejectedReplyError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.lines import is_outcome, is_whole, outcome_line, shared_fields

TEXTS = st.text(
    st.characters(codec="utf-16", exclude_categories=[]) | st.sampled_from("\n\u2028\x85\0\ud83d"), max_size=8
)
SHARED = shared_fields({"model": "m", "digest": None})
DIGITS = st.binary(min_size=16, max_size=16).map(bytes.hex)
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


@given(
    key=DIGITS,
    output=ANSWERS,
    error=st.none() | st.fixed_dictionaries({"class": TEXTS, "text": TEXTS}),
    reply=st.none() | TEXTS,
    thinking=st.none() | TEXTS,
    tokens=st.none() | st.integers(),
    seconds=st.none() | st.floats(),
    request=st.none() | DIGITS,
)
def test_every_outcome_is_one_line_of_strict_json(key, error, **fields):
    """A good one is written as it is or refused; a failed one is always written."""
    outcome = Outcome(key, "failed" if error else "ok", error=error, **fields)
    try:
        line = outcome_line(outcome, SHARED)
    except RejectedReplyError:
        assert error is None
        return

    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert is_whole(line)
    found = json.loads(line, parse_constant=refuse_constant)
    assert (found["key"], found["status"], found["model"]) == (key, outcome.status, "m")
    if error is None:
        assert found.items() >= {name: asdict(outcome)[name] for name in ("output", "tokens", "seconds")}.items()
        assert found.get("reply") == outcome.reply


@given(key=DIGITS, output=TEXTS, at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_bit_that_a_disk_turns_is_noticed(key, output, at, bit):
    """Wherever in the line it is."""
    try:
        line = bytearray(outcome_line(Outcome(key, "ok", output=output), SHARED))
    except RejectedReplyError:
        pytest.skip("half a surrogate pair")
    line[at % len(line)] ^= 1 << bit

    assert not is_whole(bytes(line))


@pytest.mark.parametrize("wrong", ["0" * 31, "0" * 33, "0" * 34, "0" * 31 + "g", "", 0, None])
def test_a_line_without_checksum_has_a_whole_key(wrong):
    """A key that was changed on the disk is not taken for the key of another row."""
    line = {"key": "0" * 32, "status": "ok", "output": "a", "error": None}

    assert is_outcome(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    assert not is_outcome(json.dumps(line | {"key": wrong}, separators=(",", ":")).encode() + b"\n")
