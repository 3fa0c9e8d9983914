"""Answers of valid HTTP whose JSON is damaged, of another kind, or says no."""

import json
from collections.abc import Callable

from tests.api.faults.fault import (
    ANSWERED,
    AUTHENTICATION,
    BAD_REQUEST,
    BROKEN_MODEL,
    CONTEXT_LENGTH,
    GATEWAY,
    INCOMPLETE,
    MODEL_GONE,
    MODEL_NOT_FOUND,
    NOT_OLLAMA,
    OUT_OF_MEMORY,
    OVERLOADED,
    PULL_FAILED,
    QUOTA,
    REJECTED,
    RUNNER,
    TRANSIENT_PULL,
    UNKNOWN,
    UNSUPPORTED,
    Fault,
    Outcome,
    everywhere,
    first,
    last,
    whole,
    with_field,
)
from tests.api.faults.operations import EMPTY, STREAMS, Group, Operation
from tests.api.faults.server import Script


def _has_body(_: str, operation: Operation) -> bool:
    return operation.group is not Group.HEAD


def _is_answered(_: str, operation: Operation) -> bool:
    return operation.group not in EMPTY


def _is_stream(_: str, operation: Operation) -> bool:
    return operation.group in STREAMS


def _of(*groups: Group) -> Callable[[str, Operation], bool]:
    return lambda _, operation: operation.group in groups


def _body(data: bytes) -> Script:
    return lambda call: whole(call, data)


def _made(make: Callable[[Operation], bytes]) -> Script:
    return lambda call: whole(call, make(call.operation))


def _field(extra: bytes) -> Script:
    return _made(lambda operation: with_field(operation, extra))


def _behind_first(data: bytes) -> Script:
    return _made(lambda operation: first(operation) + data + b"\n" + last(operation))


def _behind_last(data: bytes) -> Script:
    return _made(lambda operation: operation.answer + data + b"\n")


def _deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


