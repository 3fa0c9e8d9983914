"""Every failure has one class, and the class says whether to try again."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api import error_mapping, errors
from ollama_provider.api.errors import OllamaError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RECORDINGS = Path(__file__).parents[1] / "data/recordings"

#: What a real Ollama 0.24.0 answered, by the class it must be taken for.
RECORDED: dict[type[OllamaError], str] = {
    errors.ModelNotFoundError: """
        chat-unknown-model copy-unknown embed-missing-model embed-unknown embeddings-unknown generate-after-delete
        generate-emptyobj generate-name-key generate-unknown-model generate-unknown-model-nostream
        generate-unload-unknown show-unknown""",
    errors.UnsupportedError: """
        chat-embed-model chat-embed-model-empty embed-textmodel-q generate-on-embed-model-load
        generate-suffix-unsupported generate-think-high-unsupported load-bad-noblob-stream""",
    errors.ContextLengthError: """
        chat-too-long-single-truncate-false chat-too-long-truncate-false-q chat-too-long-truncate-false-stream
        embed-list-one-toolong-truncate-false embed-textmodel-toolong-truncate-false embed-toolong-truncate-false""",
    errors.BadRequestError: """
        blob-digest-mismatch chat-format-invalid chat-format-invalid-q chat-images-badb64 chat-images-url
        chat-messages-object chat-messages-string chat-missing-model chat-nobody chat-tools-arguments-string
        chat-tools-bad copy-missing copy-nobody create-nomodel create-nothing-nostream delete-empty delete-nobody
        embed-list-number embed-number embed-opts-wrongtype generate-array generate-badname generate-context-bad
        generate-format-invalid-number generate-format-invalid-schema-ref generate-format-invalid-stream
        generate-format-invalid-string generate-images-badb64 generate-images-dataurl
        generate-keepalive-negative-string generate-logprobs-toomany generate-malformed generate-malformed2
        generate-nobody generate-opts-not-object generate-opts-stop-string generate-opts-wrongtype
        generate-opts-wrongtype-stop generate-prompt-list generate-prompt-number generate-request-br
        generate-request-gzip generate-stream-string generate-template-bad pull-badname show-empty""",
    errors.BrokenModelError: """
        create-files-unknown-digest embed-bad-blob load-bad-arch load-bad-arch-stream load-bad-blob
        load-bad-blob-stream load-bad-missing-stream""",
    errors.OutOfMemoryError: """
        toolarge-numctx-100m toolarge-numctx-100m-stream toolarge-numctx-1g toolarge-numctx-1g-stream""",
    errors.RunnerError: """
        load-timeout runner-killed-chat-nonstream runner-killed-chat-stream runner-killed-prompt-eval-stream
        runner-killed-stream runner-sigabrt-stream runner-sigterm-stream""",
    errors.TransientPullError: """
        create-from-missing-nostream pull-existing-nonet pull-unknown pull-unknown-name-key pull-unknown-nostream""",
    errors.GatewayError: "push-tiny push-tiny-nostream",
    errors.AuthenticationError: "generate-cloud-suffix host-header-foreign origin-foreign",
    errors.UnknownServerError: "load-garbage-blob",  # an empty 500
    errors.BlobNotFoundError: "blob-head-missing",
    errors.EndpointNotFoundError: """
        options-tags put-tags unknown-path-post wrong-method-delete-post wrong-method-generate-get""",
}

#: What a real 0.33 answered otherwise, or 0.24 did not fail at; None is what it does not fail at, or was not asked.
RECORDED_33: dict[type[OllamaError] | None, str] = {
    errors.UnsupportedError: """
        chat-images-nonvision generate-images-nonvision embed-textmodel embed-textmodel-list embed-textmodel-toolong""",
    errors.ContextLengthError: "generate-prompt-too-long-shift-false",
    errors.GatewayError: "generate-cloud-suffix",
    None: """
        embed-bad-blob load-bad-arch load-bad-arch-stream load-bad-blob load-bad-blob-stream load-bad-missing-stream
        load-bad-noblob-stream load-garbage-blob runner-sigabrt-stream runner-sigterm-stream toolarge-numctx-100m
        toolarge-numctx-100m-stream toolarge-numctx-1g toolarge-numctx-1g-stream""",
}


def expected(version: str) -> dict[str, type[OllamaError]]:
    kinds = {name: kind for kind, names in RECORDED.items() for name in names.split()}
    if version == "0.33":
        others = {name: kind for kind, names in RECORDED_33.items() for name in names.split()}
        return {name: kind for name, kind in (kinds | others).items() if kind is not None}
    return kinds


FILES = {"0.24": "exchanges.jsonl", "0.33": "exchanges-0.33.jsonl"}


def recorded_failures(version: str) -> dict[str, dict[str, Any]]:
    with (RECORDINGS / FILES[version]).open() as lines:
        # This client asks nothing of /v1.
        exchanges = [found for found in map(json.loads, lines) if not found["request"]["path"].startswith("/v1/")]
    return {
        exchange["name"]: exchange
        for exchange in exchanges
        if exchange.get("status", 0) >= 400 or any("error" in line for line in exchange.get("lines", []))
    }


def classified(exchange: dict[str, Any]) -> OllamaError:
    path = exchange["request"]["path"]
    lines = [line for line in exchange.get("lines", []) if "error" in line]
    if lines:
        return in_line(lines[0], path=path)
    body = json.dumps(exchange["body"]) if "body" in exchange else exchange.get("text", "")
    return status(exchange["status"], body, path=path)


def in_line(found: dict[str, Any], *, path: str = "/api/generate") -> OllamaError:
    error = error_mapping.object_error(found, path=path, host="http://h", model="m")
    assert error is not None
    return error


def status(
    number: int, body: str | dict[str, Any] = "", *, path: str = "/api/generate", headers: dict[str, str] | None = None
) -> OllamaError:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    return error_mapping.status_error(number, headers or {}, data, path=path, host="http://h", model="m", now=NOW)


@pytest.mark.parametrize(
    ("version", "name", "kind"),
    [(version, name, kind) for version in FILES for name, kind in expected(version).items()],
)
def test_recorded_failures(version, name, kind):
    """What a real server answered is taken for what it was."""
    assert type(classified(recorded_failures(version)[name])) is kind


@pytest.mark.parametrize("version", FILES)
def test_no_recorded_failure_is_left_out(version):
    """The tables above speak of all failures that were recorded."""
    assert set(expected(version)) == set(recorded_failures(version))


TEXTS = [
    (errors.OverloadedError, 503, "server busy, please try again.  maximum pending requests exceeded"),
    (errors.OverloadedError, 500, "llm busy - no slots available"),
    (errors.OverloadedError, 500, "unexpected server status: llm server loading model"),
    (errors.OverloadedError, 503, "timed out waiting for a concurrent request slot"),
    (errors.RunnerError, 500, "llama runner process has terminated: signal: killed"),
    (errors.RunnerError, 500, "llama-server process has terminated: exit status 2"),
    (errors.RunnerError, 500, "llama runner process no longer running: -1"),
    (errors.RunnerError, 500, "error reading llm response: read tcp 127.0.0.1:1->127.0.0.1:2: wsarecv: closed"),
    (errors.RunnerError, 500, "error starting runner: llama runner process has terminated: exit status 2"),
    (errors.RunnerError, 500, "CUDA error: an illegal memory access was encountered"),
    (errors.BadRequestError, 500, "failed to process inputs: image: unknown format"),
    (errors.RunnerError, 500, "an unknown error was encountered while running the model"),
    (errors.RunnerError, 500, 'POST predict: Post "http://127.0.0.1:40001/completion": EOF'),
    (errors.RunnerError, 400, 'do embedding request: Post "http://127.0.0.1:40001/embedding": EOF'),
    (errors.RunnerError, 500, 'do embedding request: Post "http://127.0.0.1:1/x": dial tcp: connection refused'),
    (errors.RunnerError, 500, "timed out waiting for llama-server to start - progress 0.10"),
    (errors.OutOfMemoryError, 500, "llama runner process has terminated: cudaMalloc failed: out of memory"),
    (errors.OutOfMemoryError, 500, "error loading model: unable to allocate CUDA0 buffer"),
    (errors.OutOfMemoryError, 500, "model requires 20 GiB but only 10 GiB are available"),
    (errors.BrokenModelError, 500, "llama runner process has terminated: error loading model: unknown"),
    (errors.BrokenModelError, 500, "unknown model architecture: 'foo'"),
    (errors.BrokenModelError, 500, "this model is no longer compatible with your version of Ollama"),
    (errors.BrokenModelError, 500, "invalid file magic"),
    (errors.ModelNotFoundError, 404, 'model "x" not found, try pulling it first'),
    (errors.ModelNotFoundError, 404, "model 'x' not found, try pulling it first"),
    (errors.ContextLengthError, 400, "input exceeds maximum context length and cannot be truncated further"),
    (errors.ContextLengthError, 500, "the request exceeds the available context size"),
    (errors.ContextLengthError, 400, "the prompt is longer than the context length currently available"),
    (errors.UnsupportedError, 501, "This server does not support embeddings. Start it with `--embeddings`"),
    (errors.UnsupportedError, 400, 'think value "low" is not supported for this model'),
    (errors.BadRequestError, 400, "embedding contains NaN or Inf values"),
    (errors.BadRequestError, 500, "failed to encode response: json: unsupported value: NaN"),
    (errors.BadRequestError, 400, 'time: unknown unit "d" in duration "1d"'),
    (errors.BadRequestError, 500, "template error: template: :1: unexpected EOF"),
    (errors.BadRequestError, 500, "unsupported quantization type Q4_0 - supported types are F32, F16, Q4_K_S"),
    (errors.BadRequestError, 500, "quantization is only supported for F16, BF16 and F32 models"),
    (errors.BadRequestError, 500, "supplied file was not in GGUF format"),
    (errors.BadRequestError, 500, "unknown type"),
    (errors.QuotaError, 429, "you (me) have reached your session usage limit, upgrade for higher limits"),
    (errors.OverloadedError, 429, "slow down"),
    (errors.AuthenticationError, 401, "unauthorized"),
    (errors.GatewayError, 502, 'Post "https://ollama.com:443/api/generate": dial tcp: lookup ollama.com: no such host'),
    (errors.GatewayError, 500, 'Post "https://ollama.com:443/api/generate": net/http: TLS handshake timeout'),
    (errors.QuotaError, 402, "this model requires a subscription, upgrade for access: https://ollama.com/upgrade"),
    (errors.QuotaError, 403, "this model requires a subscription, upgrade for access: https://ollama.com/upgrade"),
    (errors.QuotaError, 402, "payment required"),
    (errors.QuotaError, 403, "you (some one) have reached your weekly usage limit"),
    (errors.QuotaError, 403, "deepseek-v4-pro is not available on your plan"),
    (errors.ContextLengthError, 500, "input (900 tokens) is too large to process. increase the physical batch size"),
    (errors.ModelNotFoundError, 500, "open /r/models/manifests/registry.ollama.ai/library/n/latest: no such file"),
    (errors.OutOfMemoryError, 500, "CUDA error: out of memory"),
    (errors.OutOfMemoryError, 500, "llama-server process has terminated: exit status 1: CUDA error: out of memory"),
    (errors.UnknownServerError, 500, "something new"),
    (errors.BadRequestError, 400, "something new"),
]


#: What a server of 0.33 puts behind: the last lines of the log of a process that has died.
LOG = (
    "error: task id = 16, error: request (3018 tokens) exceeds the available context size (2048 tokens), try "
    "increasing it error: task id = 275, model does not support images, usage limit, model 'x' not found, "
    'unauthorized, option "a" must be of type b, invalid format: , cudaMalloc failed: out of memory, '
    "error loading model: broken"
)


@pytest.mark.parametrize(
    "text",
    [
        "an error was encountered while running the model: {}",
        "an error was encountered while running the model: unexpected EOF {}",
        "llama-server process no longer running: {}",
        "llama-server process no longer running: -1 {}",
        "llama runner process no longer running: 2 {}",
        "model runner has unexpectedly stopped, this may be due to resource limitations {}",
        "timed out waiting for llama-server to start - {}",
        'do embedding request: Post "http://127.0.0.1:40001/embedding": EOF {}',
    ],
)
@pytest.mark.parametrize("joined", [" ", "\n"], ids=["blank", "line"])
def test_a_quoted_log_is_never_searched(text, joined):
    """The log of a process that died is about other requests; the innocent ones are asked again."""
    full = text.format(joined + LOG)

    for error in (in_line({"error": full}), status(500, {"error": full}), status(400, {"error": full})):
        assert type(error) is errors.RunnerError
        assert error.retryable


@pytest.mark.parametrize(
    ("kind", "number", "text"), [each for each in TEXTS if each[0] is not errors.OutOfMemoryError], ids=str
)
def test_a_known_text_behind_another_one_means_nothing(kind, number, text):
    """A text is judged by how it begins: what it quotes, out of a log or of the request, is somebody else's."""
    error = status(500, {"error": f"something new happened while the server was at work, and its log says: {text}"})

    assert type(error) is errors.UnknownServerError


