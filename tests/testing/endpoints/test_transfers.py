"""Pulls, pushes, creation and blobs."""

import hashlib
import json
from itertools import takewhile

import pytest

from ollama_provider.testing import Cut, Model, Reply, StandIn
from ollama_provider.testing.exchange import Line, Pause, Request, Steps


def post(stand_in: StandIn, path: str, **body: object) -> Reply:
    return stand_in.answer("POST", f"/api/{path}", body)


def names(stand_in: StandIn) -> set[str]:
    return {model["name"] for model in stand_in.answer("GET", "/api/tags").json["models"]}


def test_a_pull_reports_each_layer_and_ends_with_success() -> None:
    """Layers come one after another, and `completed` is missing while it is 0. The model is installed at the end."""
    stand_in = StandIn()

    lines = post(stand_in, "pull", model="mistral").lines

    assert lines[0] == {"status": "pulling manifest"}
    assert set(lines[1]) == {"status", "digest", "total"}
    assert lines[1]["status"] == f"pulling {lines[1]['digest'].removeprefix('sha256:')[:12]}"
    completed = [line.get("completed", 0) for line in lines if line.get("digest") == lines[1]["digest"]]
    assert completed == sorted(completed)
    assert completed[-1] == lines[1]["total"]
    assert [line["status"] for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    assert "mistral:latest" in names(stand_in)
    assert stand_in.downloads == {"mistral:latest": 1}


def test_a_pull_without_stream_says_success_alone() -> None:
    """The reply is one object, and its content type has no charset."""
    reply = post(StandIn(), "pull", name="mistral", stream=False)

    assert (reply.json, reply.headers["content-type"]) == ({"status": "success"}, "application/json")


def test_an_unknown_model_fails_in_band_or_with_500() -> None:
    """The status is never 404."""
    stand_in = StandIn()

    assert post(stand_in, "pull", model="nope").lines[-1] == {"error": "pull model manifest: file does not exist"}
    assert post(stand_in, "pull", model="nope", stream=False).status == 500
    assert post(stand_in, "pull", model="a b").json == {"error": "invalid model name"}


def test_a_model_that_is_there_is_not_downloaded_again() -> None:
    """Each layer has one line, at 100 %."""
    stand_in = StandIn()

    lines = post(stand_in, "pull", model="llama3.2").lines

    assert all(line["completed"] == line["total"] for line in lines if "digest" in line)
    assert lines[-1] == {"status": "success"}
    assert stand_in.downloads == {}


def test_a_moved_tag_is_replaced() -> None:
    """Old layers are removed, and the digest is the new one."""
    stand_in = StandIn()
    stand_in.offer(Model("llama3.2", ("completion",), revision=1))

    lines = post(stand_in, "pull", model="llama3.2").lines

    assert {"status": "removing unused layers"} in lines
    assert stand_in.model("llama3.2").revision == 1
    assert stand_in.downloads == {"llama3.2:latest": 1}


def test_an_interrupted_pull_resumes() -> None:
    """The bytes before the cut are not downloaded again. Meanwhile the model is not installed."""
    stand_in = StandIn()
    stand_in.script(Cut(after=4), path="pull")
    cut = post(stand_in, "pull", model="mistral")
    was_there = "mistral:latest" in names(stand_in)

    resumed = post(stand_in, "pull", model="mistral").lines

    assert cut.cut
    assert not was_there
    assert resumed[1]["completed"] >= cut.lines[-1]["completed"] > 0
    assert resumed[-1] == {"status": "success"}


def test_pulls_at_the_same_time_share_the_download() -> None:
    """All pulls report the same progress. If the first client disconnects, the download continues for the others."""
    stand_in = StandIn(pull_seconds=1)
    first, second, third = (
        stand_in.exchange(Request("POST", "/api/pull", {}, b'{"model":"mistral"}')) for _ in range(3)
    )
    for steps in (first, second, third):
        _until_a_pause(steps)
    moved, seen = _until_a_pause(first), _until_a_pause(second)
    first.close()
    last = [_lines(steps)[-1] for steps in (second, third)]

    assert moved[-1]["completed"] == seen[-1]["completed"] > 0
    assert last == [{"status": "success"}] * 2
    assert stand_in.downloads == {"mistral:latest": 1}


def _until_a_pause(steps: Steps) -> list[dict]:
    return [
        json.loads(step.data)
        for step in takewhile(lambda step: not isinstance(step, Pause), steps)
        if isinstance(step, Line)
    ]


def _lines(steps: Steps) -> list[dict]:
    return [json.loads(step.data) for step in steps if isinstance(step, Line)]


MANIFESTS = "/root/.ollama/models/manifests/"


def test_a_push_ends_with_success() -> None:
    """The reply is that of a push, but nothing is sent anywhere."""
    lines = post(StandIn(), "push", model="llama3.2").lines

    assert [lines[0]["status"], lines[-2]["status"], lines[-1]["status"]] == [
        "retrieving manifest",
        "pushing manifest",
        "success",
    ]
    assert post(StandIn(), "push", model="nope").lines == [
        {"status": "retrieving manifest"},
        {"status": "couldn't retrieve manifest"},
        {"error": f"open {MANIFESTS}registry.ollama.ai/library/nope/latest: no such file or directory"},
    ]


def test_a_model_from_another_one() -> None:
    """The new model shares the weights and has its own system message and parameters, which show returns."""
    stand_in = StandIn()

    made = post(
        stand_in,
        "create",
        model="pirate",
        **{"from": "llama3.2"},
        system="You are a pirate.",
        parameters={"temperature": 0.1, "stop": ["Arr"]},
        messages=[{"role": "user", "content": "hi"}],
        license=["MIT"],
    )
    shown = post(stand_in, "show", model="pirate").json

    assert made.lines[-1] == {"status": "success"}
    assert "using existing layer" in made.lines[0]["status"]
    assert shown["system"] == "You are a pirate."
    assert shown["parameters"] == 'stop                           "Arr"\ntemperature                    0.1'
    assert shown["messages"] == [{"role": "user", "content": "hi"}]
    assert shown["license"] == "MIT"
    assert "PARAMETER temperature 0.1" in shown["modelfile"]
    assert shown["details"]["parent_model"] == "llama3.2:latest"


def test_the_parameters_of_a_model_are_defaults() -> None:
    """A request overrides them."""
    stand_in = StandIn([Model("short", parameters={"num_predict": 3})])
    ask = {"model": "short", "prompt": "hello", "stream": False}

    assert stand_in.answer("POST", "/api/generate", ask).json["eval_count"] == 3
    assert stand_in.answer("POST", "/api/generate", ask | {"options": {"num_predict": 5}}).json["eval_count"] == 5


def test_creating_from_a_missing_model_pulls_it() -> None:
    """One `success`, at the end."""
    stand_in = StandIn()

    lines = post(stand_in, "create", model="mine", **{"from": "mistral"}).lines

    assert {"mine:latest", "mistral:latest"} <= names(stand_in)
    assert lines.count({"status": "success"}) == 1


def test_a_model_from_an_uploaded_file() -> None:
    """The blob must be uploaded before, with the digest of its bytes."""
    stand_in, data = StandIn(), b"GGUF"
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blob = f"/api/blobs/{digest}"
    missing = post(stand_in, "create", model="mine", files={"m.gguf": digest}, stream=False)

    assert missing.status == 500
    assert stand_in.answer("HEAD", blob).status == 404
    assert stand_in.answer("POST", blob, body=data).status == 201
    assert stand_in.answer("POST", blob, body=data).status == 200
    assert stand_in.answer("HEAD", blob).status == 200
    assert post(stand_in, "create", model="mine", files={"m.gguf": digest}, stream=False).json == {"status": "success"}
    assert stand_in.answer("POST", "/api/blobs/sha256:12", body=data).json == {"error": "invalid digest format"}


def test_a_quantised_model_is_smaller() -> None:
    """The details contain the quantization level."""
    stand_in = StandIn([Model("large", quantization_level="F16")])

    post(stand_in, "create", model="small", **{"from": "large"}, quantize="q4_K_M")

    assert stand_in.model("small").quantization_level == "Q4_K_M"
    assert stand_in.model("small").size < stand_in.model("large").size


GGUF, OTHER = b"GGUF\x03", b"no weights"


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"template": "{{ if .Prompt }}"}, 400, "template error: template: :1: unexpected EOF"),
        ({"template": "a\n{{ nope }}"}, 400, 'template error: template: :2: function "nope" not defined'),
        ({"license": {"a": 1}}, 500, "json: cannot unmarshal object into Go value of type []string"),
        ({"license": [1]}, 500, "json: cannot unmarshal number into Go value of type string"),
        ({"quantize": "q4_0"}, 500, "unsupported quantization type Q4_0 - supported types are F32, F16, "),
        ({"quantize": "q4_K_M"}, 500, "quantization is only supported for F16, BF16 and F32 models"),
        ({"from": "a b"}, 400, "invalid model name"),
        ({"from": "", "files": {}}, 400, "unknown type"),
        ({"from": "", "files": {"../a.gguf": GGUF}}, 400, "file path must be relative"),
        ({"from": "", "files": {"/a.gguf": GGUF}}, 400, "file path must be relative"),
        ({"from": "", "files": {"a.gguf": ""}}, 400, "invalid digest format"),
        ({"from": "", "files": {"a.gguf": "sha256:12"}}, 500, "invalid digest format"),
        ({"from": "", "files": {"a.gguf": OTHER}}, 400, "supplied file was not in GGUF format"),
        ({"from": "", "files": {"a.bin": OTHER}}, 400, "unknown type"),
        ({"adapters": {"a": GGUF, "b": GGUF}}, 400, "only one adapter is currently supported"),
        ({"adapters": {"a.gguf": OTHER}}, 400, "supplied file was not in GGUF format"),
        ({"adapters": {"a.gguf": "sha256:" + "0" * 64}}, 400, "open /root/.ollama/models/blobs/sha256-000"),
    ],
)
def test_what_create_refuses(body: dict, status: int, error: str) -> None:
    """The stand-in refuses what a real server refuses, with a line if the stream has begun."""
    stand_in = StandIn()
    digests = {data: "sha256:" + hashlib.sha256(data).hexdigest() for data in (GGUF, OTHER)}
    for data, digest in digests.items():
        stand_in.answer("POST", f"/api/blobs/{digest}", body=data)
    given = {
        key: {path: digests.get(data, data) for path, data in value.items()} if key in {"files", "adapters"} else value
        for key, value in body.items()
    }

    blocking = post(stand_in, "create", **{"model": "made", "from": "llama3.2", "stream": False} | given)
    streamed = post(stand_in, "create", **{"model": "made", "from": "llama3.2"} | given)

    assert (blocking.status, blocking.json["error"][: len(error)]) == (status, error)
    assert streamed.status == (200 if len(streamed.lines) > 1 else status)
    assert streamed.lines[-1] == blocking.json
    with pytest.raises(KeyError):
        stand_in.model("made")


