"""Replies of the stand-in are compared with recorded replies of real servers to the same requests."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from ollama_provider.testing import Answer, Crash, Fail, Model, Reply, Server, StandIn, serve

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
EXCHANGES = [
    (version, json.loads(line))
    for version, name in (("0.24.0", "exchanges.jsonl"), ("0.33.0", "exchanges-0.33.jsonl"))
    for line in (RECORDINGS / name).read_text("utf-8").splitlines()
]

MODEL = {
    "context_length": 2048,
    "embedding_length": 96,
    "parameter_size": "401K",
    "quantization_level": "F16",
    "size": 829_568,
}
BLOBS = "/root/.ollama/models/blobs/"
NO_MODEL = f"unable to load model: {BLOBS}sha256-c6e74bb4ebac929ef0c5cb014508916f4217389368e1159dc83d1e7b4e6b866e"
NO_TENSOR = "llama runner process has terminated: error loading model: missing tensor 'blk.1.ffn_up.weight'\npanic:"
LLAMA = {**MODEL, "llama_runner": True, "template": "{{ .Prompt }}\n", "parameters": {"stop": ["<|im_end|>"]}}
TINY = [
    Model("tiny", **LLAMA),
    Model("tiny-notemplate", **MODEL),
    Model(
        "tiny-tools",
        ("completion", "tools", "thinking"),
        **LLAMA | {"parameters": {"stop": ["<|im_end|>", "<|im_start|>"], "temperature": 0.7}},
        system="You are a test model.",
        license="MIT",
    ),
    Model("tiny-fim", ("completion", "insert"), **LLAMA),
    Model("tiny-endless", **LLAMA),
    Model("tiny-slow", **LLAMA | {"parameter_size": "90.37M", "size": 180_796_512}),
    Model("tiny-bigctx", **LLAMA | {"context_length": 2**30}),
    Model("tinyq", ("completion", "tools", "thinking"), **MODEL, family="qwen3"),
    Model("tiny-embed", ("embedding",), 256, 64, "bert", "121K", "F16", 292_672),
    Model("made", **LLAMA, system="You are M2", parent="tiny:latest"),
    Model("tiny-copy", **LLAMA),
    Model(
        "bad-arch",
        **LLAMA,
        load_error=NO_MODEL,
    ),
    Model("bad-blob", **LLAMA, load_error='tensor "output.weight" offset+size (497568) exceeds file size (415440)'),
    Model(
        "bad-missing",
        **LLAMA,
        load_error=NO_TENSOR,
    ),
    Model("bad-noblob", (), **LLAMA),
]

# A key is the name of a recording, of both servers or, with a version at its end, of one.
DIFFERENT = {
    # Differences on purpose, with their reasons.
    "generate-cloud-suffix-0.33.0": "the recorded server had its cloud on and no network",
    "tags-empty-0.33.0": "recorded with its models in place",
    "v1-models-empty-0.33.0": "recorded with its models in place",
    "cancel-nonstream-timeout": "a timeout of the client is no reply; test_faults.py has it",
    "cors-preflight": "no browser is a client of ours: Origin is checked, CORS headers are not sent",
    "options-tags": "Allow lists the methods in another order",
    "load-garbage-blob": "a panic of the server, 500 with an empty body: Respond(500)",
    "server-sigkill-nonstream": "a broken connection is no reply; test_faults.py has it",
    "server-sigkill-stream": "a broken connection is no reply; test_faults.py has it",
    "server-sigterm-nonstream": "a broken connection is no reply; test_faults.py has it",
    "server-sigterm-stream": "a broken connection is no reply; test_faults.py has it",
    "generate-immediate-eos": "the answer of that model to a bare template; the shape is that of the others",
    "create-quantize": "the layers and the number of progress lines are those of a real file",
}
OFFLINE = "dial tcp: lookup registry.ollama.ai on 192.0.2.53:53: no such host"
MANIFEST = 'pull model manifest: Get "https://registry.ollama.ai/v2/library/{}/manifests/latest": ' + OFFLINE
CALL = Answer("", tool_calls=(("get_weather", {"city": "Paris", "days": 2}),))
SCRIPTED = {
    # Replies that depended on the recording machine, or on the output of the tiny model.
    "chat-tools": CALL,
    "chat-tools-stream": CALL,
    "chat-tools-think": CALL,
    "chat-tools-unknown-function": "",
    "chat-q-false": Answer("the", thinking="Let me think step by step."),
    "chat-q-stream": Answer("the", thinking="Let me think step by step."),
    "chat-stop-hit": " said he tree came all made",
    "chat-think-absent": Answer("the " * 9, thinking="Let me think step by step."),
    "chat-think-stream": Answer("the " * 9, thinking="Let me think step by step."),
    "generate-thinkmodel-stream": Answer("the " * 9, thinking="Let me think step by step."),
    "generate-thinkmodel-true": Answer("the " * 9, thinking="Let me think step by step."),
    "create-from-missing-nostream": Fail(MANIFEST.format("nope-nope")),
    "generate-opts-many": " ",
    "generate-thinkmodel-default-json": "word " * 40,
    "generate-format-json": "word " * 60,
    "generate-format-empty-object": "word " * 60,
    "chat-numctx-4": "word " * 60,
    "generate-format-json-0.33.0": Answer("{\n }"),
    "generate-format-empty-object-0.33.0": Answer("{\n }"),
    "load-timeout": Fail("timed out waiting for llama runner to start - progress 0.00 - "),
    "load-timeout-0.33.0": Fail("timed out waiting for llama-server to start - "),
    "pull-existing-nonet": Fail(MANIFEST.format("tiny")),
    "pull-unknown": Fail(MANIFEST.format("nope-nope")),
    "pull-unknown-nostream": Fail(MANIFEST.format("nope-nope")),
    "pull-unknown-name-key": Fail(MANIFEST.format("nope-nope")),
    "runner-killed-chat-nonstream": Crash(after=18, log=""),
    "runner-killed-chat-stream": ("word " * 50, Crash(after=17, log="")),
    "runner-killed-stream": ("word " * 50, Crash(after=20, log="")),
    "runner-sigabrt-stream": ("word " * 50, Crash(after=12)),
    "runner-sigterm-stream": ("word " * 50, Crash(after=16)),
    "runner-killed-prompt-eval-stream": Crash(after=0, log=""),
    "generate-numctx-small-gen-beyond": "word " * 150,
}
TOO_LARGE = {
    "toolarge-numctx-100m": "35.8",
    "toolarge-numctx-100m-stream": "35.8",
    "toolarge-numctx-1g": "357.6",
    "toolarge-numctx-1g-stream": "357.6",
}


def _push_failure(digest: str) -> Callable[[StandIn], None]:
    text = f'Head "https://registry.ollama.ai/v2/library/tiny/blobs/sha256:{digest}": {OFFLINE}'
    return lambda stand_in: stand_in.script(Fail(text), path="push")


def _load(model: str, keep_alive: object = None) -> Callable[[StandIn], None]:
    return lambda stand_in: stand_in.answer("POST", "/api/generate", {"model": model, "keep_alive": keep_alive})


def _empty(stand_in: StandIn) -> None:
    for model in stand_in.models:
        stand_in.remove(model.name)


def _newest(*names: str) -> Callable[[StandIn], None]:
    def install(stand_in: StandIn) -> None:
        for name in reversed(names):
            stand_in.install(stand_in.model(name))

    return install


def _too_large(size: str) -> Callable[[StandIn], object]:
    text = f"model requires more system memory ({size} GiB) than is available (22.4 GiB)"
    return lambda stand_in: stand_in.install(replace(stand_in.model("tiny-bigctx"), load_error=text))


PUSH = _push_failure("498d53999727b4a38daa0534140340f642c896ee1e0bd086b8e060601401ed53")
PUSH_NEWER = _push_failure("c0cbc421de1b5e28e6d8afb32bd78023dce1483d7634fc80110a4f7cb2f97c91")
PREPARED: dict[str, Callable[[StandIn], object]] = {
    "push-tiny": PUSH,
    "push-tiny-nostream": PUSH,
    "push-tiny-0.33.0": PUSH_NEWER,
    "push-tiny-nostream-0.33.0": PUSH_NEWER,
    "ps-loaded": _load("tiny"),
    "ps-default-numctx": _load("tiny-bigctx"),
    "ps-keepalive-10s": _load("tiny", "10s"),
    "ps-keepalive-3600": _load("tiny", 3600),
    "ps-keepalive-minus1": _load("tiny", -1),
    "ps-keepalive-float": lambda stand_in: (_load("tiny", 0.5)(stand_in), _load("tiny-bigctx")(stand_in)),
    "ps-keepalive-reset": lambda stand_in: (_load("tiny-bigctx")(stand_in), _load("tiny")(stand_in)),
    "ps-numctx-huge": lambda stand_in: stand_in.answer(
        "POST", "/api/generate", {"model": "tiny", "options": {"num_ctx": 10_000_000}}
    ),
    "tags-empty": _empty,
    "v1-models": _newest("bad-blob", "tiny-bigctx", "tiny-embed"),
    "v1-models-0.33.0": _newest("bad-noblob", "tiny-bigctx", "tiny-slow"),
    "v1-models-empty": _empty,
    "tags": _newest("tiny-bigctx", "tiny-embed", "bad-missing"),
    "tags-0.33.0": lambda stand_in: (
        stand_in.install(replace(stand_in.model("bad-noblob"), capabilities=("completion",))),
        _newest("tiny-bigctx", "bad-noblob", "bad-blob")(stand_in),
    ),
    "tags-with-broken": _newest("tiny-embed", "bad-arch", "tiny-bigctx"),
    "tags-corrupt-manifest": _newest("bad-arch", "bad-blob", "bad-missing"),
    **{name: _too_large(size) for name, size in TOO_LARGE.items()},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.mark.parametrize(
    ("version", "exchange"),
    [
        pytest.param(version, exchange, id=f"{exchange['name']}-{version}")
        for version, exchange in EXCHANGES
        if not {exchange["name"], f"{exchange['name']}-{version}"} & set(DIFFERENT)
    ],
)
def test_the_stand_in_answers_as_the_real_server_did(server: Server, version: str, exchange: dict) -> None:
    """Status, content type, error texts, and the keys and types of every object are those of the recording."""
    stand_in = server.stand_in = StandIn(TINY, registry=(), version=version)
    name, of_version = exchange["name"], f"{exchange['name']}-{version}"
    PREPARED.get(of_version, PREPARED.get(name, _nothing))(stand_in)
    if (turn := SCRIPTED.get(of_version, SCRIPTED.get(name))) is not None:
        stand_in.script(turn, path="*")
    stand_in.script("word " * 1000, model="tiny-endless", always=True)

    reply = _ask(server, exchange["request"])

    assert (reply.status, reply.headers.get("content-type")) == (exchange["status"], exchange.get("content_type"))
    if "lines" in exchange:
        _assert_same_stream(reply, exchange["lines"])
    elif "events" in exchange:
        events = [json.loads(line[6:]) for line in reply.body.split(b"\n\n") if line and line != b"data: [DONE]"]
        assert reply.body.endswith(b"\n\ndata: [DONE]\n\n")
        assert len(events) == len(exchange["events"]) - 1
        _assert_same(events, exchange["events"][:-1])
    elif "body" in exchange:
        _assert_same(reply.json, exchange["body"])
    elif exchange["request"]["method"] != "HEAD":
        assert reply.body.decode() == exchange.get("text", "")


def test_every_difference_is_about_a_recording() -> None:
    """Every entry in the tables of this module names a recording."""
    names = {name for version, e in EXCHANGES for name in (e["name"], f"{e['name']}-{version}")}

    assert set(DIFFERENT) | set(SCRIPTED) | set(PREPARED) <= names
    assert not set(DIFFERENT) & (set(SCRIPTED) | set(PREPARED))


def _nothing(stand_in: StandIn) -> None:
    """Leave it as it is."""


def _ask(server: Server, request: dict) -> Reply:
    given = _expanded(request["body"]) if "body" in request else None
    body = request.get("raw", "").encode("latin-1") if given is None else json.dumps(given).encode()
    connection = HTTPConnection(server.host, server.port, timeout=30)
    try:
        headers = {name.title(): value for name, value in request.get("headers", {}).items()}
        # As it is, without an Accept-Encoding or Content-Type of this client's own.
        connection.putrequest(
            request["method"], request["path"], skip_host="Host" in headers, skip_accept_encoding=True
        )
        for name, value in headers.items():
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def _expanded(value: object) -> object:
    match value:
        case {"repeat": str(text), "times": int(times)}:
            return text * times
        case dict():
            return {key: _expanded(item) for key, item in value.items()}
        case list():
            return [_expanded(item) for item in value]
        case _:
            return value


def _assert_same_stream(reply: Reply, recorded: list[dict]) -> None:
    assert reply.body.endswith(b"\n")
    _assert_same(reply.lines[0], recorded[0])
    _assert_same(reply.lines[-1], recorded[-1])
    assert {frozenset(line) for line in reply.lines[:-1]} <= {frozenset(line) for line in recorded[:-1]}


ZERO_IS_LEFT_OUT = {"eval_duration", "prompt_eval_duration", "load_duration"}


def _assert_same(ours: object, theirs: object, key: str = "") -> None:
    """Compare keys and types, and the text where it is the server's own."""
    if key == "model_info":
        # A real model has dozens of keys; the stand-in's are some of them.
        assert set(ours) <= set(theirs)
        return
    if key == "tensors":
        # Which tensor comes first depends on the file.
        assert set(ours[0]) == set(theirs[0])
        return
    if isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert set(ours) - ZERO_IS_LEFT_OUT == set(theirs) - ZERO_IS_LEFT_OUT
        for name, value in theirs.items():
            _assert_same(ours[name], value, name)
    elif isinstance(theirs, list):
        assert isinstance(ours, list)
        assert bool(ours) == bool(theirs)
        for mine, other in zip(ours, theirs, strict=False):
            _assert_same(mine, other, key if key == "capabilities" else "")
    elif key in {
        "error",
        "status",
        "done_reason",
        "done",
        "model",
        "name",
        "version",
        "role",
        "capabilities",
        "context_length",
    }:
        assert _without_counts(ours) == _without_counts(theirs)
    elif isinstance(theirs, float | int) and not isinstance(theirs, bool):
        assert isinstance(ours, float | int)
    else:
        assert type(ours) is type(theirs)


def _without_counts(value: object) -> object:
    """Remove the number of tokens from a text, since it depends on the tokeniser."""
    return re.sub(r'(request \(|"n_prompt_tokens":)\d+', r"\1N", value) if isinstance(value, str) else value
