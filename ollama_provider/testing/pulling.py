"""`/api/pull` and `/api/push`: transfers with progress, and pulls that share their downloads."""

import math
import re
from collections.abc import Iterator

from ollama_provider.testing import names
from ollama_provider.testing.catalogue import Model
from ollama_provider.testing.go import Json, dumps
from ollama_provider.testing.library import named
from ollama_provider.testing.state import Call, Download, RefusalError, State
from ollama_provider.testing.steps import Head, Line, Pause, Step, Steps, Whole

_PUBLIC = frozenset({"registry.ollama.ai", "ollama.com", "hf.co", "huggingface.co"})
_EVERY = 0.06
_FASTEST = 4
"""Progress lines a layer when a pull takes no time."""


class TransferError(Exception):
    """The transfer ends with this text: a line in a stream that has begun, else a status.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


def pull(state: State, call: Call) -> Steps:
    """POST /api/pull.

    Raises:
        RefusalError: The name is invalid.
    """
    text = named(state, call.body, "0.1.21")
    if names.parse(text) is None:
        raise RefusalError(400, "invalid model name")
    yield from stream(call, pull_lines(state, text, insecure=call.body.get("insecure", False)))


def push(state: State, call: Call) -> Steps:
    """POST /api/push: nothing leaves, but it looks as if.

    Raises:
        RefusalError: There is no name.
    """
    text = named(state, call.body, "0.1.21")
    if not text:
        raise RefusalError(400, "model is required")
    yield from stream(call, _push_lines(state, text))


def stream(call: Call, progress: Iterator[dict[str, Json] | Pause]) -> Steps:
    """Send progress as lines, or, not streamed, its last object alone."""
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
                yield _line(item)
            else:
                last = item
    except TransferError as failure:
        status, last = failure.status, {"error": str(failure)}
        if begun:
            yield _line(last)
    if not begun:
        yield Whole(status, dumps(last).encode(), "application/json")


def _line(item: dict[str, Json]) -> Step:
    return Line(dumps(item).encode() + b"\n")


def pull_lines(state: State, text: str, *, insecure: bool = False) -> Iterator[dict[str, Json] | Pause]:
    """The progress of a pull, which installs the model at its end.

    Args:
        state: The stand-in's.
        text: The model.
        insecure: The registry may be asked by plain HTTP.

    Raises:
        TransferError: The registry does not have it, or there is no such registry.
    """
    plain = text.strip().startswith("http://")
    if plain and not insecure:
        raise TransferError("insecure protocol http")
    yield {"status": "pulling manifest"}
    name = names.parse(text)
    found = state.registry.get(name.key) if name else None
    if found is None:
        if name is not None and not _answers(state, name.host):
            url = f"{'http' if plain or insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"
            raise TransferError(f'pull model manifest: Get "{url}/manifests/{name.tag}": {_unreachable(name.host)}')
        raise TransferError("pull model manifest: file does not exist")
    for digest, size in found.layers:
        yield from _layer(state, found, digest, size)
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    replaced = state.models.get(found.parsed.key)
    state.install(found)
    if replaced is not None and replaced.digest != found.digest:
        yield {"status": "removing unused layers"}
    yield {"status": "success"}


def _answers(state: State, host: str) -> bool:
    """Whether there is a registry: the public ones, and any that a model to pull is on."""
    return host.lower() in _PUBLIC or any(key[0] == host.lower() for key in state.registry)


def _unreachable(host: str) -> str:
    """Go's text for a host that is not there, or for a port of this machine that nobody listens at."""
    name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "443")
    address = "127.0.0.1" if name.lower() == "localhost" else name
    if re.fullmatch(r"\d+(\.\d+){3}", address):
        return f"dial tcp {address}:{port}: connect: connection refused"
    return f"dial tcp: lookup {name} on 127.0.0.11:53: no such host"


def _layer(state: State, model: Model, digest: str, size: int) -> Iterator[dict[str, Json] | Pause]:
    status = f"pulling {digest.removeprefix('sha256:')[:12]}"
    base: dict[str, Json] = {"status": status, "digest": digest, "total": size}
    if digest in state.blobs:
        yield base | {"completed": size}
        return
    download = state.partial.setdefault(digest, Download(size))
    if not download.pullers and digest == model.layers[0][0]:
        state.downloads[model.parsed.short] += 1
    me = object()
    download.pullers.append(me)
    seconds = state.pull_seconds * size / max(1, sum(bytes_ for _, bytes_ in model.layers))
    rounds = max(1, math.ceil(seconds / _EVERY)) if seconds else _FASTEST
    try:
        while download.completed < size:
            yield base | ({"completed": download.completed} if download.completed else {})
            if seconds:
                yield Pause(seconds / rounds)
            # The first of those who wait moves the download on; if it leaves, the next one does.
            if download.pullers[0] is me:
                download.completed = min(size, download.completed + math.ceil(size / rounds))
        yield base | {"completed": size}
        state.blobs[digest] = size
        state.partial.pop(digest, None)
    finally:
        download.pullers.remove(me)


def _push_lines(state: State, text: str) -> Iterator[dict[str, Json] | Pause]:
    yield {"status": "retrieving manifest"}
    model = state.find(text)
    if model is None:
        yield {"status": "couldn't retrieve manifest"}
        name = names.parse(text)
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
