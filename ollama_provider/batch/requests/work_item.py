"""What stands in the queue: a request, the rows that share it, and what became of it so far."""

from dataclasses import dataclass

from ollama_provider.batch.requests.repair import ORDINARY, Form


@dataclass(slots=True, eq=False)
class Ticket:
    """One request to be sent, for one or more rows with the same key; or the first of a pack that share a request.

    Attributes:
        number: the journal's number of the key.
        prompt: as rendered.
        images: base64 texts.
        key: 32 hex digits.
        request_key: of the request without its schema, where there is one.
        form: how the next attempt differs from the ordinary request.
        riders: the other tickets of a pack, which share what becomes of its request.
        packed: no more tickets may join: a pack that failed before, or a ticket that goes alone.
        attempts: failed attempts that were the row's own fault.
        generation: the plan's generation when it was sent.
        not_before: clock time of the next attempt.
        alone: nothing else may be in flight with it.
        began_alone: nothing else was in flight when it was sent.
        serial: the plan's count of requests when it was sent.
        server_failures: how often the server failed with it, and had answered others since it failed before.
        answers_seen: the plan's count of answers when the server last failed with it; -1 if it never did.
    """

    number: int
    prompt: str
    images: tuple[str, ...] = ()
    key: str = ""
    request_key: str | None = None
    form: Form = ORDINARY
    riders: "tuple[Ticket, ...]" = ()
    packed: bool = False
    attempts: int = 0
    generation: int = 0
    not_before: float = 0.0
    alone: bool = False
    began_alone: bool = False
    serial: int = 0
    server_failures: int = 0
    answers_seen: int = -1
