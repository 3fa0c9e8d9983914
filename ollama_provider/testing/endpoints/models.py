"""Endpoints about models: tags, show, ps, copy, delete and blobs; and about the server: version, status, me."""

import hashlib
import re

from ollama_provider.testing.endpoints.calls import Call, RefusalError
from ollama_provider.testing.exchange import Response, Steps
from ollama_provider.testing.go.encoding import Json, dumps, quoted, timestamp
from ollama_provider.testing.state import model_names
from ollama_provider.testing.state.catalogue import Model
from ollama_provider.testing.state.server_state import ServerState

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


def blob_path(digest: str) -> str:
    """Path of a blob in the official image of Ollama, which runs as root."""
    return "/root/.ollama/models/blobs/" + digest.replace(":", "-")


def tags(state: ServerState, call: Call) -> Steps:  # noqa: ARG001 - a handler
    """GET /api/tags: the installed models, the one changed last first."""
    newest = sorted(state.models, key=lambda key: -state.modified[key])
    yield _ok({"models": [_tag_entry(state, state.models[key]) for key in newest]})


def _tag_entry(state: ServerState, model: Model) -> dict[str, Json]:
    entry = {
        **_name_fields(state, model),
        "modified_at": timestamp(state.modified[model.parsed.key]),
        "size": sum(size for _, size in model.layers),
        "digest": model.digest,
        "details": {**model.details, "parent_model": model.parent},
    }
    if state.since("0.30.0"):
        entry["details"] |= {"context_length": model.context_length, "embedding_length": model.embedding_length}
        entry["capabilities"] = list(model.capabilities)
    return entry


def _name_fields(state: ServerState, model: Model) -> dict[str, Json]:
    shown = model.parsed.short
    return {"name": shown, "model": shown} if state.since("0.1.21") else {"name": shown}


def ps(state: ServerState, call: Call) -> Steps:  # noqa: ARG001 - a handler
    """GET /api/ps: the loaded models."""
    entries = []
    for runner in state.scheduler.loaded:
        entry = {
            **_name_fields(state, runner.model),
            "size": runner.model.size * 6 // 5,
            "digest": runner.model.digest,
            "details": runner.model.details,
            "expires_at": timestamp(runner.expires_at),
            "size_vram": 0,
        }
        entries.append(entry | ({"context_length": runner.num_ctx} if state.since("0.10.0") else {}))
    yield _ok({"models": entries})


def version(state: ServerState, call: Call) -> Steps:  # noqa: ARG001 - a handler
    """GET /api/version."""
    yield _ok({"version": state.version})


def status(state: ServerState, call: Call) -> Steps:  # noqa: ARG001 - a handler
    """GET /api/status: the cloud is disabled."""
    yield _ok({"cloud": {"disabled": True, "source": "env"}})


def me(state: ServerState, call: Call) -> Steps:  # noqa: ARG001 - a handler
    """POST /api/me: there is no account, since the stand-in never contacts ollama.com.

    Raises:
        RefusalError: Since 0.24. Older versions answer `null`.
    """
    if state.since("0.24.0"):
        raise RefusalError(503, "account unavailable")
    yield _ok(None)


def show(state: ServerState, call: Call) -> Steps:
    """POST /api/show.

    Raises:
        RefusalError: There is no name or no such model, or its file is damaged. For a missing model, 0.24 repeats the
            name as it was sent and 0.33 completes it.
    """
    text = requested_name(state, call.body, "0.1.18")
    if not text:
        raise RefusalError(400, "model is required")
    name = model_names.parse(text)
    if name is None:
        raise RefusalError(400, "invalid model name")
    model = state.find(text)
    if model is None:
        raise RefusalError(404, f"model '{name.short if state.since('0.30.0') else text}' not found")
    if model.file_error:
        raise RefusalError(500, model.file_error)
    weights = blob_path(model.layers[0][0])
    system = call.body.get("system") or model.system
    parameters = _parameters(model)
    reply: dict[str, Json] = {"license": model.license} if model.license else {}
    reply["modelfile"] = _modelfile(model, weights, system)
    if parameters:
        reply["parameters"] = "\n".join(f"{key:<30} {value}" for key, value in parameters)
    reply["template"] = model.template
    if system:
        reply["system"] = system
    reply["details"] = {**model.details, "parent_model": model.parent or weights}
    if model.messages:
        reply["messages"] = [dict(message) for message in model.messages]
    if state.since("0.1.45"):
        info = dict(model.model_info)
        if call.body.get("verbose"):
            info |= {"tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"], "tokenizer.ggml.token_type": [2, 3, 3]}
        reply["model_info"] = info
    if state.since("0.6.4"):
        reply["tensors"] = [{"name": "token_embd.weight", "type": "F16", "shape": [model.embedding_length, 32_000]}]
        reply["capabilities"] = list(model.capabilities)
    reply["modified_at"] = timestamp(state.modified[model.parsed.key])
    yield _ok(reply)


