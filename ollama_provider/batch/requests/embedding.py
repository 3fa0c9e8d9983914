"""Vectors: packs of texts in one request, and texts that are longer than the context.

A server works on one text of a model at a time, whatever it is asked (``OLLAMA_NUM_PARALLEL`` does not apply to models
that embed). So more requests in flight are no gain. The time between two requests is a loss, and a pack of texts has it
once. A pack is answered as a whole or not at all. One that fails is sent again as two halves, until each bad text is
alone.
"""

import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field
from pydantic_core import from_json

from ollama_provider.api.errors import ContextLengthError, OllamaError, RejectedReplyError
from ollama_provider.api.schemas import EmbedReply, EmbedRequest, Request
from ollama_provider.api.schemas.base import Reply
from ollama_provider.batch.records import OnLongText, Outcome
from ollama_provider.batch.requests.tasks import Task
from ollama_provider.batch.requests.validation import ReplyValidator
from ollama_provider.batch.requests.work_item import Variant, WorkItem
from ollama_provider.batch.store.lines import encode_vector

#: Bytes of UTF-8 for each token, as a guess. A wrong guess costs a request, and loses no text.
_BYTES_PER_TOKEN = 3
#: A piece of a long text shares one in so many characters with the next piece.
_OVERLAP = 10
#: Characters below which a text is not split further: it is something else than text.
_SHORTEST = 16
#: Characters of the texts in a pack, at most.
PACK_CHARACTERS = 1 << 20


class PackReply(EmbedReply):
    """A reply whose vectors are float32 arrays."""

    embeddings: list[Any] = Field(default_factory=list)


class PackRequest(EmbedRequest):
    """POST /api/embed for many texts. Its vectors are decoded as a whole, not number by number."""

    reply: ClassVar[type[Reply]] = PackReply

    @staticmethod
    def decode(body: bytes) -> Any:
        """Return the JSON of an answer, with an array for each vector.

        Raises:
            ValueError: the body is not JSON.
        """
        found = from_json(body)
        if isinstance(found, dict) and isinstance(vectors := found.get("embeddings"), list):
            found["embeddings"] = [_as_array(vector) for vector in vectors]
        return found


def _as_array(vector: Any) -> Any:
    try:
        return array("f", struct.pack(f"{len(vector)}f", *vector))  # a third of the time of array("f", vector)
    except (TypeError, OverflowError, struct.error):  # null instead of a vector or a number, an integer of 400 digits
        return array("f", [math.nan])


@dataclass(frozen=True, kw_only=True)
class Embed(Task):
    """One vector a row.

    Attributes:
        dimensions: see `Embedding`.
    """

    dimensions: int | None = None

    endpoint: ClassVar[str] = "embed"

    @property
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do."""
        return ("embedding",)

    def identity(self) -> Mapping[str, Any]:
        """Return what a vector depends on: also its length."""
        return {**super().identity(), "dimensions": self.dimensions}

    def needs_own_request(self, prompt: str) -> bool:
        """Return whether a text is so long that it may exceed the context: then a pack with it would fail."""
        return len(prompt) > _BYTES_PER_TOKEN * (self.sent_options.num_ctx or sys.maxsize)

    def request(self, item: WorkItem) -> Request[EmbedReply]:
        """Return the request for a pack, or for the pieces of one text."""
        variant = item.variant
        return PackRequest(
            model=self.model,
            input=[item.prompt[begin:end] for begin, end in variant.spans] or [each.prompt for each in item.pack],
            # Servers before 0.1.33 do not know the field and cut anyway.
            truncate=variant.truncate,
            dimensions=self.dimensions,
            options=self.sent_options,
            keep_alive=self.keep_alive,
        )

    def load(self) -> EmbedRequest:
        """Return the request that only loads the model, with the options of the run."""
        return EmbedRequest(
            model=self.model,
            input=[],
            dimensions=self.dimensions,
            options=self.sent_options,
            keep_alive=self.keep_alive,
        )


@dataclass(frozen=True)
class VectorValidator(ReplyValidator):
    """Validates the vectors of a pack.

    Attributes:
        task: whose replies they are.
        host: base URL of the server, for errors.
        on_long_text: see `Embedding`.
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
        # Tokens and seconds of a pack are not known for each of its texts.
        measures: dict[str, Any] = {}
        if not item.rest:
            measures = {"prompt_tokens": reply.prompt_eval_count or None, "seconds": round(seconds, 3)}
        return [
            Outcome(
                key=each.key,
                status="ok",
                output=output,
                attempts=each.attempts + 1,
                prompt_cut=item.variant.truncate,
                spans=spans,
                **measures,
            )
            for each, output in zip(item.pack, [vectors] if spans else vectors, strict=True)
        ]

    def reject(self, item: WorkItem, error: OllamaError, reply: Any, seconds: float) -> Outcome:  # noqa: ARG002  # no raw reply is kept
        """Return the outcome of a text that has failed for good."""
        return Outcome(
            key=item.key,
            status="failed",
            error={"class": type(error).__name__, "text": str(error)},
            attempts=item.attempts or 1,
        )

    def next_variant(self, item: WorkItem, error: OllamaError, reply: Any) -> Variant | None:  # noqa: ARG002  # an error decides
        """Return how to ask at once again for a text over the context: cut, or in (more) pieces; None if not at all."""
        if item.rest or not isinstance(error, ContextLengthError):
            return None
        if self.on_long_text == "truncate" and not item.variant.truncate:
            return replace(item.variant, truncate=True)
        if self.on_long_text == "split":
            spans = split(item.prompt, self._pieces(item))
            return replace(item.variant, spans=spans) if spans else None
        return None

    def _pieces(self, item: WorkItem) -> int:
        """Return how many pieces to try next: as many as seem to fit, then twice as many each time."""
        if item.variant.spans:
            return 2 * len(item.variant.spans)
        num_ctx = self.task.sent_options.num_ctx
        size = len(item.prompt.encode(errors="replace"))
        return max(2, math.ceil(size / (_BYTES_PER_TOKEN * num_ctx))) if num_ctx else 2


def split(text: str, pieces: int) -> tuple[tuple[int, int], ...]:
    """Return begin and end of overlapping pieces of about equal length, cut at blanks where there are any.

    Each piece shares a tenth of its length with the next one. Returns nothing if the pieces would have fewer than 16
    characters.
    """
    step = math.ceil(len(text) / pieces)
    if step < _SHORTEST:
        return ()
    overlap = step // _OVERLAP
    cuts = [0, *(_blank_near(text, number * step, overlap) for number in range(1, pieces) if number * step < len(text))]
    ends = [*cuts[1:], len(text)]
    return tuple((max(0, cut - overlap), end) for cut, end in zip(cuts, ends, strict=True))


def _blank_near(text: str, place: int, reach: int) -> int:
    """Return the place after the last blank among the *reach* characters before *place*; *place* if there is none."""
    found = max(text.rfind(blank, place - reach, place) for blank in (" ", "\n"))
    return found + 1 if found >= 0 else place
