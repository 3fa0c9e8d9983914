"""docs/reference/errors.md says of each error what its class says, and of each answer what it is taken for."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_provider.api import errors
from ollama_provider.api.error_mapping import transport_error
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.protocol import Decoder
from ollama_provider.api.replies import Collector
from ollama_provider.api.schemas import (
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    PsRequest,
    PullRequest,
    Request,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings
from ollama_provider.api.structured_output import Output
from tests.api.faults import page as faults

PAGE = Path(__file__).parents[2] / "docs/reference/errors.md"
PACKAGE = Path(__file__).parents[2] / "ollama_provider"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| [^|]+ \| (?P<again>[^|]+) \| (?P<blame>[^|]+) \|$", re.MULTILINE)


def leaves(kind: type[OllamaError]) -> set[type[OllamaError]]:
    """The classes below one that are raised themselves: a parent only groups, unless it is raised too."""
    below = kind.__subclasses__()
    return {kind}.union(*(leaves(child) for child in below))


def test_every_error_is_on_the_page_with_what_its_class_says() -> None:
    """The table names each class that can be raised, whether it is tried again, and whose fault it is."""
    table = PAGE.read_text().partition("## What can go wrong\n")[2].partition("\n## ")[0]
    rows = {row["name"]: row for row in ROW.finditer(table)}
    grouping = {
        "OllamaError",
        "TransportError",
        "ServerError",
        "PullError",
    }

    assert set(rows) | grouping == {kind.__name__ for kind in leaves(OllamaError) if kind.__module__ == errors.__name__}
    for name, row in rows.items():
        kind = getattr(errors, name)
        assert (row["again"].strip() == "no") is not kind.retryable, name
        assert row["blame"].strip() == kind.blame.value, name


GENERATE = GenerateRequest(model="m", prompt="hi")
CHAT = ChatRequest(model="m", messages="hi")
EMBED = EmbedRequest(model="m", input=["hi"])
PULL = PullRequest(model="m")
END = {"done": True, "done_reason": "stop"}
HTML = b"<html><title>Sorry</title></html>"


def answer(body: Any, request: Request[Any] = GENERATE, status: int = 200, **headers: str) -> Any:
    """Read an answer, as both clients do."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    settings = Settings(base_url="http://h")
    decoder = Decoder(request, status, headers, settings=settings, now=datetime.now(UTC))
    collector = Collector(request, host="http://h")
    for part in [*decoder.feed(data), *decoder.end()]:
        collector.add(part)
    return collector.reply()


def said(text: Any, status: int = 500, request: Request[Any] = GENERATE) -> Any:
    return answer({"error": text}, request, status)


def called(arguments: Any) -> Any:
    call = {"function": {"name": "f", "arguments": arguments}}
    return (
        answer({"message": {"role": "assistant", "tool_calls": [call]}, **END}, CHAT).tool_calls[0].function.arguments
    )


def not_http() -> None:
    raise transport_error(httpx.RemoteProtocolError("illegal status line"), answered=False, host="http://h", model="m")


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


CRASH = "exceeds the available context size, usage limit, out of memory"
CONTEXT = "request (3018 tokens) exceeds the available context size (2048 tokens), try increasing it"
Tries = list[Callable[[], Any]]

