"""What a model is made of, read from ``/api/show``, and whether making it again would change it. No network.

The server keeps no record of how a model was created, but shows all that came of it (0.24): the digests of its weights
and adapters as the first instructions of the Modelfile, and template, system prompt, parameters, messages and license.
What a request leaves out is taken from the base; parameters are laid over the base's, key by key, and a license is
added to those that are there.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ollama_provider.api.schemas import CreateRequest, Message, ShowReply

_BLOB = re.compile(r"^(FROM|ADAPTER) .*sha256[-:]([0-9a-f]{64})$")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


def blob_digests(shown: ShowReply, instruction: str) -> list[str]:
    """Return the digests (64 hex digits) of a model's weights (``"FROM"``) or adapters (``"ADAPTER"``).

    Empty where the server does not say, as for a model that runs elsewhere.
    """
    found = []
    for line in shown.modelfile.split("\n"):
        if not line or line.startswith("#"):
            continue
        match = _BLOB.match(line)
        if match is None:
            # Behind the files come texts, in which a line may say anything.
            break
        if match[1] == instruction:
            found.append(match[2])
    return found


def differences(request: CreateRequest, shown: ShowReply, base: ShowReply | None) -> list[str]:
    """Return the names of the fields in which a model differs from what a request would make of it.

    Weights that are quantized on the way are known by their level alone.

    Args:
        request: how the model is to be made.
        shown: the model as it is.
        base: the model that the request starts from; None if it starts from files.
    """
    return list(_differences(request, shown, base or ShowReply()))


def _differences(request: CreateRequest, shown: ShowReply, base: ShowReply) -> Iterator[str]:
    if request.quantize is not None:
        if shown.details.quantization_level.lower() != request.quantize.lower():
            yield "quantize"
    elif blob_digests(shown, "FROM") != (_digests(request.files) or blob_digests(base, "FROM")):
        yield "files" if request.files else "from"
    if blob_digests(shown, "ADAPTER") != (_digests(request.adapters) or blob_digests(base, "ADAPTER")):
        yield "adapters"
    # A template that nobody gave is the base's, or what the server makes of the file's own.
    if shown.template != (request.template or (base.template if request.from_ else shown.template)):
        yield "template"
    if shown.system != (request.system or base.system):
        yield "system"
    own = request.parameters.model_dump(exclude_none=True) if request.parameters else {}
    if _plain(read_parameters(shown.parameters)) != _plain(read_parameters(base.parameters) | own):
        yield "parameters"
    if _said(shown.messages) != (_said(request.messages) or _said(base.messages)):
        yield "messages"
    if not _text(shown.license).endswith(_text(request.license or base.license)):
        yield "license"


def read_parameters(text: str) -> dict[str, Any]:
    """Read the ``parameters`` of ``/api/show``: a name and a value a line, several lines for a list."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "stop":
            found.setdefault(name, []).append(_read_value(value.strip()))
        elif name:
            found[name] = _read_value(value.strip())
    return found


def _read_value(text: str) -> Any:
    if text.startswith('"'):
        try:
            return json.loads(text)
        except ValueError:  # Go writes some control characters otherwise than JSON
            return text
    if text in {"true", "false"}:
        return text == "true"
    return float(text) if _NUMBER.fullmatch(text) else text


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Make values comparable: to Python, True is 1."""
    return {
        name: str(value) if isinstance(value, bool) else value if isinstance(value, str | list) else float(value)
        for name, value in parameters.items()
    }


def _digests(files: dict[str, str] | None) -> list[str]:
    return [digest.removeprefix("sha256:") for digest in (files or {}).values()]


def _said(messages: list[Message] | None) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages or []]


def _text(license_: str | list[str] | None) -> str:
    return "\n".join(license_) if isinstance(license_, list) else license_ or ""