def test_what_is_installed_can_be_pulled() -> None:
    """Installed models are in the registry, unless the stand-in was given another registry."""
    stand_in = StandIn(["my-own:7b"])

    assert post(stand_in, "pull", model="my-own:7b").lines[-1] == {"status": "success"}
    stand_in.remove("my-own:7b")
    assert post(stand_in, "pull", model="my-own:7b").lines[-1] == {"status": "success"}
    assert post(StandIn(["my-own:7b"], registry=()), "pull", model="my-own:7b").status == 200
    assert "error" in post(StandIn(["my-own:7b"], registry=()), "pull", model="my-own:7b").lines[-1]


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (
            "localhost:5000/me/m",
            '"https://localhost:5000/v2/me/m/manifests/latest": dial tcp 127.0.0.1:5000: connect: connection refused',
        ),
        ("10.1.2.3/me/m:x", "dial tcp 10.1.2.3:443: connect: connection refused"),
        ("registry.example.com/me/m", "dial tcp: lookup registry.example.com on 127.0.0.11:53: no such host"),
        ("hf.co/me/m", "pull model manifest: file does not exist"),
    ],
)
def test_a_registry_that_does_not_answer(model: str, error: str) -> None:
    """A registry that no model is on cannot be reached."""
    reply = post(StandIn(), "pull", model=model)

    assert reply.lines[0] == {"status": "pulling manifest"}
    assert reply.lines[-1]["error"].startswith("pull model manifest: ")
    assert reply.lines[-1]["error"].endswith(error)
    there = post(StandIn(registry=[model]), "pull", model=model)
    assert there.lines[-1] == {"status": "success"}


