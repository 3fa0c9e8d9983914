"""Vectors: many texts a request, as many as pay; and what becomes of a text that is longer than the context.

A server works on one text of a model at a time, whatever it is asked (``OLLAMA_NUM_PARALLEL`` does not bear on models
that embed), so requests in flight are no gain, but the time between two requests is a loss: a pack of texts pays it
once. A pack is answered as a whole or not at all; one that fails is halved until what is bad stands alone.

In the parts a vector is the base64 of its float32s in little-endian order: a third of its JSON, and quick both ways.
"""

import base64
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field
from pydantic_core import from_json

from ollama_provider.api.errors import ContextLengthError, OllamaError, RejectedReplyError
from ollama_provider.api.schemas import EmbedReply, EmbedRequest, KeepAlive, Options, Request
from ollama_provider.api.schemas.base import Reply
from ollama_provider.batch.records import OnLongText, Outcome
from ollama_provider.batch.requests.repair import Variant
from ollama_provider.batch.requests.work_item import WorkItem

#: Bytes of text that a token stands for, at a guess; a wrong one costs a request, no text.
_BYTES_PER_TOKEN = 3
#: A piece shares this part of its length with the next one.
_OVERLAP = 10
#: Pieces this short that are still too long are no text.
_SHORTEST = 16
#: Characters of a pack.
PACK_CHARACTERS = 1 << 20


class PackReply(EmbedReply):
    """Vectors as they were decoded: float32 arrays."""

    embeddings: list[Any] = Field(default_factory=list)


class PackRequest(EmbedRequest):
    """POST /api/embed for many texts, whose vectors are not looked at number by number."""

    reply: ClassVar[type[Reply]] = PackReply

    @staticmethod
    def decode(body: bytes) -> Any:
        """Return the JSON of an answer, with an array for each vector.

        Raises:
            ValueError: it is not JSON.
        """
        found = from_json(body)
        if isinstance(found, dict) and isinstance(vectors := found.get("embeddings"), list):
            found["embeddings"] = [_packed(vector) for vector in vectors]
        return found


def _packed(vector: Any) -> Any:
    try:
        return array("f", vector)
    except (TypeError, OverflowError):  # null for a vector, or for a number in it; or an integer of 400 digits
        return array("f", [math.nan])


