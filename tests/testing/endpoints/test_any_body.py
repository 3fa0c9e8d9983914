"""The stand-in answers every request body, also an invalid one."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_provider.testing import Model, StandIn
from ollama_provider.testing.endpoints.structs import REQUEST_STRUCTS
from ollama_provider.testing.exchange import Request, collect
from ollama_provider.testing.go.encoding import dumps

KEYS = st.sampled_from(
    [
        "role",
        "content",
        "images",
        "tool_calls",
        "function",
        "name",
        "type",
        "num_ctx",
        "stop",
        "properties",
        "required",
        "enum",
        "$ref",
        "anyOf",
        "allOf",
        "items",
        "minItems",
        "minimum",
        "maxLength",
        "arguments",
        "parameters",
        "temperature",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 100_000)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.sampled_from(["", "m", "5m", "-1", "json", "object", "user", "low", "{{ x", "a b", "summarise this", "\u2028"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


TEXT = st.sampled_from(["hello", "summarise this", "m", "{{ x", ""])
OBJECT = st.dictionaries(KEYS, JSON, max_size=4)
TYPED = {
    "string": TEXT,
    "bool": st.booleans(),
    "int": st.integers(-1, 30),
    "float32": st.floats(-2, 2, width=32),
    "float64": st.floats(-2, 2, width=32),
    "[]openai.Message": st.lists(OBJECT | st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1),
    "openai.StreamOptions": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "openai.ResponseFormat": OBJECT | st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": OBJECT}),
    "openai.Reasoning": st.fixed_dictionaries({"effort": TEXT}),
    "[]api.Tool": st.lists(JSON | st.fixed_dictionaries({"function": OBJECT}), max_size=2),
    "[]api.ImageData": st.lists(TEXT, max_size=2),
    "[]int": st.lists(st.integers(0, 9)),
    "[]string": st.lists(TEXT, max_size=2),
    "raw": JSON,
    "map[string]interface {}": OBJECT,
    "map[string]string": st.dictionaries(TEXT, TEXT, max_size=2),
    "[]api.Message": st.lists(OBJECT | st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3),
    "api.Tools": st.lists(JSON | st.fixed_dictionaries({"function": OBJECT}), max_size=2),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """An endpoint and a body with some of its fields, mostly of the right type."""
    path = draw(st.sampled_from(sorted(REQUEST_STRUCTS)))
    known = REQUEST_STRUCTS[path][1]
    chosen = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=6))
    fields = {name: draw(TYPED[known[name]] if draw(st.integers(0, 9)) else JSON) for name in chosen}
    if draw(st.integers(0, 9)) and "model" in known:
        fields["model"] = "m"
    return path, dumps(fields).encode("utf-8", "replace")


@given(requests())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_body_has_an_answer(request: tuple[str, bytes]) -> None:
    """The reply is a status with JSON objects or an empty body. The stand-in never raises."""
    path, body = request
    model = Model("m", ("completion", "tools", "thinking", "embedding", "insert"), 64, llama_runner=True)
    stand_in = StandIn([model], registry=[model])
    method = "DELETE" if path == "/api/delete" else "POST"

    reply = collect(stand_in.exchange(Request(method, path, {}, body)))

    assert reply.status in {200, 400, 403, 404, 500}
    if reply.headers.get("content-type") != "text/event-stream":
        assert all(isinstance(line, dict) for line in reply.lines)
    assert stand_in.open_requests == []


@given(st.binary(max_size=40), st.sampled_from(sorted(REQUEST_STRUCTS)))
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_no_json_have_an_answer(body: bytes, path: str) -> None:
    """The reply is 400 with Go's text, or that to an empty request."""
    method = "DELETE" if path == "/api/delete" else "POST"

    reply = collect(StandIn().exchange(Request(method, path, {}, body)))

    assert reply.status in {400, 404}
    assert set(reply.json) == {"error"}