def test_the_numbers_of_a_prompt_over_the_context_are_told():
    """Since 0.30 the text is JSON, which says how long the prompt is and how long it may be."""
    inner = {
        "code": 400,
        "message": "request (12017 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 12017,
        "n_ctx": 2048,
    }

    error = status(400, {"error": json.dumps({"error": inner})})

    assert type(error) is errors.ContextLengthError
    assert "the prompt has 12017 tokens, and the context has room for 2048" in str(error)


@pytest.mark.parametrize(("kind", "number", "text"), TEXTS, ids=[text[:40] for _, _, text in TEXTS])
def test_texts_of_other_versions(kind, number, text):
    """Texts of servers from 0.1 to 0.33 are known, whatever status they come with."""
    assert type(status(number, {"error": text})) is kind


PULLS = [
    (errors.PullFailedError, "pull model manifest: file does not exist"),
    (errors.PullFailedError, "pull model manifest: 412: the model requires a newer version of Ollama"),
    (errors.PullFailedError, 'pull model manifest: Get "https://r/v2/": x509: certificate signed by unknown authority'),
    (errors.PullFailedError, "unauthorized: access denied"),
    (errors.PullFailedError, "write /models/blobs/sha256-1-partial-0: no space left on device"),
    (errors.PullFailedError, "something new"),
    (errors.TransientPullError, 'pull model manifest: Get "https://r/v2/": dial tcp 1.2.3.4:443: i/o timeout'),
    (errors.TransientPullError, "pull model manifest: 503: unavailable"),
    (errors.TransientPullError, "pull model manifest: 429: too many requests"),
    (errors.TransientPullError, "max retries exceeded: unexpected EOF"),
    (errors.TransientPullError, "digest mismatch, file must be downloaded again: want sha256:1, got sha256:2"),
    (errors.TransientPullError, "context deadline exceeded"),
    (errors.TransientPullError, "EOF"),
    (errors.TransientPullError, "registry.ollama.ai/library/phi3:latest: EOF"),
    (errors.TransientPullError, "max retries exceeded: EOF"),
    (errors.TransientPullError, "stream error: stream ID 57; INTERNAL_ERROR; received from peer"),
    (errors.TransientPullError, "http2: client connection lost"),
    (errors.TransientPullError, "context canceled"),
    (
        errors.TransientPullError,
        "net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
    ),
    (errors.TransientPullError, 'Get "https://r2.example.com/a?X-Amz-Signature=SECRET": EOF'),
    (errors.TransientPullError, 'pull model manifest: Get "https://r/v2/": read tcp 1.2.3.4:1->5.6.7.8:443: reset'),
    (errors.TransientPullError, "part 12 attempt 5 failed: unexpected EOF, retrying"),
    (errors.PullFailedError, "max retries exceeded: write /models/x: no space left on device"),
    (errors.PullFailedError, "write C:\\x: There is not enough space on the disk."),
    (errors.PullFailedError, "open /models/manifests/x: permission denied"),
    (errors.PullFailedError, 'pull model manifest: 401: {"error":"dial tcp"}'),
    (errors.PullFailedError, "disk quota exceeded"),
]