#: What stands in the page's first column, and answers of that kind.
ANSWERS: dict[str, Tries] = {
    "`response`, `content`, `thinking`": [
        lambda: answer({"response": 5, **END}),
        lambda: answer({"message": {"content": 5}, **END}, CHAT),
        lambda: answer({"response": "a", "thinking": [], **END}),
        lambda: answer({"response": "a", "tool_calls": 5, **END}),
        lambda: answer({"response": "a", "logprobs": 5, **END}),
        lambda: answer({"response": "a", "eval_count": "many", **END}),
    ],
    "content in parts": [lambda: answer({"message": {"content": [{"type": "text", "text": "a"}]}, **END}, CHAT)],
    "a count or a total over 64 bits": [
        lambda: answer({"response": "a", "eval_count": 10**400, **END}),
        lambda: answer({"status": "pulling a", "digest": "a", "total": 2**63}, PULL),
    ],
    "JSON that nests": [lambda: answer(b'{"done": true, "more": %s}' % deep(100_000))],
    "`NaN`, or a number": [
        lambda: answer(b'{"response": "a", "done": true, "more": NaN}'),
        lambda: answer(b'{"response": "a", "done": true, "more": 1e400}'),
    ],
    "bytes in the middle": [
        lambda: answer(b'{"response": "a", "done": false}\n{"response": "\xff"}\n'),
        lambda: answer(b'{"response": "a", "done": false}\n\x00\xff\n'),
    ],
    "an answer without its last object": [lambda: answer({"response": "a", "done": False}), lambda: answer(b"")],
    "`done` without an answer": [
        lambda: answer({"done": True}),
        lambda: answer({"response": "", "done": True, "done_reason": "load"}),
        lambda: answer({"message": {"content": ""}, "done": True, "done_reason": "unload"}, CHAT),
    ],
    "arguments of a tool call that are no object": [lambda: called("[1]"), lambda: called("x"), lambda: called(5)],
    "an empty vector": [lambda: answer({"embeddings": [[]]}, EMBED), lambda: answer({"embeddings": []}, EMBED)],
    "an answer in a format": [
        lambda: Output("json").read("1e400"),
        lambda: Output(list[float]).read('["Infinity"]'),
        lambda: Output("json").read(deep(101).decode()),
    ],
    "tags, show, version or ps": [
        lambda: answer({"models": 5}, TagsRequest()),
        lambda: answer({"version": 5}, VersionRequest()),
        lambda: answer({"models": [5]}, PsRequest()),
    ],
    "a redirect": [lambda: answer(b"", status=302), lambda: answer(b"", status=302, location="http://[")],
    "a page with status 200": [lambda: answer(HTML), not_http],
    "LM Studio": [
        lambda: answer({"error": "Unexpected endpoint or method. (POST /api/generate)"}),
        lambda: said({"code": 404, "message": "File Not Found", "type": "not_found_error"}, 404),
        lambda: answer({"object": "chat.completion", "choices": []}),
    ],
    "`an error was encountered": [
        lambda: said(f"an error was encountered while running the model: {CRASH}"),
        lambda: said(f"llama-server process no longer running: {CRASH}"),
        lambda: answer({"error": f"an error was encountered while running the model: {CRASH}"}),
    ],
    "`request (3018 tokens)": [
        lambda: said(CONTEXT, 400),
        lambda: said(json.dumps({"error": {"message": "no", "type": "exceed_context_size_error"}}), 400),
    ],
    "500 with a text": [lambda: said("something new"), lambda: answer(b"", status=500)],
    "500 or 501 with a page": [
        lambda: answer(HTML, status=500),
        lambda: answer(HTML, status=501),
        lambda: answer({"message": "no"}, status=500),
    ],
    "502, 504, 505 to 599": [
        lambda status=status: answer(HTML, status=status) for status in (502, 504, 505, *range(520, 531), 599)
    ],
    "503, 429": [lambda: answer(HTML, status=503), lambda: answer(HTML, status=429)],
    "402, 410": [
        lambda: answer(HTML, status=402),
        lambda: said("model has been retired", 410),
        lambda: said("this model requires a subscription", 403),
        lambda: said("payment required", 402),
        lambda: said("you (me) have reached your weekly usage limit", 429),
    ],
    "a pull: `EOF`": [
        lambda text=text: said(text, request=PULL)
        for text in (
            "EOF",
            "stream error: stream ID 57; INTERNAL_ERROR; received from peer",
            "http2: client connection lost",
            "net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
            "context canceled",
        )
    ],
    "a pull: `max retries exceeded": [
        lambda: said("max retries exceeded: EOF", request=PULL),
        lambda: said("pull model manifest: 503: sorry", request=PULL),
    ],
    "a pull: `… no space left": [
        lambda: said("write /m/blobs/a-partial-0: no space left on device", request=PULL),
        lambda: said("pull model manifest: file does not exist", request=PULL),
    ],
}
#: Those that are read, and as what.
READ: dict[str, list[tuple[Callable[[], Any], Any]]] = {
    "`stop` with an empty text": [(lambda: answer({"response": "", **END}).text, "")],
    "half of a surrogate pair": [(lambda: answer(b'{"response": "\\ud83d", "done": true}').text, "\ufffd")],
    "arguments of a tool call as JSON text": [
        (lambda: called('{"a": 1}'), {"a": 1}),
        (lambda: called(""), {}),
        (lambda: called(None), {}),
    ],
    "a thought between": [(lambda: answer({"response": "<think>a</think>b", **END}).thinking, "a")],
}


def section(title: str) -> list[list[str]]:
    """The rows of the table in a section of the page."""
    text = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.parametrize(("what", "taken_for"), section("What an answer is taken for"), ids=lambda cell: cell[:50])
def test_an_answer_is_taken_for_what_the_page_says(what: str, taken_for: str) -> None:
    """Every row of the table is tried."""
    (tries,) = [found for begins, found in (ANSWERS | READ).items() if what.startswith(begins)]

    for each in tries:
        if isinstance(each, tuple):
            assert each[0]() == each[1]
            continue
        with pytest.raises(OllamaError) as raised:
            each()
        assert f"`{type(raised.value).__name__}`" == taken_for


def test_no_answer_is_tried_that_the_page_leaves_out() -> None:
    """Page and test speak of the same."""
    rows = [what for what, _ in section("What an answer is taken for")]

    assert len(rows) == len(ANSWERS | READ)


def test_the_tables_of_faults_are_those_that_are_tried() -> None:
    """`make reference` would change nothing."""
    text = PAGE.read_text()

    assert faults.page(text) == text
    assert len(faults.FAULTS) > 100


def test_the_faults_of_rows_are_those_of_the_batch() -> None:
    """The names that the batch gives to what no request has failed at."""
    code = "".join(path.read_text() for path in (PACKAGE / "batch").rglob("*.py"))
    given = set(re.findall(r'"class": "(\w+)"|REFUSED = "(\w+)"', code))

    assert {name for names in given for name in names if name} == {
        row[0].strip("`") for row in section("A row's own faults")
    }
