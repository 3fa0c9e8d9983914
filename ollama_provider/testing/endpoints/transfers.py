"""`/api/pull`, `/api/push` and `/api/create`: long operations that report progress.

Pulls of the same model share their downloads.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from ollama_provider.testing.endpoints.calls import Call, RefusalError
from ollama_provider.testing.endpoints.models import blob_digest, blob_path, requested_name
from ollama_provider.testing.endpoints.requests import read_messages
from ollama_provider.testing.exchange import Head, Line, Pause, Response, Step, Steps
from ollama_provider.testing.go import templates
from ollama_provider.testing.go.encoding import Json, dumps, kind
from ollama_provider.testing.state import model_names
from ollama_provider.testing.state.catalogue import Model, digest_of
from ollama_provider.testing.state.server_state import Download, ServerState

_PUBLIC_REGISTRIES = frozenset({"registry.ollama.ai", "ollama.com", "hf.co", "huggingface.co"})
_PROGRESS_INTERVAL = 0.06
"""Seconds between the progress lines of a layer."""
_STEPS_WITHOUT_DELAY = 4
"""Progress lines for each layer when a pull takes no time."""
_QUANTIZATIONS = frozenset({"F32", "F16", "Q8_0", "Q4_K_S", "Q4_K_M", "Q4_K", "BF16"})


class TransferError(Exception):
    """The operation fails. The error is a line if the stream has begun, else an HTTP status.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


def pull(state: ServerState, call: Call) -> Steps:
    """POST /api/pull.

    Raises:
        RefusalError: The name is invalid.
    """
    text = requested_name(state, call.body, "0.1.21")
    if model_names.parse(text) is None:
        raise RefusalError(400, "invalid model name")
    yield from _send_progress(call, _pull_lines(state, text, insecure=call.body.get("insecure", False)))


def push(state: ServerState, call: Call) -> Steps:
    """POST /api/push: reports progress, but sends nothing anywhere.

    Raises:
        RefusalError: The name is missing.
    """
    text = requested_name(state, call.body, "0.1.21")
    if not text:
        raise RefusalError(400, "model is required")
    yield from _send_progress(call, _push_lines(state, text))


def _send_progress(call: Call, progress: Iterator[dict[str, Json] | Pause]) -> Steps:
    """Stream progress as lines; if the reply is not streamed, send only the last object."""
    begun = False
    last: dict[str, Json] = {}
    status = 200
    try:
        for item in progress:
            if isinstance(item, Pause):
                yield item
            elif call.streams:
                if not begun:
                    begun = True
                    yield Head()
                yield _progress_line(item)
            else:
                last = item
    except TransferError as failure:
        status, last = failure.status, {"error": str(failure)}
        if begun:
            yield _progress_line(last)
    if not begun:
        yield Response(status, dumps(last).encode(), "application/json")


def _progress_line(item: dict[str, Json]) -> Step:
    return Line(dumps(item).encode() + b"\n")


def _pull_lines(state: ServerState, text: str, *, insecure: bool = False) -> Iterator[dict[str, Json] | Pause]:
    """Pull a model: yield the progress, and install the model at the end.

    Args:
        state: Registry, blobs and installed models.
        text: The name of the model.
        insecure: Plain HTTP is allowed.

    Raises:
        TransferError: The registry does not have the model, or cannot be reached.
    """
    plain = text.strip().startswith("http://")
    if plain and not insecure:
        raise TransferError("insecure protocol http")
    yield {"status": "pulling manifest"}
    name = model_names.parse(text)
    found = state.registry.get(name.key) if name else None
    if found is None:
        if name is not None and not _registry_exists(state, name.host):
            url = f"{'http' if plain or insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"
            raise TransferError(
                f'pull model manifest: Get "{url}/manifests/{name.tag}": {_connection_error(name.host)}'
            )
        raise TransferError("pull model manifest: file does not exist")
    for digest, size in found.layers:
        yield from _pull_layer(state, found, digest, size)
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    replaced = state.models.get(found.parsed.key)
    state.install(found)
    if replaced is not None and replaced.digest != found.digest:
        yield {"status": "removing unused layers"}
    yield {"status": "success"}