_PAGE = b"<html><title>Sign in</title></html>"
BODIES = [
    Fault(
        "something else than JSON",
        everywhere(NOT_OLLAMA),
        {
            "a page": _body(_PAGE),
            "text": _body(b"OK"),
            "bytes": _body(b"\x00\xff\xfe"),
            "events": _body(b'data: {"response":"a"}\n\n'),
            "UTF-16": _made(lambda operation: (operation.answer or b"{}").decode().encode("utf-16")),
            "a BOM": _made(lambda operation: b"\xef\xbb\xbf" + (operation.answer or b"{}")),
        },
        has=_has_body,
    ),
    Fault(
        "JSON that is no object",
        everywhere(NOT_OLLAMA),
        {text: _body(text.encode()) for text in ("[]", "[{}]", "null", "true", "5", '"text"')},
        has=_has_body,
    ),
    Fault(
        "an answer of OpenAI's API",
        everywhere(NOT_OLLAMA),
        {
            "a completion": _body(b'{"object":"chat.completion","choices":[]}'),
            "a list": _body(b'{"object":"list","data":[]}'),
            "an endpoint of LM Studio": _body(b'{"error":"Unexpected endpoint or method. (POST /x)"}'),
        },
        has=_has_body,
    ),
    Fault(
        "damaged JSON: cut, not UTF-8, `NaN`, a number that overflows or has thousands of digits, nested 100,000 deep",
        everywhere(INCOMPLETE),
        {
            "cut": _made(lambda operation: (first(operation).rstrip() or b"{}")[:-1]),
            "not UTF-8": _field(b'"more":"\xff"'),
            "NaN": _field(b'"more":NaN'),
            "Infinity": _field(b'"more":-Infinity'),
            "1e400": _field(b'"more":1e400'),
            "digits": _field(b'"more":' + b"9" * 5000),
            "101 levels": _field(b'"more":' + _deep(101)),
            "100,000 levels": _field(b'"more":' + _deep(100_000)),
            "never closed": _field(b'"more":' + b"[" * 100_000),
            "a comma": _field(b'"more":[1,]'),
            "single quotes": _body(b"{'a':1}"),
            "a control character": _field(b'"more":"a\x01b"'),
        },
        has=_has_body,
    ),
    Fault(
        "odd JSON: a key twice, unknown fields, half a surrogate pair, blank lines, CRLF",
        everywhere(ANSWERED),
        {
            "a key twice": _field(b'"more":1,"more":2'),
            "unknown fields": _field(b'"more":{"a":[1,2.5,null]}'),
            "half a pair": _field(b'"more":"\\ud83d"'),
            "the largest number": _field(b'"more":1e308'),
            "100 levels": _field(b'"more":' + _deep(98)),
            "blank lines": _made(lambda operation: b"\n\n" + operation.answer.replace(b"\n", b"\n \n\r\n")),
            "CRLF": _made(lambda operation: operation.answer.replace(b"\n", b"\r\n")),
            "no line feed": _made(lambda operation: operation.answer.rstrip()),
            "null": _field(b'"more":null'),
        },
        has=_has_body,
    ),
    Fault(
        "`null` where a list, a text or an object belongs",
        everywhere(ANSWERED),
        {
            "a list": _body(b'{"models":null,"messages":null,"capabilities":null,"license":null}'),
            "lists of a model": _body(b'{"models":[{"name":"m","details":{"families":null},"capabilities":null}]}'),
            "texts": _body(b'{"template":null,"system":null,"modelfile":null,"parameters":null}'),
            "an object": _body(b'{"model_info":null,"details":null}'),
        },
        has=_of(Group.FACTS),
    ),
    Fault(
        "`null` in an answer",
        everywhere(ANSWERED),
        {
            "generate": _body(
                b'{"response":"a","thinking":null,"tool_calls":null,"logprobs":null,"context":null}\n{"done":true}\n'
            ),
            "response": _body(b'{"response":null}\n{"response":"a"}\n{"done":true,"done_reason":null}\n'),
        },
        has=lambda _, operation: operation.name.startswith("generate"),
    ),
    Fault(
        "`null` in a message",
        everywhere(ANSWERED),
        {
            "chat": _body(
                b'{"message":{"role":"a","content":"a","thinking":null,"tool_calls":null,"images":null}}\n{"done":true}\n'
            ),
            "message": _body(b'{"message":{"role":"a","content":"a"}}\n{"message":null,"done":true}\n'),
        },
        has=lambda _, operation: operation.name.startswith("chat"),
    ),
    Fault(
        "`null` in a line of progress",
        everywhere(ANSWERED),
        {"": _body(b'{"status":"pulling a","digest":null,"total":null,"completed":null}\n{"status":"success"}\n')},
        has=_of(Group.PULL, Group.PUSH, Group.CREATE),
    ),
    Fault(
        "no vector, an empty one, or vectors that are not equally long",
        everywhere(REJECTED),
        {
            "none": _body(b'{"embeddings":[]}'),
            "two for one": _body(b'{"embeddings":[[1],[1]]}'),
            "an empty one": _body(b'{"embeddings":[[]],"embedding":[]}'),
            "null": _body(b'{"embeddings":null}'),
        },
        has=lambda variant, operation: operation.name == "embed",
    ),
    Fault(
        "numbers of a vector that are none",
        everywhere(INCOMPLETE),
        {
            "null": _body(b'{"embeddings":[[null]],"embedding":[null]}'),
            "text": _body(b'{"embeddings":[["a"]],"embedding":["a"]}'),
            "1e400": _body(b'{"embeddings":[[1e400]],"embedding":[1e400]}'),
        },
        has=_of(Group.VECTORS),
    ),
    Fault(
        "a field of another type",
        everywhere(INCOMPLETE, {Group.FACTS: NOT_OLLAMA}),
        {
            "a number": _made(lambda operation: _other_type(operation, 5)),
            "true": _made(lambda operation: _other_type(operation, True)),
        },
        has=_is_answered,
        handed_on=frozenset({Group.TEXT}),
    ),
    Fault(
        "a number over 64 bits",
        everywhere(INCOMPLETE),
        {
            "": _made(
                lambda operation: with_field(operation, b'"eval_count":%d,"total":%d,"completed":1' % (2**63, 2**63))
            )
        },
        has=_is_stream,
        handed_on=frozenset({Group.TEXT}),
    ),
    Fault(
        "the last object is missing",
        everywhere(INCOMPLETE),
        {
            "the first one only": _made(first),
            "done: false": _made(lambda operation: first(operation) + b'{"done":false,"status":"pulling a"}\n'),
        },
        has=_is_stream,
        handed_on=STREAMS,
    ),
    Fault(
        "the last object twice, or blank lines behind it",
        everywhere(ANSWERED),
        {"twice": _made(lambda operation: operation.answer + last(operation)), "blank lines": _behind_last(b" \n\r\n")},
        has=_is_stream,
    ),
    Fault(
        "lines behind the last object",
        everywhere(INCOMPLETE),
        {
            "an object": _behind_last(b'{"response":"b","message":{"role":"a","content":"b"},"status":"pulling b"}'),
            "a line": _behind_last(b"xyz"),
            "bytes": _behind_last(b"\xff\xfe"),
            "a list": _behind_last(b"[]"),
        },
        has=_is_stream,
        handed_on=STREAMS,
    ),
    Fault(
        "a line in the middle that is no JSON object",
        everywhere(INCOMPLETE),
        {
            "a line": _behind_first(b"{broken"),
            "a page": _behind_first(_PAGE),
            "bytes": _behind_first(b"\xff\xfe"),
            "NUL": _behind_first(b"\x00"),
            "a list": _behind_first(b"[]"),
            "null": _behind_first(b"null"),
            "events": _behind_first(b"data: {}"),
        },
        has=_is_stream,
        handed_on=STREAMS,
    ),
    Fault(
        "`done`, and the model has answered nothing",
        everywhere(INCOMPLETE),
        {
            "nothing": _body(b'{"done":true}\n'),
            "load": _body(b'{"response":"","message":{"role":"a"},"done":true,"done_reason":"load"}\n'),
            "unload": _body(b'{"response":"","message":{"role":"a"},"done":true,"done_reason":"unload"}\n'),
        },
        has=_of(Group.TEXT),
        handed_on=frozenset({Group.TEXT}),
    ),
]