@pytest.mark.parametrize(("kind", "text"), PULLS, ids=[text[:50] for _, text in PULLS])
def test_why_a_pull_failed(kind, text):
    """A pull says why in its stream, or with a 500; both are read alike, and the server's words are kept."""
    in_stream = in_line({"error": text}, path="/api/pull")
    with_status = status(500, {"error": text}, path="/api/pull")

    assert type(in_stream) is type(with_status) is kind
    assert in_stream.retryable is (kind is errors.TransientPullError)
    assert text.split()[0] in str(in_stream)


@pytest.mark.parametrize(
    ("number", "body", "name"),
    [
        (200, {"error": "Unexpected endpoint or method. (POST /api/generate)"}, "LM Studio"),
        (404, {"error": "Unexpected endpoint or method. (GET /api/version)"}, "LM Studio"),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, "llama-server"),
        (200, {"models": [], "object": "list", "data": []}, "llama-server"),
        (200, {"id": "x", "object": "chat.completion", "choices": []}, "OpenAI's API"),
    ],
)
def test_a_program_that_is_taken_for_ollama_is_named(number, body, name):
    """It is no broken Ollama, and trying again does not help."""
    error = in_line(body) if number == 200 else status(number, body)

    assert type(error) is errors.NotOllamaError
    assert name in str(error)
    assert "11434" in str(error)


