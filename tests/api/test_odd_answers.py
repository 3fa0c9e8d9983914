"""An answer that Ollama would not give fails alone, with an error of ours, from both clients and both verbs."""

import contextlib
import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.events import PullMoved
from ollama_provider.api.protocol import Decoder
from ollama_provider.api.replies import Collector, StreamedReplies
from ollama_provider.api.schemas import (
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    PsRequest,
    PullRequest,
    Request,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings
from ollama_provider.api.timeouts import timeouts_for
from ollama_provider.testing import Respond

GENERATE = GenerateRequest(model="llama3.2", prompt="hi")
CHAT = ChatRequest(model="llama3.2", messages="hi")
EMBED = EmbedRequest(model="nomic-embed-text", input=["hi"])
PULL = PullRequest(model="llama3.2")
END = {"done": True, "done_reason": "stop"}
LONG = 10**400


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def says(*lines: Any) -> Respond:
    """A stream of these objects, or of these texts as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return Respond(200, ("\n".join(texts) + "\n").encode(), "application/x-ndjson")


#: An answer of Ollama's for each kind of request, and what a field of it may be instead.
WHOLE: list[tuple[Request[Any], list[dict[str, Any]]]] = [
    (
        GENERATE,
        [
            {"model": "m", "created_at": "2026-01-01T00:00:00Z", "response": "a", "thinking": "t", "done": False},
            {"done": True, "done_reason": "stop", "context": [1], "logprobs": [{"token": "a"}], "eval_count": 2},
        ],
    ),
    (
        CHAT,
        [
            {"message": {"role": "assistant", "content": "a", "thinking": "t", "images": None}, "done": False},
            {
                "message": {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1}, "index": 0}}]},
                "done": True,
            },
        ],
    ),
    (EmbedRequest(model="m", input=["a", "b"]), [{"model": "m", "embeddings": [[1.0, 0.0], [0.0, 1.0]]}]),
    (PULL, [{"status": "pulling a", "digest": "a", "total": 10, "completed": 5}, {"status": "success"}]),
    (VersionRequest(), [{"version": "0.24.0"}]),
    (TagsRequest(), [{"models": [{"name": "m", "size": 1, "details": {"families": ["a"]}, "capabilities": ["a"]}]}]),
    (PsRequest(), [{"models": [{"name": "m", "expires_at": "2026-01-01T00:00:00Z", "context_length": 5}]}]),
    (ShowRequest(model="m"), [{"model_info": {"general.architecture": "a", "a.context_length": 5}, "messages": []}]),
]
INSTEAD = [
    *(None, True, 0, -1, 1.5, 2**63, 10**400, 1e300, "", "x", "\ud83d", "9" * 5000),
    *([], [[]], [None], ["a"], {}, {"a": 1}, {"error": "a"}, {"error": {"message": []}}, {"object": "list", "data": 5}),
    *({"object": []}, {"object": {"list": 1}, "error": "a"}, {"error": {"type": [], "message": {}}}),
]


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*above, key))


def replaced(value: Any, place: tuple[Any, ...], instead: Any) -> Any:
    if not place:
        return instead
    copied = copy.copy(value)
    copied[place[0]] = replaced(value[place[0]], place[1:], instead)
    return copied


def read(request: Request[Any], data: bytes, *, in_pieces: bool) -> None:
    """Do with an answer what a client does with it."""
    settings, seconds = Settings(base_url="http://h"), 0.0
    decoder = Decoder(request, 200, {}, settings=settings, now=datetime.now(UTC))
    collector, pieces = Collector(request, host="http://h"), StreamedReplies(request, host="http://h")
    timeouts = timeouts_for(request, settings.timeouts, seconds)
    for part in [*decoder.feed(data), *decoder.end()]:
        seconds += 7
        timeouts.decoded(part, seconds)
        if in_pieces:
            pieces.read(part).model_dump_json().encode()
        else:
            collector.add(part)
    if not in_pieces:
        json.dumps(collector.reply().model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("in_pieces", [False, True], ids=["send", "stream"])
@pytest.mark.parametrize(("request_", "answer"), WHOLE, ids=lambda value: getattr(value, "path", ""))
def test_whatever_stands_in_whatever_field(request_, answer, in_pieces):
    """Each field in turn is each of these: an error of ours comes out, or a reply that is strict JSON."""
    for place in places(answer):
        for instead in INSTEAD:
            found = replaced(answer, place, instead)
            data = "\n".join(map(json.dumps, found if isinstance(found, list) else [found])).encode()
            with contextlib.suppress(OllamaError):
                read(request_, data, in_pieces=in_pieces)


def fails(on, ollama, request: Request[Any], turn: Respond, *, stream: bool = False) -> OllamaError:
    ollama.stand_in.script(turn, path=request.path.removeprefix("/api/"))
    with pytest.raises(OllamaError) as raised:
        (on.stream if stream else on.send)(request, base_url=ollama.url, max_attempts=1)
    assert "secret" not in str(raised.value)
    return raised.value


ODD = [
    (GENERATE, {"response": 5, **END}),
    (GENERATE, {"response": 0, **END}),
    (GENERATE, {"response": ["secret"], **END}),
    (GENERATE, {"response": {}, **END}),
    (GENERATE, {"response": "a", "thinking": 7, **END}),
    (GENERATE, {"response": "a", "tool_calls": 7, **END}),
    (GENERATE, {"response": "a", "logprobs": 7, **END}),
    (GENERATE, {"response": "a", "logprobs": "secret", **END}),
    (GENERATE, {"response": "a", "logprobs": [1], **END}),
    (GENERATE, {"response": "a", "eval_count": LONG, **END}),
    (GENERATE, {"response": "a", "eval_count": 2**63, **END}),
    (GENERATE, {"response": "a", "total_duration": "secret", **END}),
    (GENERATE, {"response": "a", "created_at": "secret", **END}),
    (GENERATE, {"response": "a", "context": "secret", **END}),
    (GENERATE, {"response": "a", "done": True, "done_reason": 5}),
    (CHAT, {"message": "secret", **END}),
    (CHAT, {"message": [], **END}),
    (CHAT, {"message": {"role": "assistant", "content": [{"type": "text", "text": "secret"}]}, **END}),
    (CHAT, {"message": {"role": "assistant", "content": False}, **END}),
    (CHAT, {"message": {"role": 5, "content": "a"}, **END}),
    (CHAT, {"message": {"role": "assistant", "content": "", "tool_calls": 7}, **END}),
    (CHAT, {"message": {"role": "assistant", "content": "", "tool_calls": [None]}, **END}),
    (CHAT, {"message": {"role": "assistant", "content": "", "tool_calls": [{"function": None}]}, **END}),
    (CHAT, {"message": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no"}}]}, **END}),
    (CHAT, {"message": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, **END}),
    (CHAT, {"message": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 7}}]}, **END}),
    (GENERATE, f'{{"done": true, "response": "a", "more": {nested(100_000)}}}'),
    (GENERATE, f'{{"done": true, "response": "a", "more": {nested(500)}}}'),
    (GENERATE, '{"done": true, "response": "a", "more": 1e400}'),
    (GENERATE, '{"done": true, "response": "a", "more": NaN}'),
    (GENERATE, f'{{"done": true, "response": "a", "eval_count": {"9" * 10_000}}}'),
    (PULL, {"status": "pulling x", "digest": "x", "total": LONG, "completed": 1}),
    (PULL, {"status": "pulling x", "digest": "x", "total": 1e300, "completed": 1}),
    (PULL, {"status": ["secret"]}),
]


@pytest.mark.parametrize("stream", [False, True], ids=["send", "stream"])
@pytest.mark.parametrize(("request_", "answer"), ODD, ids=lambda value: str(value)[:90])
def test_a_field_of_another_type_is_a_fault_of_that_answer(on, ollama, request_, answer, stream):
    """It may be better the next time, and says nothing about the address."""
    error = fails(on, ollama, request_, says(answer), stream=stream)

    assert type(error) is errors.IncompleteReplyError
    assert error.retryable
    assert error.blame is errors.Blame.REQUEST


@pytest.mark.parametrize(
    "vectors", [LONG, "secret", [[LONG]], [["secret"]], [[]], [[None]], {}, None], ids=lambda value: str(value)[:20]
)
def test_odd_vectors_are_refused(on, ollama, vectors):
    """What is no vector of finite numbers never comes out as one."""
    error = fails(on, ollama, EMBED, says({"model": "m", "embeddings": vectors}))

    assert isinstance(error, errors.IncompleteReplyError | errors.RejectedReplyError)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (VersionRequest(), {"version": 5}),
        (VersionRequest(), {"version": "9" * 10_000}),
        (TagsRequest(), {"models": [{"size": LONG}]}),
        (TagsRequest(), {"models": [{"details": 5}]}),
        (TagsRequest(), f'{{"models": {nested(100_000)}}}'),
        (PsRequest(), {"models": [{"context_length": "secret"}]}),
        (PsRequest(), {"models": [{"expires_at": "secret"}]}),
        (ShowRequest(model="llama3.2"), {"model_info": [1]}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_odd_metadata_is_an_error_of_ours(on, ollama, request_, answer):
    """Where no model has answered, such fields say that it is not Ollama."""
    error = fails(on, ollama, request_, says(answer))

    assert isinstance(error, errors.NotOllamaError | errors.IncompleteReplyError)


@pytest.mark.parametrize("length", ["many", [], -1, LONG, 1.5])
def test_an_odd_length_of_context_is_an_unknown_one(on, ollama, length):
    """`model_info` may hold anything."""
    answer = {"model_info": {"general.architecture": "llama", "llama.context_length": length}}
    ollama.stand_in.script(says(answer), path="show")

    (reply,) = on.send(ShowRequest(model="llama3.2"), base_url=ollama.url)

    assert reply.context_length is None


@pytest.mark.parametrize("location", ["http://[::1", "http://[", "//", "http://a:b:c/"])
def test_a_redirect_to_what_is_no_url(on, ollama, location):
    """It is a redirect all the same."""
    ollama.stand_in.script(Respond(302, headers={"Location": location}))

    with pytest.raises(errors.NotOllamaError, match="redirect"):
        on.send(GENERATE, base_url=ollama.url)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GENERATE, {"done": True}),
        (GENERATE, {"response": "", "done": True, "done_reason": "load"}),
        (GENERATE, {"response": "", "done": True, "done_reason": "unload"}),
        (GENERATE, {"response": None, "done": True, "done_reason": None}),
        (GENERATE, {"response": "", "done": True, "done_reason": "something new"}),
        (GenerateRequest(model="llama3.2", images=[b"x"]), {"response": "", "done": True, "done_reason": "load"}),
        (CHAT, {"done": True}),
        (CHAT, {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}),
        (
            ChatRequest(model="llama3.2", messages=[{"role": "system", "content": "Be brief."}]),
            {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"},
        ),
    ],
    ids=lambda value: str(value)[:90],
)
@pytest.mark.parametrize("stream", [False, True], ids=["send", "stream"])
def test_done_without_an_answer_is_no_answer(on, ollama, request_, answer, stream):
    """Neither a text nor a reason to end: the server may only have loaded the model."""
    error = fails(on, ollama, request_, says(answer), stream=stream)

    assert type(error) is errors.IncompleteReplyError
    assert "answered nothing" in str(error)


@pytest.mark.parametrize("stream", [False, True], ids=["send", "stream"])
def test_an_empty_answer_with_a_reason_to_end_is_an_answer(on, ollama, stream):
    """A model may have nothing to say."""
    ollama.stand_in.script(says({"response": "", **END}))

    replies = (on.stream if stream else on.send)(GENERATE, base_url=ollama.url)

    assert replies[-1].text == ""


@pytest.mark.parametrize(
    ("field", "done", "total"), [("status", 5, 10), ("digest", 0, 0), ("total", 0, 0), ("completed", 0, 10)]
)
@pytest.mark.parametrize("stream", [False, True], ids=["send", "stream"])
def test_null_in_a_line_of_a_pull_counts_as_absent(on, ollama, field, done, total, stream):
    """The pull goes on, and succeeds at its first attempt."""
    line = {"status": "pulling x", "digest": "sha256:x", "total": 10, "completed": 5} | {field: None}
    ollama.stand_in.script(says(line, {"status": "success"}), path="pull")

    replies = (on.stream if stream else on.send)(PULL, base_url=ollama.url, max_attempts=1)

    assert replies[-1].done
    first = next(event for event in on.events if isinstance(event, PullMoved))
    assert (first.done, first.total) == (done, total)


@pytest.mark.parametrize(
    ("sent", "read"),
    [('{"a": 1}', {"a": 1}), ("", {}), (" ", {}), (None, {}), ({"a": 1}, {"a": 1}), ("{}", {})],
)
@pytest.mark.parametrize("stream", [False, True], ids=["send", "stream"])
def test_arguments_of_a_tool_call_may_be_text_or_nothing(on, ollama, sent, read, stream):
    """Imitations of Ollama and some models send them as JSON text, or leave them out."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": sent}}]}
    ollama.stand_in.script(says({"message": message, "done": False}, {"done": True}), path="chat")

    replies = (on.stream if stream else on.send)(CHAT, base_url=ollama.url)

    assert replies[0].tool_calls[0].function.arguments == read


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (r"cut \ud83d emoji", "cut � emoji"),
        (r"\udc00", "�"),
        (r"whole \ud83d\ude00", "whole 😀"),
        (r"a\\ud83d", "a\\ud83d"),
    ],
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(on, ollama, sent, read):
    """As Ollama itself writes half a character; what comes out can be said in UTF-8."""
    ollama.stand_in.script(says(f'{{"response": "{sent}", "done": true, "done_reason": "stop"}}'))

    (reply,) = on.send(GENERATE, base_url=ollama.url)

    assert reply.text == read
    assert reply.text.encode()


@pytest.mark.parametrize("garbage", [b"\xff\xfe\xfd", b"\xed\xa0\xbd", b"\x00\x00"])
def test_garbage_in_the_middle_of_an_answer_is_a_fault_of_that_answer(on, ollama, garbage):
    """Bytes that are no UTF-8 inside a line spoil the answer, and not the setup."""
    first, last = b'{"response": "a", "done": false}\n', b'{"done": true}\n'
    ollama.stand_in.script(Respond(200, first + b'{"response": "' + garbage + b'"}\n' + last, "application/x-ndjson"))

    with pytest.raises(errors.IncompleteReplyError):
        on.send(GENERATE, base_url=ollama.url, max_attempts=1)
