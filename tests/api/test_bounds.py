"""No answer is waited for without end, and none is read without end."""

import gc
import gzip
import json
import socket
import time
import zlib

import httpx
import pytest

from ollama_provider.api import errors, timeouts
from ollama_provider.api.decompression import PIECE, Decompressor
from ollama_provider.api.protocol import Decoder
from ollama_provider.api.schemas import EmbedRequest, GenerateRequest, PullRequest, TagsRequest, VersionRequest
from tests.sockets import listening

GENERATE = GenerateRequest(model="m", prompt="hi")
NDJSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
ANSWER = b'{"model":"m","response":"hi","done":false}\n{"model":"m","response":"","done":true,"done_reason":"stop"}\n'


class BriefVersion(VersionRequest):
    """Needs an answer soon."""

    read_timeout = 0.1


class BriefGenerate(GenerateRequest):
    """Takes little."""

    max_bytes = 1000


def endless(head: bytes, again: bytes, every: float = 0.0):
    """A server whose answer goes on until the client hangs up."""

    def serve_one(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        if not again:
            connection.recv(1)  # silence, until the client hangs up
            return
        while True:
            connection.sendall(again)
            time.sleep(every)

    return listening(serve_one)


# Bytes


@pytest.mark.parametrize("again", [b"a" * 65536, b"[" * 65536, b"{}," * 20000, b" " * 65536, b"\n" * 65536])
@pytest.mark.parametrize("request_", [VersionRequest(), TagsRequest()], ids=lambda request: request.path)
def test_an_endless_body_is_broken_off(on, request_, again):
    """A program that answers with megabytes to the question for its version is not Ollama."""
    with endless(JSON, again) as url, pytest.raises(errors.NotOllamaError, match="longer than 8 MiB"):
        on.send(request_, base_url=url, max_attempts=1)


def test_an_endless_line_is_broken_off(on):
    """Of a stream; the answer is at fault, and no other attempt is made."""
    with endless(NDJSON, b"a" * 2**20) as url, pytest.raises(errors.RejectedReplyError, match=r"a line .* 32 MiB"):
        on.send(GENERATE, base_url=url)


def test_an_endless_stream_is_broken_off(on):
    """However good its objects are."""
    line = ANSWER.splitlines(keepends=True)[0]
    with endless(NDJSON, line) as url, pytest.raises(errors.RejectedReplyError, match="the answer is longer"):
        on.send(BriefGenerate(model="m", prompt="hi"), base_url=url)


def test_an_endless_refusal_is_cut_and_told(on):
    """Its beginning says enough."""
    head = b"HTTP/1.1 503 Busy\r\nContent-Type: text/html\r\n\r\n<title>Busy</title>"
    with endless(head, b"a" * 65536) as url, pytest.raises(errors.OllamaError, match="'Busy'"):
        on.send(GENERATE, base_url=url, max_attempts=1)


def test_the_vectors_of_many_texts_may_take_more_than_those_of_one():
    """The bound goes by what was asked for."""
    one, many = EmbedRequest(model="m", input="a"), EmbedRequest(model="m", input=["a"] * 512)

    assert one.max_bytes < 2 * 2**20
    assert many.max_bytes > 256 * 2**20


def test_an_answer_that_failed_does_not_stay_in_memory(on):
    """Not even until the garbage collector runs, though attempts were repeated."""

    def answers() -> int:
        return sum(type(found) is Decoder for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        with endless(JSON, b"a" * 65536) as url, pytest.raises(errors.NotOllamaError) as raised:
            on.send(VersionRequest(), base_url=url)

        assert raised.traceback
        assert answers() == 0
    finally:
        gc.enable()


# Time


@pytest.mark.parametrize("again", [b" ", b"\n", b"a"])
def test_an_answer_that_comes_drop_by_drop_ends(on, again):
    """Each byte is soon enough; all of them together are not."""
    with endless(JSON, again, every=0.02) as url, pytest.raises(errors.ResponseTimeoutError, match="not complete"):
        on.send(BriefVersion(), base_url=url, max_attempts=1)


@pytest.mark.parametrize(("request_", "head"), [(GENERATE, NDJSON), (EmbedRequest(model="m", input="a"), JSON)])
def test_an_inference_that_comes_drop_by_drop_ends(on, request_, head):
    """Bytes without an object in them are no progress."""
    with endless(head, b" ", every=0.02) as url, pytest.raises(errors.IdleTimeoutError, match="drop by drop"):
        on.send(request_, base_url=url, max_attempts=1, timeouts={"idle": 0.3})


@pytest.mark.parametrize(
    ("request_", "line"),
    [(PullRequest(model="m"), b'{"status":"success"}\n'), (GENERATE, ANSWER)],
    ids=["pull", "generate"],
)
@pytest.mark.parametrize("again", [b"", b"\n", b" "], ids=["silence", "blank lines", "blanks"])
def test_what_is_finished_is_not_held_back(on, monkeypatch, request_, line, again):
    """The last object has come; the end of the stream is waited for a moment, and not an hour."""
    monkeypatch.setattr(timeouts, "END_TIMEOUT", 0.1)
    with endless(NDJSON + line, again, every=0.02) as url:
        (reply,) = on.send(request_, base_url=url)

    assert reply.done


# Compressed answers


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


PACKED = {
    "gzip": gzip.compress(ANSWER),
    " GZIP ": gzip.compress(ANSWER),
    "x-gzip": gzip.compress(ANSWER[:50]) + gzip.compress(ANSWER[50:]),
    "deflate": zlib.compress(ANSWER),
    "Deflate": raw_deflate(ANSWER),
    "identity": ANSWER,
}


@pytest.mark.parametrize("encoding", PACKED)
@pytest.mark.parametrize("step", [1, 7, 10**6], ids=["byte by byte", "in pieces", "at once"])
def test_a_compressed_answer_is_read(on, encoding, step):
    """It was not asked for; some proxies compress all the same."""
    packed = PACKED[encoding]

    def serve_one(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n" % encoding.encode())
        for start in range(0, len(packed), step):
            connection.sendall(packed[start : start + step])

    with listening(serve_one) as url:
        (reply,) = on.send(GENERATE, base_url=url)

    assert reply.text == "hi"


def compressed(encoding: str, body: bytes, status: int = 200):
    return lambda _: httpx.Response(
        status,
        headers={"content-type": "application/json", "content-encoding": encoding},
        stream=httpx.ByteStream(body),
    )


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "my-own"])
def test_another_compression_is_named(on, encoding):
    """It is no fault of the JSON."""
    with pytest.raises(errors.NotOllamaError, match=encoding) as raised:
        on.send(GENERATE, answering=compressed(encoding, b"\x00\x01"), base_url="http://h")

    assert "proxy" in raised.value.advice


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_refusal_is_told_by_its_status(on, encoding):
    """Readable or not."""
    body = gzip.compress(b'{"error":"model \'m\' not found"}')
    with pytest.raises(errors.OllamaError) as raised:
        on.send(VersionRequest(), answering=compressed(encoding, body, 404), base_url="http://h")

    assert raised.value.status == 404
    assert type(raised.value) is (errors.ModelNotFoundError if encoding == "gzip" else errors.NotOllamaError)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(ANSWER)[:-30], id="cut"),
        pytest.param(b"\x1f\x8bgarbage", id="damaged"),
        pytest.param(ANSWER, id="not compressed"),
        pytest.param(gzip.compress(b"")[:12], id="cut before the first byte"),
    ],
)
def test_a_broken_compression_is_worth_another_attempt(on, body):
    """Cut, damaged, or none at all."""
    with pytest.raises(errors.IncompleteReplyError):
        on.send(GENERATE, answering=compressed("gzip", body), base_url="http://h", max_attempts=1)


def test_a_small_answer_that_unpacks_to_a_huge_one_is_broken_off(on):
    """The bounds count what is unpacked."""
    bomb = gzip.compress(b" " * (64 * 2**20))

    with pytest.raises(errors.NotOllamaError, match="longer than 8 MiB"):
        on.send(VersionRequest(), answering=compressed("gzip", bomb), base_url="http://h")


def test_what_is_unpacked_comes_in_pieces():
    """So that no more of it is in memory at once."""
    packed = gzip.compress(json.dumps(list(range(10**6))).encode())

    pieces = list(Decompressor().feed(packed))

    assert json.loads(b"".join(pieces)) == list(range(10**6))
    assert max(map(len, pieces)) <= PIECE
