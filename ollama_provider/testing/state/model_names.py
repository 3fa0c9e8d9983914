"""Parse model names as the server does: `[scheme://][host/][namespace/]model[:tag]`."""

import re
from dataclasses import dataclass
from functools import lru_cache

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SOURCES = {"cloud", "local"}


@dataclass(frozen=True, slots=True)
class Name:
    """A complete name. Upper and lower case are kept.

    Attributes:
        host: The registry, by default `registry.ollama.ai`.
        namespace: By default `library`.
        model: The model.
        tag: By default `latest`.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Equal for names that the server takes as equal: it ignores case."""
        return self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower()

    @property
    def full(self) -> str:
        """All four parts, as in errors about capabilities."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The name in `/api/tags`: without default host and namespace, always with the tag."""
        if self.host.lower() != "registry.ollama.ai":
            return self.full
        if self.namespace.lower() != "library":
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"


@lru_cache(maxsize=1024)
def parse(text: str) -> Name | None:
    """Parse a name; None if the server refuses it as invalid."""
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
