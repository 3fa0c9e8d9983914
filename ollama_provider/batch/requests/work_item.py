"""What stands in the queue: a request, the rows that share it, and what became of it so far."""

from dataclasses import dataclass

from ollama_provider.batch.requests.repair import UNCHANGED, Variant


@dataclass(slots=True, eq=False)
class WorkItem:
    """One request to be sent, for one or more rows with the same key; or the first of a pack that share a request.

    Attributes:
        number: the journal's number of the key.
        prompt: as rendered.
        images: base64 texts.
        key: 32 hex digits.
        request_key: of the request without its schema, where there is one.
        variant: how the next attempt differs from the ordinary request.
        rest: the other items of a pack, which share what becomes of its request.
        pack_closed: no more items may join: a pack that failed before, or an item that goes alone.
        attempts: failed attempts that were the row's own fault.
        generation: the plan's generation when it was sent.
        not_before: clock time of the next attempt.
        exclusive: nothing else may be in flight with it.
        sent_alone: nothing else was in flight when it was sent.
        send_number: the plan's count of requests when it was sent.
        server_failures: how often the server failed with it, and had answered others since it failed before.
        answers_seen: the plan's count of answers when the server last failed with it; -1 if it never did.
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
    generation: int = 0
    not_before: float = 0.0
    exclusive: bool = False
    sent_alone: bool = False
    send_number: int = 0
    server_failures: int = 0
    answers_seen: int = -1