HTML = "<html><head><title>Sign in\n please</title></head><body>secret</body></html>"


@pytest.mark.parametrize(
    ("kind", "number", "body", "says"),
    [
        (errors.NotOllamaError, 404, HTML, "'Sign in please'"),
        (errors.NotOllamaError, 404, {"detail": "Not Found"}, "404"),
        (errors.NotOllamaError, 404, {"error": "no such route"}, "no such route"),
        (errors.EndpointNotFoundError, 404, "404 page not found", "there is no /api/generate"),
        (errors.AuthenticationError, 401, HTML, "login and password"),
        (errors.AuthenticationError, 403, HTML, "login and password"),
        (errors.AuthenticationError, 403, "", "Host header"),
        (errors.AuthenticationError, 407, HTML, "407"),
        (errors.BadRequestError, 413, HTML, "send less"),
        (errors.OverloadedError, 503, HTML, "503"),
        (errors.GatewayError, 502, HTML, "proxy"),
        (errors.GatewayError, 504, "", "without a body"),
        (errors.GatewayError, 408, "", "408"),
        (errors.GatewayError, 520, HTML, "Cloudflare"),
        (errors.GatewayError, 521, "", "tunnel"),
        (errors.GatewayError, 524, HTML, "100 s"),
        (errors.GatewayError, 526, HTML, "certificate"),
        (errors.GatewayError, 529, {"error": "overloaded"}, "overloaded"),
        (errors.GatewayError, 530, HTML, "530"),
        (errors.GatewayError, 599, "", "599"),
        (errors.BadRequestError, 418, "", "418"),
        (errors.GatewayError, 500, HTML, "proxy"),
        (errors.GatewayError, 500, {"message": "An unexpected error occurred"}, "500"),
        (errors.GatewayError, 500, "plain text that may echo the prompt", "500"),
        (errors.GatewayError, 501, HTML, "501"),
        (errors.OverloadedError, 503, "", "503"),
        (errors.UnknownServerError, 500, "", "500"),
        (errors.QuotaError, 402, HTML, "paid for"),
        (errors.QuotaError, 410, {"error": "model has been retired"}, "use another"),
        (errors.UnknownServerError, 500, {"error": {}}, "does not say why"),
        (errors.NotOllamaError, 302, "", "redirect"),
    ],
)
def test_what_is_not_ollama_is_told_by_its_status(kind, number, body, says):
    """Proxies answer with anything; only a page's title is quoted of it."""
    error = status(number, body)

    assert type(error) is kind
    assert says in str(error)
    assert "secret" not in str(error)
    assert "echo" not in str(error)


