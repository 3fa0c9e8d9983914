"""Bytes become lines, lines become objects, objects become one reply; whatever is not a whole answer is an error."""

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.errors import (
    BadRequestError,
    EndpointNotFoundError,
    IncompleteReplyError,
    InvalidRequestError,
    NotOllamaError,
    OllamaError,
    PullFailedError,
    RejectedReplyError,
    RunnerError,
)
from ollama_provider.api.protocol import Decoder, Lines, encode
from ollama_provider.api.replies import Collector, as_embed_reply
from ollama_provider.api.schemas import (
    ChatRequest,
    CopyRequest,
    EmbedRequest,
    GenerateRequest,
    LegacyEmbedReply,
    PullRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings

GENERATE = GenerateRequest(model="m", prompt="hi")
CHAT = ChatRequest(model="m", messages="hi")
EMBED = EmbedRequest(model="m", input=["a", "b"])
SETTINGS = Settings(base_url="http://h")
DONE = {"model": "m", "response": "", "done": True}

json_texts = st.text(st.characters(codec="utf-8"))
documents = st.dictionaries(json_texts, st.none() | st.integers() | json_texts | st.lists(json_texts), min_size=1)


def as_lines(*objects: object) -> bytes:
    return b"".join(json.dumps(found, ensure_ascii=False).encode() + b"\n" for found in objects)


def decode(request, *chunks: bytes, status: int = 200, headers: dict[str, str] | None = None):
    decoder = Decoder(request, status, headers or {}, settings=SETTINGS, now=datetime.now(UTC))
    objects = [found for chunk in chunks for found in decoder.feed(chunk)]
    return objects + list(decoder.end())


def reply(request, *objects):
    collector = Collector(request, host="http://h")
    for found in objects:
        collector.add(json.loads(json.dumps(found)))
    return collector.reply()


@given(objects=st.lists(documents), data=st.data())
def test_any_chunking_gives_the_same_lines(objects, data):
    """Where the network cuts the bytes does not matter, not even in the middle of a character."""
    whole = as_lines(*objects)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    lines = Lines()
    found = [line for chunk in chunks for line in lines.feed(chunk)] + lines.end()

    assert [json.loads(line) for line in found] == objects


@pytest.mark.parametrize("separator", ["\u0085", "\u2028", "\u2029"])
def test_only_a_line_feed_ends_a_line(separator):
    """What `str.splitlines` takes for a line's end may stand unescaped inside of an answer."""
    objects = [{"response": f"one{separator}two", "done": False}, DONE]

    assert decode(GENERATE, as_lines(*objects)) == objects


def test_blank_lines_are_skipped():
    """Proxies may send empty lines to keep a connection alive."""
    assert decode(GENERATE, b"\n\r\n", as_lines(DONE), b"\n \n") == [DONE]


def test_an_answer_that_is_no_stream_needs_no_line_end():
    """Load and unload are answered with one JSON object, whatever was asked for."""
    assert decode(GENERATE, json.dumps(DONE).encode()) == [DONE]


def test_a_whole_document_may_be_spread_over_lines():
    """An answer that is no stream may be reformatted by a proxy."""
    assert decode(TagsRequest(), b'{\n "models": [\n', b"]\n}\n") == [{"models": []}]


def test_a_reply_without_a_body_is_no_object():
    """Copy and delete are answered by their status alone."""
    assert decode(CopyRequest(source="a", destination="b"), b"") == []
    assert decode(CopyRequest(source="a", destination="b")) == []


@pytest.mark.parametrize(
    ("request_", "body", "kind"),
    [
        pytest.param(GENERATE, b"", IncompleteReplyError, id="nothing"),
        pytest.param(GENERATE, as_lines({"response": "a", "done": False}), IncompleteReplyError, id="no done"),
        pytest.param(GENERATE, as_lines({"response": "a", "done": False})[:-5], IncompleteReplyError, id="cut"),
        pytest.param(GENERATE, as_lines(DONE)[:-5], IncompleteReplyError, id="cut at once"),
        pytest.param(GENERATE, b'{broken\n{"done":true}\n', IncompleteReplyError, id="malformed"),
        pytest.param(GENERATE, b"<html>Welcome</html>", NotOllamaError, id="a page"),
        pytest.param(GENERATE, b'"text"\n', NotOllamaError, id="JSON, but no object"),
        pytest.param(GENERATE, b"[1]", NotOllamaError, id="a list"),
        pytest.param(VersionRequest(), b"", IncompleteReplyError, id="no body where there should be one"),
        pytest.param(VersionRequest(), b'{"version":', IncompleteReplyError, id="cut document"),
        pytest.param(VersionRequest(), b"Ollama is running", NotOllamaError, id="not the api"),
        pytest.param(PullRequest(model="m"), as_lines({"status": "writing manifest"}), IncompleteReplyError, id="pull"),
        pytest.param(
            GENERATE,
            as_lines({"error": "an error was encountered while running the model"}),
            RunnerError,
            id="error line first",
        ),
        pytest.param(
            GENERATE,
            as_lines({"response": "a", "done": False}, {"error": "an error was encountered while running the model"}),
            RunnerError,
            id="error line later",
        ),
        pytest.param(GENERATE, b'{"error":"invalid model name"}', BadRequestError, id="error without a line's end"),
        pytest.param(
            PullRequest(model="m"),
            as_lines({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}),
            PullFailedError,
            id="pull error",
        ),
    ],
)
def test_status_200_is_not_success(request_, body, kind):
    """An answer that does not end as it should is an error of the right class, at whatever byte it goes wrong."""
    with pytest.raises(OllamaError) as raised:
        decode(request_, body, headers={"content-type": "text/html"})

    assert type(raised.value) is kind
    assert raised.value.model == getattr(request_, "model", None)


def test_what_follows_an_error_line_is_not_read():
    """The error counts, also if the stream goes on."""
    with pytest.raises(RunnerError):
        decode(GENERATE, as_lines({"error": "an error was encountered while running the model"}, DONE))


def test_a_refusal_is_read_whole_or_bounded():
    """A status that says no raises at the end of its body, or where the body is too long to be one of Ollama's."""
    with pytest.raises(EndpointNotFoundError):
        decode(GENERATE, b"404 page", b" not found", status=404)

    with pytest.raises(NotOllamaError):
        decode(GENERATE, *[b"x" * 1000] * 100, status=404)


def test_pieces_of_a_completion_are_joined():
    """Answer and thinking come in pieces, numbers and context in the last object."""
    found = reply(
        GENERATE,
        {"model": "m", "response": "", "thinking": "Let me ", "done": False},
        {"model": "m", "response": "", "thinking": "see.", "done": False},
        {"model": "m", "response": "Ro", "done": False, "logprobs": [{"token": "Ro"}]},
        {"model": "m", "response": "me", "done": False, "logprobs": [{"token": "me"}]},
        {**DONE, "done_reason": "stop", "context": [1, 2], "eval_count": 2, "new_field": 1},
    )

    assert (found.response, found.thinking, found.context, found.eval_count) == ("Rome", "Let me see.", [1, 2], 2)
    assert [entry["token"] for entry in found.logprobs] == ["Ro", "me"]
    assert found.model_extra == {"new_field": 1}


def test_tool_calls_are_collected_from_every_object():
    """One engine sends them before the last object, another one in it (seen on 0.24.0)."""

    def call(name: str) -> dict[str, object]:
        return {"function": {"name": name, "arguments": {"x": 1}}}

    found = reply(
        CHAT,
        {"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": [call("f")]}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "ok"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": [call("g")]}, "done": True},
    )

    assert [tool.function.name for tool in found.tool_calls] == ["f", "g"]
    assert (found.text, found.message.role) == ("ok", "assistant")


def test_an_answer_without_any_text_is_an_empty_one():
    """A model may end at once, and a load has no answer."""
    assert reply(GENERATE, {**DONE, "done_reason": "stop"}).text == ""
    message = {"role": "assistant", "content": ""}
    assert reply(CHAT, {"message": message, "done": True, "done_reason": "length"}).text == ""
    assert reply(GenerateRequest(model="m"), {**DONE, "done_reason": "load"}).text == ""
    assert reply(ChatRequest(model="m"), {"message": message, "done": True, "done_reason": "unload"}).text == ""


def test_a_reply_of_another_shape_is_not_ollamas():
    """The fields at fault are named, their values are not."""
    with pytest.raises(NotOllamaError, match="models") as raised:
        reply(TagsRequest(), {"models": "secret"})

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ([[1.0, 0.0]], "1 vectors came for 2 texts"),
        ([[1.0, 0.0], [1.0]], "equally long"),
        ([[1.0, 0.0], []], "no vector"),
        ([[], []], "no vector"),
        ([[1.0, 0.0], [1.0, float("nan")]], "NaN"),
        ([[1.0, 0.0], [1.0, float("inf")]], "NaN"),
        ([], "0 vectors"),
    ],
)
def test_vectors_must_be_whole(vectors, says):
    """One vector a text, all equally long, all finite."""
    with pytest.raises(RejectedReplyError, match=says):
        reply(EMBED, {"model": "m", "embeddings": vectors})


