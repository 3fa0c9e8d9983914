"""What a fault is, what comes of it, and the pieces that answers are made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from tests.api.faults.operations import Group, Operation
from tests.api.faults.server import Call, Keep, Script, Server, Step


class Batch(StrEnum):
    """What a fault of one row does to a batch that has answered rows before."""

    FINE = "the row is answered"
    ROW = "the row fails"
    PAUSE = "the batch pauses"
    STOP = "the batch stops"


@dataclass(frozen=True)
class Outcome:
    """What comes of a fault.

    Attributes:
        error: that the caller gets, or one of these; none if the answer is read.
        again: whether the request is sent again.
        batch: what a batch does.
    """

    error: tuple[type[OllamaError], ...]
    again: bool
    batch: Batch


def _outcome(again: bool, batch: Batch, *error: type[OllamaError]) -> Outcome:
    return Outcome(error, again, batch)


ANSWERED = _outcome(False, Batch.FINE)
AUTHENTICATION = _outcome(False, Batch.STOP, errors.AuthenticationError)
#: A 403 may be a firewall that takes one prompt for an attack.
FORBIDDEN = _outcome(False, Batch.PAUSE, errors.AuthenticationError)
BAD_REQUEST = _outcome(False, Batch.ROW, errors.BadRequestError)
BLOB_NOT_FOUND = _outcome(False, Batch.ROW, errors.BlobNotFoundError)
BROKEN = _outcome(True, Batch.PAUSE, errors.ConnectionBrokenError)
BROKEN_MODEL = _outcome(False, Batch.PAUSE, errors.BrokenModelError)
CONNECT_TIMEOUT = _outcome(True, Batch.PAUSE, errors.ConnectTimeoutError)
CONTEXT_LENGTH = _outcome(False, Batch.ROW, errors.ContextLengthError)
ENDPOINT = _outcome(False, Batch.PAUSE, errors.EndpointNotFoundError)
FIRST_TOKEN = _outcome(True, Batch.ROW, errors.FirstTokenTimeoutError)
GATEWAY = _outcome(True, Batch.PAUSE, errors.GatewayError)
IDLE = _outcome(True, Batch.ROW, errors.IdleTimeoutError)
INCOMPLETE = _outcome(True, Batch.ROW, errors.IncompleteReplyError)
MODEL_NOT_FOUND = _outcome(False, Batch.PAUSE, errors.ModelNotFoundError)
#: The matrix allows no pull. In the middle of an answer there is none anyway.
MODEL_GONE = _outcome(False, Batch.PAUSE, errors.PullNotAllowedError, errors.ModelNotFoundError)
NOT_OLLAMA = _outcome(False, Batch.PAUSE, errors.NotOllamaError)
OUT_OF_MEMORY = _outcome(True, Batch.ROW, errors.OutOfMemoryError)
OVERLOADED = _outcome(True, Batch.PAUSE, errors.OverloadedError)
#: It asks for a longer pause than a single request is given.
OVERLOADED_FOR_LONG = _outcome(False, Batch.PAUSE, errors.OverloadedError)
PULL_FAILED = _outcome(False, Batch.PAUSE, errors.PullFailedError)
PULL_STALLED = _outcome(True, Batch.PAUSE, errors.PullStalledError)
QUOTA = _outcome(False, Batch.STOP, errors.QuotaError)
REJECTED = _outcome(False, Batch.ROW, errors.RejectedReplyError)
RUNNER = _outcome(True, Batch.ROW, errors.RunnerError)
TIMEOUT = _outcome(True, Batch.ROW, errors.ResponseTimeoutError)
TLS = _outcome(False, Batch.PAUSE, errors.TLSError)
TOTAL = _outcome(False, Batch.ROW, errors.TotalTimeoutError)
TRANSIENT_PULL = _outcome(True, Batch.PAUSE, errors.TransientPullError)
UNKNOWN = _outcome(True, Batch.ROW, errors.UnknownServerError)
UNREACHABLE = _outcome(True, Batch.PAUSE, errors.UnreachableError)
UNSUPPORTED = _outcome(False, Batch.ROW, errors.UnsupportedError)
#: A reset may overtake what was sent before it.
BROKEN_OR_INCOMPLETE = _outcome(True, Batch.PAUSE, errors.ConnectionBrokenError, errors.IncompleteReplyError)


def everywhere(outcome: Outcome, others: Mapping[Group, Outcome] | None = None) -> dict[Group, Outcome]:
    """Return the same outcome for all operations, with exceptions."""
    return dict.fromkeys(Group, outcome) | dict(others or {})


#: Where a fault without a script is: returns the base URL, and what else the client needs to know.
Place = Callable[[Server], dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, in all its variants.

    Attributes:
        what: as the page has it.
        outcome: for each group of operations.
        scripts: what the server does, by the variant.
        places: where no script can be played, by the variant.
        settings: of the client, beside its usual ones.
        limits: bounds of the request, see `Operation.limited`.
        has: whether a variant exists for an operation.
        slow: time passes, so all operations are sent at the same time.
        handed_on: groups of which a caller that reads the answer while it arrives has got an object by then, so that
            the request is not sent again.
    """

    what: str
    outcome: Mapping[Group, Outcome]
    scripts: Mapping[str, Script] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    has: Callable[[str, Operation], bool] = lambda *_: True
    slow: bool = False
    handed_on: frozenset[Group] = frozenset()


# Pieces of answers

NDJSON = "Content-Type: application/x-ndjson"
JSON = "Content-Type: application/json"


def head(*headers: str, status: int = 200) -> bytes:
    """Return the head of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", *headers, "", ""]).encode()


def whole(call: Call, body: bytes, *headers: str, status: int = 200) -> list[Step]:
    """Return an answer as it should be, behind which the connection can be used again."""
    return [
        head(*headers, f"Content-Length: {len(body)}", status=status) + (body if call.has_body else b""),
        Keep(),
    ]


def chunk(data: bytes) -> bytes:
    """Return a piece of an answer whose length is not known before."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = "Transfer-Encoding: chunked"


def pieces(call: Call, *steps: Step, headers: Iterable[str] = (CHUNKED,)) -> list[Step]:
    """Return the head of an answer, and then these steps. An answer to HEAD has nothing behind its head."""
    start = head(*headers)
    return [start, *steps] if call.has_body else [start, Keep()]


def first(operation: Operation) -> bytes:
    """Return the first line of the good answer."""
    return operation.answer.splitlines(keepends=True)[0] if operation.answer else b""


def last(operation: Operation) -> bytes:
    """Return the last line of the good answer."""
    return operation.answer.splitlines(keepends=True)[-1] if operation.answer else b""


def with_field(operation: Operation, extra: bytes) -> bytes:
    """Return the good answer with one more field in its first object."""
    line = first(operation).strip()
    rest = operation.answer[len(first(operation)) :]
    return (line[:-1] + b"," + extra if line else b"{" + extra) + b"}\n" + rest