def encode_vector(vector: Sequence[float]) -> str:
    """Return a vector as it stands in the parts."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def decode_vector(text: str) -> "array[float]":
    """Return a vector out of a part."""
    numbers = array("f", base64.b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


@dataclass(frozen=True, kw_only=True)
class Embed:
    """One vector a row.

    Attributes:
        model: name to ask for, without digest.
        options: as the user gave them.
        num_ctx: the context to ask for, where the options name none.
        keep_alive, dimensions: see `BatchSpec`.
    """

    model: str
    options: Options
    num_ctx: int | None = None
    keep_alive: KeepAlive | None = None
    dimensions: int | None = None

    endpoint: ClassVar[str] = "embed"
    capabilities: ClassVar[Sequence[str]] = ("embedding",)
    schema: ClassVar[None] = None

    def identity(self) -> Mapping[str, Any]:
        """Return what bears on a vector, as plain data, but text and model."""
        return {
            "task": self.endpoint,
            "options": self.options.model_dump(exclude_none=True),
            "dimensions": self.dimensions,
        }

    @cached_property
    def sent_options(self) -> Options:
        """The options with the context that was chosen."""
        return self.options if self.num_ctx is None else self.options.model_copy(update={"num_ctx": self.num_ctx})

    def load(self) -> EmbedRequest:
        """Return the request that only loads the model, with the options of the run."""
        return EmbedRequest(model=self.model, input=[], options=self.sent_options, keep_alive=self.keep_alive)

    def request(self, item: WorkItem) -> Request[EmbedReply]:
        """Return the request for a pack, or for the pieces of one text."""
        spans = item.variant.spans
        texts = [item.prompt[begin:end] for begin, end in spans] or [
            item.prompt,
            *(other.prompt for other in item.rest),
        ]
        return PackRequest(
            model=self.model,
            input=texts,
            # Older servers cut anyway; the field is known since 0.1.33.
            truncate=item.variant.truncate,
            dimensions=self.dimensions,
            options=self.sent_options,
            keep_alive=self.keep_alive,
        )

    def needs_own_request(self, prompt: str) -> bool:
        """Tell whether a text is so long that it may well not fit: then it shall not spoil a pack."""
        return len(prompt) > _BYTES_PER_TOKEN * (self.sent_options.num_ctx or sys.maxsize)


@dataclass(frozen=True)
class VectorValidator:
    """Decides what the reply to a pack is worth.

    Attributes:
        task: that asked.
        host: base URL of the server, for errors.
        on_long_text: see `BatchSpec`.
    """

    task: Embed
    host: str
    on_long_text: OnLongText = "dead_letter"

    def accept(self, item: WorkItem, request: PackRequest, reply: PackReply, seconds: float) -> list[Outcome]:
        """Return the outcomes of a good reply, one for each item of the pack.

        Raises:
            RejectedReplyError: there is not a vector for each text.
        """
        if len(reply.embeddings) != len(request.input) or not all(map(len, reply.embeddings)):
            raise RejectedReplyError("the text got no vector", host=self.host, model=self.task.model)
        vectors = [encode_vector(vector) for vector in reply.embeddings]
        spans = item.variant.spans
        pack = (item, *item.rest)
        # What a pack took as a whole is not known for each of its texts.
        alone: dict[str, Any] = {}
        if len(pack) == 1:
            alone = {"prompt_tokens": reply.prompt_eval_count or None, "seconds": round(seconds, 3)}
        return [
            Outcome(
                key=each.key,
                status="ok",
                output=output,
                attempts=each.attempts + 1,
                prompt_cut=item.variant.truncate,
                spans=spans,
                **alone,
            )
            for each, output in zip(pack, [vectors] if spans else vectors, strict=True)
        ]

    def reject(self, item: WorkItem, error: OllamaError, reply: Any, seconds: float) -> Outcome:  # noqa: ARG002  # see `ReplyValidator`
        """Return the outcome of a text that failed for good."""
        return Outcome(
            key=item.key,
            status="failed",
            error={"class": type(error).__name__, "text": str(error)},
            attempts=item.attempts or 1,
        )

    def next_variant(self, item: WorkItem, error: OllamaError, reply: Any) -> Variant | None:  # noqa: ARG002  # see `ReplyValidator`
        """Return the variant in which a text alone is to be asked at once again: cut, or in pieces; None if not."""
        if item.rest or not isinstance(error, ContextLengthError):
            return None
        if self.on_long_text == "truncate" and not item.variant.truncate:
            return replace(item.variant, truncate=True)
        if self.on_long_text == "split":
            spans = split(item.prompt, self._pieces(item))
            return replace(item.variant, spans=spans) if spans else None
        return None

    def _pieces(self, item: WorkItem) -> int:
        if item.variant.spans:
            return 2 * len(item.variant.spans)
        num_ctx = self.task.sent_options.num_ctx
        size = len(item.prompt.encode(errors="replace"))
        return max(2, math.ceil(size / (_BYTES_PER_TOKEN * num_ctx))) if num_ctx else 2

    def revalidate(self, key: str, line: Mapping[str, Any]) -> None:
        """Vectors have no schema."""

    def is_final(self, error: OllamaError) -> bool:  # noqa: ARG002  # see `ReplyValidator`
        """Tell whether the text has failed for good, whatever attempts are left."""
        return False

    def ends_batch(self, error: OllamaError, *, answered: bool) -> bool:  # noqa: ARG002  # see `ReplyValidator`
        """Tell whether the batch ends because of this one text."""
        return False


def split(text: str, pieces: int) -> tuple[tuple[int, int], ...]:
    """Return begin and end of overlapping pieces of about equal length, cut at blanks where there are any.

    Each shares a tenth with the next. Nothing when they would be too short to be text.
    """
    step = math.ceil(len(text) / pieces)
    if step < _SHORTEST:
        return ()
    overlap = step // _OVERLAP
    cuts = [0, *(_blank_near(text, number * step, overlap) for number in range(1, pieces) if number * step < len(text))]
    ends = [*cuts[1:], len(text)]
    return tuple((max(0, cut - overlap), end) for cut, end in zip(cuts, ends, strict=True))


def _blank_near(text: str, place: int, reach: int) -> int:
    """Return the place behind the last blank of the *reach* characters before *place*, or *place*."""
    found = max(text.rfind(blank, place - reach, place) for blank in (" ", "\n"))
    return found + 1 if found >= 0 else place