def test_null_in_place_of_a_vector_is_refused():
    """0.6.0 answered [null] for a model that cannot embed."""
    with pytest.raises(OllamaError, match="embeddings"):
        reply(EMBED, {"model": "m", "embeddings": [None, None]})


def test_a_load_of_an_embedding_model_has_no_vectors():
    """No texts, or an empty one alone, only load the model."""
    assert reply(EmbedRequest(model="m", input=[]), {"embeddings": []}).embeddings == []
    assert reply(EmbedRequest(model="m", input=""), {"embeddings": []}).embeddings == []


def test_legacy_vectors_are_scaled_to_length_1():
    """/api/embeddings does not normalise, /api/embed does: callers see no difference."""
    request = EmbedRequest(model="m", input=["a", "b"], dimensions=2)

    found = as_embed_reply(request, [LegacyEmbedReply(embedding=[3.0, 4.0, 12.0])] * 2, host="http://h")

    assert found.embeddings == [[0.6, 0.8]] * 2


def test_a_missing_legacy_vector_is_an_error():
    """An empty vector is what the old endpoint gives for a text it did not understand."""
    with pytest.raises(RejectedReplyError, match="no vector"):
        as_embed_reply(EMBED, [LegacyEmbedReply(embedding=[])] * 2, host="http://h")


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(model="m", prompt="broken \ud83d emoji"),
        ChatRequest(model="m", messages="broken \ud83d emoji"),
        EmbedRequest(model="m", input=["broken \ud83d emoji"]),
    ],
)
def test_a_lone_surrogate_is_refused_before_sending(request_):
    """Half an emoji cannot be sent as UTF-8; the error says so without quoting the prompt."""
    with pytest.raises(InvalidRequestError, match="surrogate") as raised:
        encode(request_)

    assert "emoji." not in str(raised.value)
    assert "broken \\ud83d" not in str(raised.value)
    assert raised.value.__suppress_context__


def nested(levels):
    schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema", [{"maximum": math.inf}, {"enum": [math.nan]}, nested(5000)], ids=["inf", "nan", "deep"]
)
def test_a_schema_that_is_no_json_is_refused(schema):
    """It would be sent with null in place of the number, or fail while it is sent."""
    with pytest.raises(InvalidRequestError, match="format: "):
        GenerateRequest(model="m", prompt="p", format=schema)


@given(prompt=json_texts)
def test_every_text_reaches_the_server_unchanged(prompt):
    """What is sent is the prompt, whatever characters it holds."""
    body = encode(GenerateRequest(model="m", prompt=prompt))

    assert json.loads(body)["prompt"] == prompt
