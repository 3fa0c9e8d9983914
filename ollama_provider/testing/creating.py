"""`/api/create`: a model from another one, or from files that were uploaded."""

from collections.abc import Iterator
from dataclasses import replace

from ollama_provider.testing import names, templates
from ollama_provider.testing.catalogue import Model, digest_of
from ollama_provider.testing.fields import read_messages
from ollama_provider.testing.go import Json, kind
from ollama_provider.testing.library import blob_digest, blob_path, named
from ollama_provider.testing.pulling import TransferError, pull_lines, stream
from ollama_provider.testing.state import Call, RefusalError, State
from ollama_provider.testing.steps import Pause, Steps


def create(state: State, call: Call) -> Steps:
    """POST /api/create.

    Raises:
        RefusalError: A name, a path or a digest is invalid, or neither `from` nor `files` is there.
    """
    body = call.body
    text = named(state, body, "0.1.21")
    read_messages(body)
    files, adapters = body.get("files"), body.get("adapters")
    if not all(_is_relative(path) for path in files or ()):
        raise RefusalError(400, "file path must be relative")
    if "" in {*(files or {}).values(), *(adapters or {}).values()}:
        raise RefusalError(400, "invalid digest format")
    if names.parse(text) is None:
        raise RefusalError(400, "invalid model name")
    if body.get("from"):
        if names.parse(body["from"]) is None:
            raise RefusalError(400, "invalid model name", late=True)
    elif files is None:
        raise RefusalError(400, "neither 'from' or 'files' was specified", late=True)
    yield from stream(call, _lines(state, body, text))


def _is_relative(path: str) -> bool:
    """Go's `fs.ValidPath`."""
    return path == "." or all(part not in {"", ".", ".."} for part in path.split("/"))


def _lines(state: State, body: dict[str, Json], name: str) -> Iterator[dict[str, Json] | Pause]:
    if body.get("from"):
        if state.find(body["from"]) is None:
            yield from (item for item in pull_lines(state, body["from"]) if item != {"status": "success"})
        parent = state.find(body["from"])
        if parent is None:
            raise TransferError(f"model '{body['from']}' not found")
        made = replace(parent.renamed(name), parent=parent.parsed.short)
    else:
        yield from _read_files(state, body["files"])
        digest = next(iter(body["files"].values()))
        made = Model(name, weights=digest, size=state.blobs[digest])
    if (adapters := body.get("adapters")) is not None:
        if len(adapters) > 1 and _kind_of(state, adapters) == "gguf":
            raise TransferError("only one adapter is currently supported", 400)
        yield from _read_files(state, adapters, 400)
    if quantize := body.get("quantize", "").upper():
        if quantize not in _QUANTIZATIONS:
            known = "F32, F16, Q4_K_S, Q4_K_M, Q8_0"
            raise TransferError(f"unsupported quantization type {quantize} - supported types are {known}")
        if made.quantization_level not in {"F16", "BF16", "F32"}:
            raise TransferError("quantization is only supported for F16, BF16 and F32 models")
        if quantize != made.quantization_level:
            status = f"quantizing {made.quantization_level} model to {quantize}"
            base = {"status": status, "digest": "0000000000000000000"}
            yield base | {"total": made.size, "completed": made.size // 2}
            yield base | {"total": made.size, "completed": made.size}
            weights = digest_of("quantized", made.layers[0][0], quantize)
            made = replace(made, quantization_level=quantize, weights=weights, size=made.size // 2, parent="")
    made = _changed(made, body)
    for digest, size in made.layers:
        known_layer = digest in state.blobs
        yield {"status": f"{'using existing' if known_layer else 'creating new'} layer {digest}"}
        state.blobs.setdefault(digest, size)
    yield {"status": "writing manifest"}
    state.install(made)
    yield {"status": "success"}


_QUANTIZATIONS = frozenset({"F32", "F16", "Q8_0", "Q4_K_S", "Q4_K_M", "Q4_K", "BF16"})


def _kind_of(state: State, files: dict[str, str]) -> str:
    """By the end of the first name, else by its first bytes."""
    for path, digest in files.items():
        if path.endswith(".safetensors"):
            return "safetensors"
        if path.endswith(".gguf") or (digest in state.blobs and digest not in state.not_gguf):
            return "gguf"
    return ""


def _read_files(state: State, files: dict[str, str], status: int = 500) -> Iterator[dict[str, Json] | Pause]:
    kind = _kind_of(state, files)
    if not kind:
        raise TransferError("unknown type", 400)
    for digest in files.values():
        yield {"status": "parsing GGUF" if kind == "gguf" else "converting model"}
        if blob_digest(digest) is None:
            raise TransferError("invalid digest format", status)
        if digest not in state.blobs:
            raise TransferError(f"open {blob_path(digest)}: no such file or directory", status)
        if kind == "gguf" and digest in state.not_gguf:
            raise TransferError("supplied file was not in GGUF format", 400)


def _changed(model: Model, body: dict[str, Json]) -> Model:
    try:
        templates.check(body.get("template", ""))
    except templates.TemplateError as wrong:
        raise TransferError(f"template error: {wrong}", 400) from None
    # What is empty changes nothing, and a license is one more.
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
