"""Where versions of Ollama differ, the stand-in behaves as the version it was given."""

import pytest

from ollama_provider.testing import Answer, Fail, Model, Reply, StandIn

ASK = {"model": "llama3.2", "prompt": "hello", "stream": False}
CHAT = {"model": "qwen3", "messages": [{"role": "user", "content": "hello"}], "stream": False}


def post(version: str, path: str, **body: object) -> Reply:
    return StandIn(version=version).answer("POST", f"/api/{path}", body)


@pytest.mark.parametrize(
    ("method", "path", "since", "before"),
    [
        ("POST", "/api/embed", "0.2.6", "0.2.5"),
        ("GET", "/api/ps", "0.1.38", "0.1.37"),
        ("GET", "/api/version", "0.1.14", "0.1.13"),
        ("POST", "/api/chat", "0.1.14", "0.1.13"),
        ("GET", "/api/status", "0.16.2", "0.16.1"),
    ],
)
def test_endpoints_come_with_a_version(method: str, path: str, since: str, before: str) -> None:
    """An old server answers 404 in plain text."""
    old, new = (StandIn(version=version).answer(method, path, {"model": "m"}) for version in (before, since))

    assert (old.status, old.headers["content-type"], old.body) == (404, "text/plain", b"404 page not found")
    assert new.body != old.body


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("0.24.0", "model 'x' not found"),
        ("0.3.11", "model 'x' not found"),
        ("0.3.10", 'model "x" not found, try pulling it first'),
        ("0.2.1", "model 'x' not found, try pulling it first"),
    ],
)
def test_the_text_for_a_missing_model(version: str, text: str) -> None:
    """The text differs between versions; the status is always 404."""
    reply = post(version, "generate", model="x")

    assert (reply.status, reply.json) == (404, {"error": text})


def test_wrong_methods() -> None:
    """405 since 0.7.0, 404 before."""
    assert StandIn(version="0.7.0").answer("GET", "/api/chat").status == 405
    assert StandIn(version="0.6.8").answer("GET", "/api/chat").status == 404


def test_double_slashes() -> None:
    """301, which turns a POST into a GET, until 0.23.1."""
    assert StandIn(version="0.23.0").answer("POST", "//api/chat").status == 301
    assert StandIn(version="0.23.1").answer("POST", "//api/chat").status == 307


def test_the_name_key() -> None:
    """Old servers read only `name`; `model` came with 0.1.18 and 0.1.21."""
    assert post("0.1.17", "show", model="llama3.2").status == 400
    assert post("0.1.17", "show", name="llama3.2").status == 200
    assert post("0.1.20", "pull", model="mistral").json == {"error": "invalid model name"}
    assert post("0.24.0", "pull", name="mistral").lines[-1] == {"status": "success"}


def test_what_a_reply_has() -> None:
    """`done_reason` since 0.1.35, `model` in the list since 0.1.21, context_length in ps since 0.10.0."""
    assert "done_reason" not in post("0.1.34", "generate", **ASK).json
    assert post("0.1.35", "generate", **ASK).json["done_reason"] == "stop"
    assert "model" not in StandIn(version="0.1.20").answer("GET", "/api/tags").json["models"][0]
    for version, there in (("0.9.6", False), ("0.10.0", True)):
        stand_in = StandIn(version=version)
        stand_in.answer("POST", "/api/generate", {"model": "llama3.2"})
        assert ("context_length" in stand_in.answer("GET", "/api/ps").json["models"][0]) is there


def test_what_show_and_tags_know() -> None:
    """capabilities since 0.6.4 in show and 0.30.0 in tags, model_info since 0.1.45."""
    assert "capabilities" not in post("0.6.3", "show", model="llama3.2").json
    assert post("0.6.4", "show", model="llama3.2").json["capabilities"] == ["completion", "tools"]
    assert "model_info" not in post("0.1.44", "show", model="llama3.2").json
    assert "capabilities" not in StandIn(version="0.24.0").answer("GET", "/api/tags").json["models"][0]
    assert "capabilities" in StandIn(version="0.30.0").answer("GET", "/api/tags").json["models"][0]


def test_thinking() -> None:
    """Unknown before 0.9.0, left in the text when unset until 0.12.4, on by default since 0.12.5."""
    assert "thinking" not in post("0.8.0", "chat", **CHAT, think=True).json["message"]
    assert post("0.12.4", "chat", **CHAT).json["message"]["content"].startswith("<think>")
    assert "thinking" not in post("0.12.4", "chat", **CHAT, think=False).json["message"]
    assert post("0.12.5", "chat", **CHAT).json["message"]["thinking"]


def test_levels_of_thinking() -> None:
    """Refused for most models until 0.17.6; `max` came with 0.22.0."""
    assert post("0.17.6", "chat", **CHAT, think="low").json == {
        "error": 'think value "low" is not supported for this model'
    }
    assert post("0.17.7", "chat", **CHAT, think="low").status == 200
    assert "invalid think value" in post("0.21.0", "chat", **CHAT, think="max").json["error"]
    assert post("0.22.0", "chat", **CHAT, think="max").status == 200
    assert "think must be" in post("0.22.0", "chat", **CHAT, think=3).json["error"]


def test_truncate() -> None:
    """Ignored before 0.12.6; the cut prompt counts the whole window until 0.24 and half of it since 0.30."""
    long = ASK | {"prompt": "word " * 5000, "options": {"num_ctx": 1024}}

    assert post("0.12.5", "generate", **long, truncate=False).status == 200
    assert post("0.12.6", "generate", **long, truncate=False).json == {
        "error": "the input length exceeds the context length"
    }
    assert post("0.24.0", "generate", **long).json["prompt_eval_count"] == 1024
    assert post("0.30.0", "generate", **long).json["prompt_eval_count"] == 514
    assert "prompt is longer than the context length" in post("0.30.0", "generate", **long, shift=False).json["error"]