@pytest.mark.parametrize("field", [[], {}, ["list"], 1, None, True])
@pytest.mark.parametrize("number", [404, 500])
def test_an_object_field_of_another_type_names_no_program(field, number):
    """What was sent is compared with names, and need not be a text."""
    found = {"object": field, "data": [], "error": "no"}

    assert error_mapping.other_program(found) is None
    assert in_line(found).what.endswith(": no")
    assert status(number, found).what.endswith(": no")


def test_a_redirect_names_its_target_without_the_rest():
    """The host is told, for it explains the redirect; path and query may hold a session."""
    error = status(302, headers={"location": "https://login.example.com/sso?token=secret"})

    assert "login.example.com" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "value",
    [
        "the request exceeds the available context size",
        {"message": "the request exceeds the available context size"},
        {"code": 400, "message": "too long", "type": "exceed_context_size_error"},
        json.dumps({"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}}),
    ],
    ids=["text", "object", "object with a type", "JSON in a text"],
)
def test_an_error_may_be_text_or_object_or_json_in_a_text(value):
    """All shapes that versions give to the `error` field are read."""
    assert type(status(400, {"error": value})) is errors.ContextLengthError


def test_a_servers_text_is_bounded_and_loses_its_links():
    """A text may echo the request, and the link to sign in carries the server's key."""
    error = status(401, {"error": "unauthorized: https://ollama.com/connect?name=h&key=secret " + "x" * 1000})

    assert "secret" not in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("Sun, 22 Nov 2026 12:01:30 GMT", 90),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("", None),
        ("-5", None),
        (" 1.5 ", 1.5),
        ("3600", 600),
        ("9" * 400, 600),
        ("Sun, 22 Nov 2099 12:01:30 GMT", 600),
        ("Sun, 22 Nov 99999 12:01:30 GMT", None),
        ("Sun, 22 Nov 2026 12:01:30 +99999999", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("\u0663", None),
    ],
)
def test_retry_after(value, seconds):
    """A proxy's wish is read in both forms, and an unreadable one is no wish."""
    assert status(503, headers={"retry-after": value}).retry_after == seconds


def test_retry_after_counts_from_the_time_given():
    """A date means the seconds from now until then."""
    assert error_mapping.read_retry_after("Sun, 22 Nov 2026 12:01:30 GMT", NOW + timedelta(seconds=60)) == 30


_KNOWN = [text.partition("|")[0] for _, texts in error_mapping._TEXTS for text in texts]


@given(
    st.integers(300, 599),
    st.sampled_from(["/api/generate", "/api/pull", "/api/tags", "/api/blobs/sha256:0"]),
    st.sampled_from(_KNOWN)
    | st.text(max_size=60)
    | st.dictionaries(st.sampled_from(["message", "error", "type", "n_ctx"]), st.text(max_size=9) | st.integers()),
    st.none() | st.sampled_from(["list", "chat.completion", ""]) | st.lists(st.none()),
)
def test_every_refusal_has_a_class_and_a_short_text(number, path, said, kind):
    """Whatever the status, the text and the fields around it; and the same refusal has the same class again."""
    body = {"error": said, "object": kind}

    error = status(number, body, path=path)

    assert type(status(number, body, path=path)) is type(error) is not OllamaError
    assert str(error).isprintable()
    assert len(str(error)) < 1500
