"""JSON, durations, times and base64 are read and written as Go does."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.testing.go.encoding import BadRequestError, check_base64, decode, dumps, parse_duration, timestamp


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("-1m", -60), ("0", 0), ("0s", 0), ("1.5s", 1.5), ("250ms", 0.25), ("1µs", 1e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are read as `time.ParseDuration` does."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("", 'time: invalid duration ""'),
        ("soon", 'time: invalid duration "soon"'),
    ],
)
def test_wrong_durations(text: str, error: str) -> None:
    """The error has Go's text."""
    with pytest.raises(BadRequestError) as caught:
        parse_duration(text)

    assert str(caught.value) == error


@given(st.binary())
def test_padded_standard_base64_is_accepted(data: bytes) -> None:
    """Every text in this encoding is accepted."""
    check_base64(base64.b64encode(data).decode())


@pytest.mark.parametrize(
    ("text", "offset"),
    [("data:image/png;base64,iVBO", 4), ("https://x/y.png", 5), ("***", 0), ("QUJ", 0), ("QUJDRA", 4), ("QU-_", 2)],
)
def test_other_base64_is_refused(text: str, offset: int) -> None:
    """Go's error names the first invalid byte."""
    with pytest.raises(BadRequestError, match=f"illegal base64 data at input byte {offset}$"):
        check_base64(text)


def test_json_is_written_as_go_does() -> None:
    """HTML characters and U+2028 are escaped, U+0085 and everything else is raw."""
    assert dumps({"a": "<b>&\u2028\u0085é"}) == '{"a":"\\u003cb\\u003e\\u0026\\u2028\u0085é"}'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "missing request body"),
        (b"  ", "missing request body"),
        (b'{"a":', "unexpected EOF"),
        (b'{"a":"b', "unexpected EOF"),
        (b"[1,", "unexpected EOF"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b"\x1f\x8b", "invalid character '\\x1f' looking for beginning of value"),
    ],
)
def test_bodies_that_are_no_json(body: bytes, error: str) -> None:
    """The error has Go's text."""
    with pytest.raises(BadRequestError) as caught:
        decode(body)

    assert str(caught.value) == error


def test_bodies_that_go_accepts() -> None:
    """Only the first value counts, wrong UTF-8 and lone surrogates are replaced."""
    assert decode(b'{"a":1} rubbish') == {"a": 1}
    assert decode(b'{"a":"\xff"}') == {"a": "\ufffd"}
    assert decode(b'{"a":["\\ud800 x"]}') == {"a": ["\ufffd x"]}


def test_timestamps_have_up_to_nine_digits() -> None:
    """Trailing zeros are dropped, as Go prints a time; 292 years ahead is no problem."""
    assert timestamp(0.5) == "1970-01-01T00:00:00.5Z"
    assert timestamp(0.0) == "1970-01-01T00:00:00Z"
    assert timestamp(2**63 / 1e9 + 1.8e9).startswith("2319-")
