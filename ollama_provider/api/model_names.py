"""Model names: parse, normalise, compare.

The grammar and the rules of equality are those of the server (0.33)::

    [scheme://][host/][namespace/]model[:tag][:cloud|:local]
"""

import re
from dataclasses import dataclass, field
from typing import Self

from ollama_provider.api.errors import InvalidRequestError

#: The registry of a name without a host.
REGISTRY = "registry.ollama.ai"
NAMESPACE = "library"
TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SOURCES = ("cloud", "local")


@dataclass(frozen=True)
class ModelName:
    """A model's name with all its parts.

    Two names are equal if the server treats them as the same model: case and scheme are ignored, and omitted parts have
    their defaults. ``str()`` is the name as the server shows it: without the default host and namespace, always with
    the tag.

    Attributes:
        model: what no name can lack.
        tag, namespace, host: "latest", "library" and "registry.ollama.ai" where the name has none.
        source: "cloud" or "local" where the name ends in it (0.18): where the model must run. Not part of the identity.
    """

    model: str
    tag: str = TAG
    namespace: str = NAMESPACE
    host: str = REGISTRY
    source: str | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name.

        Args:
            text: for instance ``llama3.2``, ``user/model:tag`` or ``hf.co/user/model:Q4_K_M``; blanks around it are
                dropped.

        Raises:
            InvalidRequestError: the server would not accept this name.
        """
        rest, source = _split_source(_SCHEME.sub("", text.strip(), count=1))
        *path, last = rest.split("/")
        model, colon, tag = last.partition(":")
        if len(path) > 2 or (colon and not tag):
            raise _not_a_name(text)
        namespace = path[-1] if path else NAMESPACE
        host = path[0] if len(path) == 2 else REGISTRY
        name = cls(model=model, tag=tag or TAG, namespace=namespace, host=host, source=source)
        if not name._is_valid():
            raise _not_a_name(text)
        return name

    def _is_valid(self) -> bool:
        return bool(
            _HOST.fullmatch(self.host)
            and _NAMESPACE.fullmatch(self.namespace)
            and _PART.fullmatch(self.model)
            and _PART.fullmatch(self.tag)
        )

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What two names of the same model have in common: host, namespace, model, tag, in lower case."""
        return (self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower())

    @property
    def is_cloud(self) -> bool:
        """It runs at ollama.com (0.18), so the prompts leave the site: ``:cloud`` or a tag that ends in ``-cloud``."""
        tag = self.tag.lower()
        return self.source == "cloud" or tag == "cloud" or tag.endswith("-cloud")

    @property
    def on_default_registry(self) -> bool:
        """It comes from Ollama's own registry."""
        return self.host.lower() == REGISTRY

    def __eq__(self, other: object) -> bool:
        return self.identity == other.identity if isinstance(other, ModelName) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity)

    def __str__(self) -> str:
        name = f"{self.model}:{self.tag}"
        if self.host.lower() != REGISTRY:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace.lower() == NAMESPACE else f"{self.namespace}/{name}"


def same_model(first: str, second: str) -> bool:
    """Return whether the server treats both names as one model.

    Raises:
        InvalidRequestError: one of them is not a model's name.
    """
    return ModelName.parse(first) == ModelName.parse(second)


def listed_name_matches(listed: str, name: ModelName) -> bool:
    """Return whether a name in a server's list of models means the model *name*."""
    try:
        return ModelName.parse(listed) == name
    except InvalidRequestError:
        # Other programs that speak this API may use names that Ollama would refuse.
        return False


def _split_source(name: str) -> tuple[str, str | None]:
    """Take ``:local`` or ``:cloud`` off the end, as the server does before it looks the name up.

    ``gpt-oss:20b:cloud`` is stored as ``gpt-oss:20b-cloud``; ``gpt-oss:cloud`` keeps its tag.
    """
    front, colon, end = name.rpartition(":")
    source = end.lower()
    if not colon or source not in _SOURCES or "/" in end:
        return name, None
    tag = front.rsplit("/", 1)[-1].partition(":")[2]
    if tag.lower() in _SOURCES or (source == "local" and tag.lower().endswith("-cloud")):
        return name, None  # both at once: left as a tag with a colon, which is no tag
    if source == "local":
        return front, source
    return (f"{front}-cloud" if tag else name), source


def _not_a_name(text: str) -> InvalidRequestError:
    # Bounded, since a template gone wrong may have put a whole document here.
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    return InvalidRequestError(
        f"{shown!r} is not a model's name: use [host/][namespace/]model[:tag], as in 'llama3.2', 'llama3.2:3b' "
        "or 'hf.co/user/model:Q4_K_M'"
    )
