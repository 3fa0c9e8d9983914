"""Compares a model on the server with what a create request would make of it. No network.

The server does not record how a model was created, but ``/api/show`` returns the result (0.24): the digests of its
weights and adapters, in the first instructions of the Modelfile, and its template, system prompt, parameters, messages
and license. Fields that a create request leaves out are taken from the base model. Parameters are merged with the
base's, key by key, and a license is appended to the base's.
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

    Empty if the server does not tell, for instance for a cloud model.
    """
    digests = []
    for line in shown.modelfile.split("\n"):
        if not line or line.startswith("#"):
            continue
        match = _BLOB.match(line)
        if match is None:
            # After the files come texts, whose lines may look like instructions.
            break
        if match[1] == instruction:
            digests.append(match[2])
    return digests


def differences(request: CreateRequest, shown: ShowReply, base: ShowReply | None) -> list[str]:
    """Return the names of the fields in which a model differs from what a request would create.

    Of weights that the server quantizes, only the quantization level can be compared.

    Args:
        request: the create request.
        shown: the model on the server.
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
    # Without a template in the request, the model has the base's, or the one that the server finds in the file.
    if shown.template != (request.template or (base.template if request.from_ else shown.template)):
        yield "template"
    if shown.system != (request.system or base.system):
        yield "system"
    own = request.parameters.model_dump(exclude_none=True) if request.parameters else {}
    if _comparable(read_parameters(shown.parameters)) != _comparable(read_parameters(base.parameters) | own):
        yield "parameters"
    if _texts_of(shown.messages) != (_texts_of(request.messages) or _texts_of(base.messages)):
        yield "messages"
    if not _text(shown.license).endswith(_text(request.license or base.license)):
        yield "license"


def read_parameters(text: str) -> dict[str, Any]:
    """Parse the ``parameters`` of ``/api/show``: one name and value per line, several lines for a list."""
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
        except ValueError:  # Go escapes some control characters differently from JSON
            return text
    if text in {"true", "false"}:
        return text == "true"
    return float(text) if _NUMBER.fullmatch(text) else text


def _comparable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Convert values so that they can be compared. Booleans become text, because in Python True equals 1."""
    return {
        name: str(value) if isinstance(value, bool) else value if isinstance(value, str | list) else float(value)
        for name, value in parameters.items()
    }


def _digests(files: dict[str, str] | None) -> list[str]:
    return [digest.removeprefix("sha256:") for digest in (files or {}).values()]


def _texts_of(messages: list[Message] | None) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages or []]


def _text(license_: str | list[str] | None) -> str:
    return "\n".join(license_) if isinstance(license_, list) else license_ or ""