def _registry_exists(state: ServerState, host: str) -> bool:
    """Whether *host* is a registry: a public one, or the registry of a model that can be pulled."""
    return host.lower() in _PUBLIC_REGISTRIES or any(key[0] == host.lower() for key in state.registry)


def _connection_error(host: str) -> str:
    """Go's error text for a host that does not exist, or a port of this machine on which nothing listens."""
    name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "443")
    address = "127.0.0.1" if name.lower() == "localhost" else name
    if re.fullmatch(r"\d+(\.\d+){3}", address):
        return f"dial tcp {address}:{port}: connect: connection refused"
    return f"dial tcp: lookup {name} on 127.0.0.11:53: no such host"


def _pull_layer(state: ServerState, model: Model, digest: str, size: int) -> Iterator[dict[str, Json] | Pause]:
    status = f"pulling {digest.removeprefix('sha256:')[:12]}"
    base: dict[str, Json] = {"status": status, "digest": digest, "total": size}
    if digest in state.blobs:
        yield base | {"completed": size}
        return
    download = state.partial_downloads.setdefault(digest, Download(size))
    if not download.pullers and digest == model.layers[0][0]:
        state.downloads[model.parsed.short] += 1
    this_pull = object()
    download.pullers.append(this_pull)
    seconds = state.pull_seconds * size / max(1, sum(bytes_ for _, bytes_ in model.layers))
    updates = max(1, math.ceil(seconds / _PROGRESS_INTERVAL)) if seconds else _STEPS_WITHOUT_DELAY
    try:
        while download.completed < size:
            yield base | ({"completed": download.completed} if download.completed else {})
            if seconds:
                yield Pause(seconds / updates)
            # The first of the waiting pulls advances the download. If its client disconnects, the next one does.
            if download.pullers[0] is this_pull:
                download.completed = min(size, download.completed + math.ceil(size / updates))
        yield base | {"completed": size}
        state.blobs[digest] = size
        state.partial_downloads.pop(digest, None)
    finally:
        download.pullers.remove(this_pull)


def _push_lines(state: ServerState, text: str) -> Iterator[dict[str, Json] | Pause]:
    yield {"status": "retrieving manifest"}
    model = state.find(text)
    if model is None:
        yield {"status": "couldn't retrieve manifest"}
        name = model_names.parse(text)
        if name is None:
            raise TransferError(f"unqualified name: {text}")
        manifest = f"/root/.ollama/models/manifests/{name.host}/{name.namespace}/{name.model}/{name.tag}"
        raise TransferError(f"open {manifest}: no such file or directory")
    for digest, size in model.layers:
        base: dict[str, Json] = {
            "status": f"pushing {digest.removeprefix('sha256:')[:12]}",
            "digest": digest,
            "total": size,
        }
        yield base
        yield base | {"completed": size}
    yield {"status": "pushing manifest"}
    yield {"status": "success"}


def create(state: ServerState, call: Call) -> Steps:
    """POST /api/create: makes a model from another one, or from uploaded files.

    Raises:
        RefusalError: A name, a path or a digest is invalid, or both `from` and `files` are missing.
    """
    body = call.body
    text = requested_name(state, body, "0.1.21")
    read_messages(body)
    files, adapters = body.get("files"), body.get("adapters")
    if not all(_is_relative(path) for path in files or ()):
        raise RefusalError(400, "file path must be relative")
    if "" in {*(files or {}).values(), *(adapters or {}).values()}:
        raise RefusalError(400, "invalid digest format")
    if model_names.parse(text) is None:
        raise RefusalError(400, "invalid model name")
    if body.get("from"):
        if model_names.parse(body["from"]) is None:
            raise RefusalError(400, "invalid model name", late=True)
    elif files is None:
        raise RefusalError(400, "neither 'from' or 'files' was specified", late=True)
    yield from _send_progress(call, _create_lines(state, body, text))


def _is_relative(path: str) -> bool:
    """Check a path as Go's `fs.ValidPath` does."""
    return path == "." or all(part not in {"", ".", ".."} for part in path.split("/"))


