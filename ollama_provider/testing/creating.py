"""`/api/create`: a model from another one, or from files that were uploaded."""

from collections.abc import Iterator
from dataclasses import replace

from ollama_provider.testing import names
from ollama_provider.testing.catalogue import Model, digest_of
from ollama_provider.testing.fields import read_messages
from ollama_provider.testing.go import Json
from ollama_provider.testing.library import blob_path, named
from ollama_provider.testing.pulling import TransferError, pull_lines, stream
from ollama_provider.testing.state import Call, RefusalError, State
from ollama_provider.testing.steps import Pause, Steps


def create(state: State, call: Call) -> Steps:
    """POST /api/create.

    Raises:
        RefusalError: The name is invalid, or neither `from` nor `files` is there.
    """
    body = call.body
    text = named(state, body, "0.1.21")
    read_messages(body)
    if names.parse(text) is None:
        raise RefusalError(400, "invalid model name")
    if not body.get("from") and not body.get("files"):
        raise RefusalError(400, "neither 'from' or 'files' was specified", late=True)
    yield from stream(call, _lines(state, body, text))


def _lines(state: State, body: dict[str, Json], name: str) -> Iterator[dict[str, Json] | Pause]:
    _check_blobs(state, body)
    if body.get("from"):
        if state.find(body["from"]) is None:
            yield from (item for item in pull_lines(state, body["from"]) if item != {"status": "success"})
        parent = state.find(body["from"])
        if parent is None:
            raise TransferError(f"model '{body['from']}' not found")
        made = replace(parent.renamed(name), parent=parent.parsed.short)
    else:
        yield {"status": "parsing GGUF"}
        made = _from_files(state, body["files"], name)
    if quantize := body.get("quantize"):
        status = f"quantizing {made.quantization_level} model to {quantize.upper()}"
        base = {"status": status, "digest": "0000000000000000000"}
        yield base | {"total": made.size, "completed": made.size // 2}
        yield base | {"total": made.size, "completed": made.size}
        weights = digest_of("quantized", made.layers[0][0], quantize)
        made = replace(made, quantization_level=quantize.upper(), weights=weights, size=made.size // 2, parent="")
    made = _changed(made, body)
    for digest, size in made.layers:
        known = digest in state.blobs
        yield {"status": f"{'using existing' if known else 'creating new'} layer {digest}"}
        state.blobs.setdefault(digest, size)
    yield {"status": "writing manifest"}
    state.install(made)
    yield {"status": "success"}


def _check_blobs(state: State, body: dict[str, Json]) -> None:
    for field in ("files", "adapters"):
        for digest in (body.get(field) or {}).values():
            if digest not in state.blobs:
                raise TransferError(f"open {blob_path(digest)}: no such file or directory")


def _from_files(state: State, files: dict[str, str], name: str) -> Model:
    digest = next(iter(files.values()))
    return Model(name, weights=digest, size=state.blobs[digest])


def _changed(model: Model, body: dict[str, Json]) -> Model:
    # What is empty changes nothing, and a license is one more.
    added = body.get("license") or []
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