def _parameters(model: Model) -> list[tuple[str, str]]:
    return [
        (key, quoted(item) if isinstance(item, str) else dumps(item))
        for key, value in sorted(model.parameters.items())
        for item in (value if isinstance(value, list) else [value])
    ]


def _modelfile(model: Model, weights: str, system: str) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.parsed.short}",
        "",
        f"FROM {weights}",
        *(f"ADAPTER {blob_path(digest)}" for digest in model.adapters),
        f"TEMPLATE {_modelfile_text(model.template)}",
    ]
    lines += [f"SYSTEM {_modelfile_text(system)}"] if system else []
    lines += [f"PARAMETER {key} {value.strip(chr(34))}" for key, value in _parameters(model)]
    lines += [f"LICENSE {_modelfile_text(model.license)}"] if model.license else []
    return "\n".join(lines) + "\n"


def _modelfile_text(text: str) -> str:
    if "\n" not in text and text == text.strip():
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def copy(state: ServerState, call: Call) -> Steps:
    """POST /api/copy.

    Raises:
        RefusalError: A name is invalid, or there is no such model.
    """
    source, destination = call.body.get("source", ""), call.body.get("destination", "")
    for what, text in (("source", source), ("destination", destination)):
        if model_names.parse(text) is None:
            raise RefusalError(400, f"{what} {quoted(text)} is invalid")
    model = state.find(source)
    if model is None:
        raise RefusalError(404, f'model "{source}" not found')
    state.install(model.renamed(destination))
    yield Response(200, content_type=None)


def delete(state: ServerState, call: Call) -> Steps:
    """DELETE /api/delete: removes the model. If it is loaded, it stays loaded.

    Raises:
        RefusalError: The name is missing or invalid, or there is no such model.
    """
    text = requested_name(state, call.body, "0.1.21")
    if not text:
        raise RefusalError(400, "model is required")
    if model_names.parse(text) is None:
        raise RefusalError(400, f"name {quoted(text)} is invalid")
    model = state.find(text)
    if model is None:
        raise RefusalError(404, f"model '{text}' not found")
    state.uninstall(model)
    yield Response(200, content_type=None)


def blob(state: ServerState, call: Call) -> Steps:
    """HEAD and POST /api/blobs/:digest.

    Raises:
        RefusalError: The digest is invalid or not that of the body; or, for HEAD, there is no such blob.
    """
    given = call.request.path.removeprefix("/api/blobs/")
    digest = blob_digest(given)
    if digest is None:
        raise RefusalError(400, "invalid digest format")
    if digest in state.blobs:
        yield Response(200, content_type=None)
        return
    if call.request.method == "HEAD":
        raise RefusalError(404, f"blob {quoted(given)} not found")
    found = f"sha256:{hashlib.sha256(call.request.body).hexdigest()}"
    if found != given:
        raise RefusalError(400, f"digest mismatch, expected {quoted(given)}, got {quoted(found)}")
    state.blobs[digest] = len(call.request.body)
    if not call.request.body.startswith((b"GGUF", b"FUGG")):
        state.not_gguf.add(digest)
    yield Response(201, content_type=None)


def blob_digest(text: str) -> str | None:
    """Read a digest, written as `sha256:…` or, as in file names, `sha256-…`; None if it is invalid."""
    return text.replace("-", ":", 1) if _DIGEST.fullmatch(text) else None


def requested_name(state: ServerState, body: dict[str, Json], model_key_since: str) -> str:
    """The name of the model in a request: its field `model` or `name`. Old versions read only `name`.

    Args:
        state: For the version.
        body: The fields of the request.
        model_key_since: The first version that reads `model` at this endpoint.
    """
    name = body.get("name", "")
    return str(body.get("model") or name if state.since(model_key_since) else name)


def _ok(value: Json) -> Response:
    return Response(200, dumps(value).encode())
