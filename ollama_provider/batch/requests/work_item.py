"""A row in the queue of requests: what is to be sent, and what became of it so far."""

from dataclasses import dataclass
from typing import Literal

#: What is tried after an answer that does not fit the schema; see `ollama_provider.batch.requests.validation`.
Repair = Literal["asked_again", "more_tokens", "no_thinking", "fallback_model"]


@dataclass(frozen=True, slots=True)
class Variant:
    """How an attempt differs from the first request for its row.

    Attributes:
        truncate: the server may cut the prompt.
        spans: begin and end of the overlapping pieces that the text is sent in; empty for the whole text.
        repairs: what was tried so far because the answer did not fit the schema, in this order.
        rejected_answer: the beginning of the last bad answer, which the model is shown.
        feedback: what was wrong with that answer; None to ask without it.
        num_predict: limit of the answer in tokens; None for that of the run.
        thinking: False switches the model's reasoning off; True leaves it as the run has it.
        fallback: ask the fallback model.
    """

    truncate: bool = False
    spans: tuple[tuple[int, int], ...] = ()
    repairs: tuple[Repair, ...] = ()
    rejected_answer: str = ""
    feedback: str | None = None
    num_predict: int | None = None
    thinking: bool = True
    fallback: bool = False


#: That of the first request.
UNCHANGED = Variant()


@dataclass(slots=True, eq=False)
class WorkItem:
    """One request to be sent, for one or more rows with the same key; or the first item of a pack.

    A pack is several texts that are embedded by one request.

    Attributes:
        number: the journal's number of the key.
        prompt: as rendered.
        images: base64 texts.
        key: 32 hex digits.
        request_key: of the request without its schema; None where there is no schema.
        variant: how the next attempt differs from the first request.
        rest: the other items of the pack, which share this item's request.
        pack_closed: no more items may join: the pack failed before, or the text is so long that it needs its own
            request.
        attempts: failed attempts that were the row's own fault.
        sent: it was sent before.
        copies: requests for it in flight now: two if it was given to a second server while the first one stalled.
        not_before: clock time of the next attempt.
        exclusive: no other request may be in flight at the same server.
        only: index of the one server that it may go to; -1 for any.
        failed_at: index of the server that last failed with it; -1 if none did.
        answers_seen: that server's count of answers at that time.
        server_failures: how often a server failed with it that had answered others since it failed with it before.
        servers_failed: servers that failed with it, one after the other.
    """

    number: int
    prompt: str
    images: tuple[str, ...] = ()
    key: str = ""
    request_key: str | None = None
    variant: Variant = UNCHANGED
    rest: "tuple[WorkItem, ...]" = ()
    pack_closed: bool = False
    attempts: int = 0
    sent: bool = False
    copies: int = 0
    not_before: float = 0.0
    exclusive: bool = False
    only: int = -1
    failed_at: int = -1
    answers_seen: int = -1
    server_failures: int = 0
    servers_failed: int = 0

    @property
    def pack(self) -> "tuple[WorkItem, ...]":
        """All items that share the request, this one first."""
        return (self, *self.rest)

    def anew(self) -> "WorkItem":
        """Return the item as it was before it was sent, and without the others of its pack."""
        return WorkItem(self.number, self.prompt, self.images, self.key, self.request_key, pack_closed=self.pack_closed)