def test_plain_http_needs_insecure() -> None:
    """A name with `http://` is refused without `insecure`."""
    assert post(StandIn(), "pull", model="http://localhost:5000/me/m").json == {"error": "insecure protocol http"}
    insecure = post(StandIn(), "pull", model="http://localhost:5000/me/m", insecure=True)
    assert 'Get "http://localhost:5000/v2/' in insecure.lines[-1]["error"]


def test_digests_in_the_form_of_file_names() -> None:
    """Digests with `:` and with `-` are accepted; an upload needs the first form."""
    stand_in = StandIn()
    digest = "sha256:" + hashlib.sha256(GGUF).hexdigest()
    dashed = digest.replace(":", "-")

    assert stand_in.answer("HEAD", f"/api/blobs/{dashed}").json == {"error": f'blob "{dashed}" not found'}
    assert stand_in.answer("POST", f"/api/blobs/{dashed}", body=GGUF).json == {
        "error": f'digest mismatch, expected "{dashed}", got "{digest}"'
    }
    assert stand_in.answer("POST", f"/api/blobs/{digest}", body=GGUF).status == 201
    assert stand_in.answer("HEAD", f"/api/blobs/{dashed}").status == 200


def test_a_damaged_file_is_seen_by_show() -> None:
    """`/api/show` fails too, since it reads the file."""
    text = 'tensor "output.weight" offset+size (497568) exceeds file size (415440)'
    stand_in = StandIn([Model("broken", file_error=text), Model("unloadable", load_error="unable to load model")])

    assert stand_in.answer("POST", "/api/show", {"model": "broken"}).json == {"error": text}
    assert stand_in.answer("POST", "/api/generate", {"model": "broken", "prompt": "x"}).json == {"error": text}
    assert stand_in.answer("POST", "/api/show", {"model": "unloadable"}).status == 200


def test_there_is_no_account() -> None:
    """Accounts are at ollama.com, which the stand-in never contacts."""
    assert StandIn().answer("POST", "/api/me").json == {"error": "account unavailable"}
    assert StandIn(version="0.20.0").answer("POST", "/api/me").body == b"null"


def test_a_copy_has_the_same_digest() -> None:
    """Only the name differs."""
    stand_in = StandIn()

    assert post(stand_in, "copy", source="llama3.2", destination="mine").body == b""
    assert stand_in.model("mine").digest == stand_in.model("llama3.2").digest


def test_a_deleted_model_has_to_be_downloaded_again() -> None:
    """Layers stay if another model has them."""
    stand_in = StandIn()
    post(stand_in, "copy", source="qwen3", destination="mine")

    for name in ("llama3.2", "qwen3"):
        assert stand_in.answer("DELETE", "/api/delete", {"model": name}).status == 200
        assert stand_in.answer("DELETE", "/api/delete", {"model": name}).json == {"error": f"model '{name}' not found"}
        post(stand_in, "pull", model=name)

    assert stand_in.downloads == {"llama3.2:latest": 1}
