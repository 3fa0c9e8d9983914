"""Options and the fields of requests are read as Ollama does, with its errors for values of the wrong type."""

import pytest

from ollama_provider.testing import StandIn
from ollama_provider.testing.endpoints.requests import WrongTypeError, read_options


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
    """Such as a number that a Jinja template turned into a string."""
    with pytest.raises(WrongTypeError) as caught:
        read_options(options)

    assert str(caught.value) == error


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
    """Python reads some of these values, or raises other errors."""
    reply = StandIn().answer("POST", "/api/generate", body=body)

    assert reply.status == 400
    assert error in reply.json["error"]


def test_null_is_an_empty_body() -> None:
    """For Go, a body of `null` is an empty struct."""
    assert StandIn().answer("POST", "/api/show", body=b"null").json == {"error": "model is required"}