def _other_type(operation: Operation, value: object) -> bytes:
    """Return the good answer with a value of another type in each of its fields."""
    fields = {**json.loads(first(operation))}
    changed = dict.fromkeys(fields, value)
    rest = operation.answer[len(first(operation)) :]
    return json.dumps(changed).encode() + b"\n" + rest


#: Error texts of Ollama, by what they mean to an operation that is no pull, and to a pull.
_TEXTS: list[tuple[Outcome, Outcome, tuple[str, ...]]] = [
    (MODEL_NOT_FOUND, PULL_FAILED, ("model 'llama3.2' not found", 'model "llama3.2" not found, try pulling it first')),
    (
        RUNNER,
        PULL_FAILED,
        (
            "an error was encountered while running the model: unexpected EOF",
            "llama runner process no longer running: 2 CUDA error: out of memory",
            "llama runner process has terminated: signal: killed",
            "timed out waiting for llama-server to start: context canceled",
        ),
    ),
    (
        OUT_OF_MEMORY,
        PULL_FAILED,
        (
            "model requires more system memory (35.8 GiB) than is available (22.4 GiB)",
            "llama runner process has terminated: cudaMalloc failed: out of memory",
        ),
    ),
    (
        OVERLOADED,
        PULL_FAILED,
        ("server busy, please try again.  maximum pending requests exceeded", "llm busy - no slots available"),
    ),
    (CONTEXT_LENGTH, PULL_FAILED, ("the input length exceeds the context length",)),
    (CONTEXT_LENGTH, CONTEXT_LENGTH, ('{"error":{"code":400,"message":"no","type":"exceed_context_size_error"}}',)),
    (UNSUPPORTED, PULL_FAILED, ('"llama3.2" does not support thinking',)),
    (BROKEN_MODEL, PULL_FAILED, ("unknown model architecture: 'x'", "error loading model: missing tensor 'a'")),
    (AUTHENTICATION, PULL_FAILED, ("unauthorized",)),
    (QUOTA, PULL_FAILED, ("you (me) have reached your weekly usage limit", "this model requires a subscription")),
    (BAD_REQUEST, PULL_FAILED, ("invalid JSON schema in format", 'option "temperature" must be of type float32')),
    (BAD_REQUEST, BAD_REQUEST, ("invalid model name",)),
    (GATEWAY, TRANSIENT_PULL, ("unexpected EOF", "dial tcp: lookup registry.ollama.ai: no such host")),
    (TRANSIENT_PULL, TRANSIENT_PULL, ("pull model manifest: 503: sorry", "pull model manifest: unexpected EOF")),
    (PULL_FAILED, PULL_FAILED, ("pull model manifest: file does not exist",)),
    (UNKNOWN, TRANSIENT_PULL, ("max retries exceeded: unexpected EOF",)),
    (UNKNOWN, PULL_FAILED, ("something new", "")),
]
#: What is no text, in an error of status 200.
_NO_TEXTS = ({}, [], 5, True, {"message": []}, {"error": {"error": {}}})


def _error(error: object, *, behind: bool) -> Script:
    """Return an error in the first object of an answer, or behind it."""

    def make(operation: Operation) -> bytes:
        said = error + f" {operation.echo}" if isinstance(error, str) and error and error[0] != "{" else error
        return first(operation) * behind + json.dumps({"error": said}).encode() + b"\n"

    return _made(make)


def _errors(*, behind: bool) -> list[Fault]:
    found = []
    for other, pull, texts in _TEXTS:
        inference = MODEL_GONE if other is MODEL_NOT_FOUND else other
        outcome = everywhere(other, {Group.PULL: pull, Group.TEXT: inference, Group.VECTORS: inference})
        found.append(
            Fault(
                ", ".join(f"`{text}`" if text else "no text" for text in texts),
                outcome,
                {text + " behind the first object" * behind: _error(text, behind=behind) for text in texts},
                has=_is_stream if behind else _has_body,
                handed_on=STREAMS if behind else frozenset(),
            )
        )
    return found


ERRORS = [
    *_errors(behind=False),
    *_errors(behind=True),
    Fault(
        "an `error` that is no text",
        everywhere(UNKNOWN, {Group.PULL: PULL_FAILED}),
        {str(value): _error(value, behind=False) for value in _NO_TEXTS},
        has=_has_body,
    ),
]
