"""Model names as the server reads them: `[scheme://][host/][namespace/]model[:tag]`."""

import re
from dataclasses import dataclass
from functools import lru_cache

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SOURCES = {"cloud", "local"}


@dataclass(frozen=True, slots=True)
class Name:
    """A complete name, in the spelling it was given.

    Attributes:
        host: Registry, `registry.ollama.ai` if none was named.
        namespace: `library` if none was named.
        model: The model.
        tag: `latest` if none was named.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two names are compared by: the server folds case."""
        return self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower()

    @property
    def full(self) -> str:
        """All four parts, as capability errors show them."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """As `/api/tags` shows it: defaults left out, the tag always there."""
        if self.host.lower() != "registry.ollama.ai":
            return self.full
        if self.namespace.lower() != "library":
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"


@lru_cache(maxsize=1024)
def parse(text: str) -> Name | None:
    """Read a name; None if the server would call it invalid."""
    rest = text.strip().rpartition("://")[2]
    path, colon, tag = _split_tag(rest)
    if colon and tag.lower() in _SOURCES:
        # A source suffix (since 0.18): `m:20b:cloud` is stored as `m:20b-cloud`, `m:cloud` stays, `:local` is dropped.
        inner_path, inner_colon, inner_tag = _split_tag(path)
        if tag.lower() == "local":
            path, colon, tag = inner_path, inner_colon, inner_tag
        elif inner_colon:
            path, tag = inner_path, f"{inner_tag}-cloud"
    parts = path.split("/")
    if len(parts) > 3:
        return None
    host, namespace, model = ["registry.ollama.ai", "library", ""][: 3 - len(parts)] + parts
    name = Name(host, namespace, model, tag if colon else "latest")
    return name if _is_valid(name) else None


def _split_tag(text: str) -> tuple[str, bool, str]:
    before, colon, after = text.rpartition(":")
    if not colon or "/" in after:
        return text, False, ""
    return before, True, after


def _is_valid(name: Name) -> bool:
    return bool(
        _HOST.fullmatch(name.host)
        and _NAMESPACE.fullmatch(name.namespace)
        and _MODEL_OR_TAG.fullmatch(name.model)
        and _MODEL_OR_TAG.fullmatch(name.tag)
    )
