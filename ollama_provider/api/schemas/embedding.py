"""Vectors of texts."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ollama_provider.api.schemas.base import Metrics, Reply, Request
from ollama_provider.api.schemas.options import KeepAlive, Options


class EmbedReply(Metrics):
    """One vector for each text, in the order of the texts, each of length 1."""

    model: str = ""
    embeddings: list[list[float]] = Field(default_factory=list)


class EmbedRequest(Request[EmbedReply]):
    """POST /api/embed (0.2.6): all texts or none; an empty list only loads the model."""

    path: ClassVar[str] = "/api/embed"
    reply: ClassVar[type[Reply]] = EmbedReply
    needs_model: ClassVar[bool] = True
    read_timeout: ClassVar[float | None] = None

    model: str = Field(min_length=1)
    input: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    truncate: bool | None = None
    #: Cut the vectors to this many numbers and scale them to length 1 again (0.11.11; older servers ignore it).
    dimensions: int | None = Field(default=None, ge=1)
    options: Options | None = None
    keep_alive: KeepAlive | None = None

    @property
    def max_bytes(self) -> int:  # type: ignore[override]  # a constant elsewhere, here a matter of the number of texts
        """Bytes that an answer may have: vectors of 16,000 numbers fit."""
        return 2**20 + len(self.input) * 2**19


class LegacyEmbedReply(Reply):
    """One vector, not always of length 1."""

    embedding: list[float] = Field(default_factory=list)


class LegacyEmbedRequest(Request[LegacyEmbedReply]):
    """POST /api/embeddings: the only way before 0.2.6, one text a request."""

    path: ClassVar[str] = "/api/embeddings"
    reply: ClassVar[type[Reply]] = LegacyEmbedReply
    needs_model: ClassVar[bool] = True
    read_timeout: ClassVar[float | None] = None

    model: str = Field(min_length=1)
    prompt: str
    options: Options | None = None
    keep_alive: KeepAlive | None = None


def as_legacy(request: EmbedRequest) -> list[LegacyEmbedRequest]:
    """Return the legacy requests that ask for the same vectors: one a text; for no text, one that loads the model."""
    shared: dict[str, Any] = {"model": request.model, "options": request.options, "keep_alive": request.keep_alive}
    return [LegacyEmbedRequest(prompt=text, **shared) for text in request.input or [""]]