def _create_lines(state: ServerState, body: dict[str, Json], name: str) -> Iterator[dict[str, Json] | Pause]:
    if body.get("from"):
        if state.find(body["from"]) is None:
            yield from (item for item in _pull_lines(state, body["from"]) if item != {"status": "success"})
        parent = state.find(body["from"])
        if parent is None:
            raise TransferError(f"model '{body['from']}' not found")
        model = replace(parent.renamed(name), parent=parent.parsed.short)
    else:
        yield from _read_files(state, body["files"])
        digest = next(iter(body["files"].values()))
        model = Model(name, weights=digest, size=state.blobs[digest])
    if (adapters := body.get("adapters")) is not None:
        if len(adapters) > 1 and _file_format(state, adapters) == "gguf":
            raise TransferError("only one adapter is currently supported", 400)
        yield from _read_files(state, adapters, 400)
    if quantize := body.get("quantize", "").upper():
        if quantize not in _QUANTIZATIONS:
            known = "F32, F16, Q4_K_S, Q4_K_M, Q8_0"
            raise TransferError(f"unsupported quantization type {quantize} - supported types are {known}")
        if model.quantization_level not in {"F16", "BF16", "F32"}:
            raise TransferError("quantization is only supported for F16, BF16 and F32 models")
        if quantize != model.quantization_level:
            status = f"quantizing {model.quantization_level} model to {quantize}"
            base = {"status": status, "digest": "0000000000000000000"}
            yield base | {"total": model.size, "completed": model.size // 2}
            yield base | {"total": model.size, "completed": model.size}
            weights = digest_of("quantized", model.layers[0][0], quantize)
            model = replace(model, quantization_level=quantize, weights=weights, size=model.size // 2, parent="")
    model = _with_changes(model, body)
    for digest, size in model.layers:
        known_layer = digest in state.blobs
        yield {"status": f"{'using existing' if known_layer else 'creating new'} layer {digest}"}
        state.blobs.setdefault(digest, size)
    yield {"status": "writing manifest"}
    state.install(model)
    yield {"status": "success"}


def _file_format(state: ServerState, files: dict[str, str]) -> str:
    """The format of the files: by the ending of a name, else by the first bytes of an uploaded blob."""
    for path, digest in files.items():
        if path.endswith(".safetensors"):
            return "safetensors"
        if path.endswith(".gguf") or (digest in state.blobs and digest not in state.not_gguf):
            return "gguf"
    return ""


def _read_files(state: ServerState, files: dict[str, str], status: int = 500) -> Iterator[dict[str, Json] | Pause]:
    file_format = _file_format(state, files)
    if not file_format:
        raise TransferError("unknown type", 400)
    for digest in files.values():
        yield {"status": "parsing GGUF" if file_format == "gguf" else "converting model"}
        if blob_digest(digest) is None:
            raise TransferError("invalid digest format", status)
        if digest not in state.blobs:
            raise TransferError(f"open {blob_path(digest)}: no such file or directory", status)
        if file_format == "gguf" and digest in state.not_gguf:
            raise TransferError("supplied file was not in GGUF format", 400)


def _with_changes(model: Model, body: dict[str, Json]) -> Model:
    try:
        templates.check(body.get("template", ""))
    except templates.TemplateError as wrong:
        raise TransferError(f"template error: {wrong}", 400) from None
    # Empty fields change nothing. A license is added to those of the model.
    added = body.get("license") or []
    if not isinstance(added, str | list):
        raise TransferError(f"json: cannot unmarshal {kind(added)} into Go value of type []string")
    if isinstance(added, list):
        for item in added:
            if item is not None and not isinstance(item, str):
                raise TransferError(f"json: cannot unmarshal {kind(item)} into Go value of type string")
    licenses = [model.license, *(added if isinstance(added, list) else [added])]
    return replace(
        model,
        template=body.get("template") or model.template,
        system=body.get("system") or model.system,
        license="\n".join(str(text) for text in licenses if text),
        parameters={**model.parameters, **(body.get("parameters") or {})},
        messages=tuple(body.get("messages") or model.messages),
        adapters=tuple((body.get("adapters") or {}).values()) or model.adapters,
    )
