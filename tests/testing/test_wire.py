"""Names, options and Go's way with JSON, durations and base64."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.testing import StandIn
from ollama_provider.testing.answers.tokens import tokenise
from ollama_provider.testing.endpoints.requests import WrongTypeError, read_options
from ollama_provider.testing.go.encoding import BadRequestError, check_base64, decode, dumps, parse_duration, timestamp
from ollama_provider.testing.state.model_names import parse


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("llama2", "llama2:latest"),
        ("library/llama2", "llama2:latest"),
        ("registry.ollama.ai/library/llama2:latest", "llama2:latest"),
        ("https://registry.ollama.ai/library/llama2", "llama2:latest"),
        (" llama3.2:3b ", "llama3.2:3b"),
        ("user/m", "user/m:latest"),
        ("hf.co/a/b", "hf.co/a/b:latest"),
        ("localhost:5000/a/b:q4", "localhost:5000/a/b:q4"),
        ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
        ("gpt-oss:cloud", "gpt-oss:cloud"),
        ("m:local", "m:latest"),
    ],
)
def test_names_are_completed(text: str, short: str) -> None:
    """Host, namespace and tag have defaults; the short form leaves the first two out when they are the default."""
    assert parse(text).short == short


@pytest.mark.parametrize(
    "text", ["", "a b", "m@sha256:1", "a/b/c/d", "a/b.c/d", "m:", ":t", "m/", "a:b:c", "-m", "m" * 81]
)
def test_invalid_names(text: str) -> None:
    """Blanks, digests, four parts, dotted namespaces, empty parts, two tags."""
    assert parse(text) is None


def test_names_are_compared_without_case() -> None:
    """The spelling is kept, the key is not."""
    assert parse("LLaMA2:Latest").key == parse("llama2").key
    assert parse("LLaMA2").model == "LLaMA2"
    assert parse("llama3.2").key != parse("llama3.2:3b").key
    assert parse("hf.co/a/b").key != parse("huggingface.co/a/b").key


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("-1m", -60), ("0", 0), ("0s", 0), ("1.5s", 1.5), ("250ms", 0.25), ("1µs", 1e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    """As time.ParseDuration reads them."""
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
    """With Go's texts."""
    with pytest.raises(BadRequestError) as caught:
        parse_duration(text)

    assert str(caught.value) == error


@given(st.binary())
def test_padded_standard_base64_is_accepted(data: bytes) -> None:
    """Whatever was encoded as the API wants it."""
    check_base64(base64.b64encode(data).decode())


@pytest.mark.parametrize(
    ("text", "offset"),
    [("data:image/png;base64,iVBO", 4), ("https://x/y.png", 5), ("***", 0), ("QUJ", 0), ("QUJDRA", 4), ("QU-_", 2)],
)
def test_other_base64_is_refused(text: str, offset: int) -> None:
    """A prefix, a URL, no padding, the URL alphabet: Go names the byte."""
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
    """With Go's texts."""
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


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (
            {"num_predict": 4.7, "temperature": 1, "seed": None, "bogus": "x", "mirostat": 2},
            {"num_predict": 4, "temperature": 1.0},
        ),
        ({"use_mmap": True, "stop": ["a"]}, {"use_mmap": True, "stop": ["a"]}),
    ],
)
def test_options(options: dict, kept: dict) -> None:
    """Unknown and removed names are ignored, null is absent, numbers are converted."""
    assert read_options(options) == kept


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_ctx": "4096"}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"temperature": "0.2"}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_options_of_the_wrong_type(options: dict, error: str) -> None:
    """A string that Jinja made of a number is the usual case."""
    with pytest.raises(WrongTypeError) as caught:
        read_options(options)

    assert str(caught.value) == error


@given(st.text())
def test_the_tokens_of_a_text_are_the_text(text: str) -> None:
    """Nothing is lost between the tokens, so a streamed answer is the whole answer."""
    assert "".join(tokenise(text)) == text


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("chat", {"messages": ["hi"]}, "string into Go struct field ChatRequest.messages of type api.Alias"),
        (
            "chat",
            {"messages": [{"content": ["a"]}]},
            "array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            "chat",
            {"messages": [{"tool_calls": [{"function": {"index": "1"}}]}]},
            "string into Go struct field ChatRequest.messages.tool_calls.function.index of type int",
        ),
        ("generate", {"images": [1]}, "number into Go struct field GenerateRequest.images of type api.ImageData"),
        (
            "chat",
            {"tools": [{"function": {"name": 1}}]},
            "number into Go struct field ToolFunction.tools.function.name",
        ),
        (
            "chat",
            {"tools": [{"function": {"parameters": {"required": "x"}}}]},
            "string into Go struct field ToolFunctionParameters.tools.function.parameters.required of type []string",
        ),
        (
            "chat",
            {"tools": [{"function": {"parameters": {"properties": {"a": {"enum": 1}}}}}]},
            "number into Go struct field ToolFunctionParameters.tools.function.parameters.properties.enum of type",
        ),
        ("embed", {"dimensions": 2**64}, "number 18446744073709551616 into Go struct field EmbedRequest.dimensions"),
        ("show", {"template": 1}, "number into Go struct field ShowRequest.template of type string"),
    ],
)
def test_wrong_types_are_named_as_go_does(path: str, body: dict, error: str) -> None:
    """The struct, the path to the field and its type; compared with Ollama's own structs in 0.24."""
    reply = StandIn().answer("POST", f"/api/{path}", body)

    assert reply.status == 400
    assert reply.json["error"].startswith(f"json: cannot unmarshal {error}")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            b'{"options":{"num_ctx":1e400}}',
            "cannot unmarshal number 1e400 into Go struct field GenerateRequest.options",
        ),
        (b'{"keep_alive":[1]}', "Unsupported type: '[]interface {}'"),
        (b'{"keep_alive":NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"a":' + b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_values_that_go_cannot_read(body: bytes, error: str) -> None:
    """Python reads them, or falls over them."""
    reply = StandIn().answer("POST", "/api/generate", body=body)

    assert reply.status == 400
    assert error in reply.json["error"]


def test_null_is_an_empty_body() -> None:
    """Go leaves the struct as it is."""
    assert StandIn().answer("POST", "/api/show", body=b"null").json == {"error": "model is required"}