def test_shift_reloads_since_0_30() -> None:
    """Since 0.30 `shift` is an argument of the runner's process, so that a change needs a reload."""
    for version, loads in (("0.24.0", 1), ("0.30.0", 2)):
        stand_in = StandIn(version=version)
        for shift in (True, False):
            stand_in.answer("POST", "/api/generate", ASK | {"shift": shift})

        assert len(stand_in.loads) == loads


def test_formats() -> None:
    """Schemas since 0.5.0; before, only "json"."""
    assert post("0.4.0", "generate", **ASK, format={"type": "object"}).json == {"error": 'format must be "json"'}
    assert post("0.4.0", "generate", **ASK, format="json").status == 200
    assert post("0.5.0", "generate", **ASK, format={"type": "object"}).json["response"] == "{}"


def test_a_wrong_format_of_an_old_stream_is_a_line() -> None:
    """Before 0.12.6 an error of the runner was a line in a stream of status 200."""
    body = {"model": "llama3.2", "prompt": "hello", "format": "yaml"}

    assert post("0.12.5", "generate", **body).status == 200
    assert "invalid format" in post("0.12.5", "generate", **body).lines[0]["error"]
    assert post("0.12.6", "generate", **body).status == 500


@pytest.mark.parametrize(
    ("version", "status", "text"),
    [
        ("0.13.2", 500, "this model does not support embeddings"),
        ("0.13.3", 501, "this model does not support embeddings"),
        ("0.30.0", 501, "This server does not support embeddings. Start it with `--embeddings`"),
    ],
)
def test_embedding_with_a_model_that_does_not(version: str, status: int, text: str) -> None:
    """The server notices it only after loading the model."""
    stand_in = StandIn(version=version)

    reply = stand_in.answer("POST", "/api/embed", {"model": "llama3.2", "input": "a"})

    assert (reply.status, reply.json) == (status, {"error": text})
    assert stand_in.loads == ["llama3.2:latest"]


def test_the_llama_runner_embedded_with_any_model() -> None:
    """Until 0.24 the llama.cpp runner embeds with any model."""
    for version, status in (("0.24.0", 200), ("0.30.0", 501)):
        stand_in = StandIn([Model("m", llama_runner=True)], version=version)

        assert stand_in.answer("POST", "/api/embed", {"model": "m", "input": "a"}).status == status


def test_vectors_that_are_no_numbers() -> None:
    """400 since 0.14.0; before, the reply could not be encoded."""
    for version, status in (("0.13.5", 500), ("0.14.0", 400)):
        stand_in = StandIn(version=version)
        stand_in.script(Answer(vectors=[[float("nan")]]))

        assert stand_in.answer("POST", "/api/embed", {"model": "nomic-embed-text", "input": "a"}).status == status


def test_the_legacy_embeddings() -> None:
    """The endpoint takes one text as `prompt`, does not truncate it, and does not always normalise the vector."""
    stand_in = StandIn(version="0.2.5")

    def ask(**body: object) -> Reply:
        return stand_in.answer("POST", "/api/embeddings", {"model": "nomic-embed-text", **body})

    assert sum(value * value for value in ask(prompt="a").json["embedding"]) ** 0.5 == pytest.approx(4.9, rel=1e-3)
    assert ask(input="a").json == {"embedding": []}
    assert ask(prompt="word " * 9000).status == 500
    assert ask(prompt=["a"]).status == 400


def test_dimensions_and_ids() -> None:
    """Ignored before 0.11.11; tool calls have an id since 0.12.10."""
    embed = {"model": "nomic-embed-text", "input": "a", "dimensions": 8}
    assert len(post("0.11.10", "embed", **embed).json["embeddings"][0]) == 768
    assert len(post("0.11.11", "embed", **embed).json["embeddings"][0]) == 8
    for version, there in (("0.12.9", False), ("0.12.10", True)):
        stand_in = StandIn(version=version)
        stand_in.script(Answer(tool_calls=(("f", {"x": 1}),)))
        (call,) = stand_in.answer("POST", "/api/chat", CHAT).json["message"]["tool_calls"]
        assert ("id" in call) is there


def test_unload_is_acknowledged_since_0_3_11() -> None:
    """Older versions loaded the model to unload it."""
    assert post("0.3.11", "generate", model="llama3.2", keep_alive=0).json["done_reason"] == "unload"
    assert post("0.3.10", "generate", model="llama3.2", keep_alive=0).json["done_reason"] == "load"


def test_cloud_names() -> None:
    """Since 0.18.0 the suffix means the cloud, which the stand-in does not have. Before, it was a normal tag."""
    assert post("0.18.0", "generate", model="gpt-oss:120b-cloud", prompt="hi").status == 403
    assert post("0.17.0", "generate", model="gpt-oss:120b-cloud", prompt="hi").status == 404


def test_a_source_build_is_the_latest() -> None:
    """A source build has the version 0.0.0."""
    stand_in = StandIn(version="0.0.0")
    stand_in.script(Fail("it broke"))

    assert stand_in.answer("POST", "/api/generate", ASK | {"stream": True}).status == 500
    assert StandIn(version="0.33.0-rc2").answer("GET", "/api/version").json == {"version": "0.33.0-rc2"}
