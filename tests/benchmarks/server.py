"""A server for measuring clients: the least that is Ollama, and faster than any client.

``python tests/benchmarks/server.py --slots 4 --seconds 0.2`` prints its URL, then answers until it is killed. Without
``--seconds`` it answers at once. Times of service are lognormal around the mean, drawn from the prompt, so that every
client gets the same ones; a request waits for one of the slots, first come first served, and is told what Ollama tells:
durations, the wait for the slot in none of them but ``total_duration``. An answer has ``--tokens`` pieces, which come
at once, or one after another with ``--gap`` seconds between them. A client that leaves gives its slot back. With
``--log FILE`` each answer is a line of that file: when its service began and ended, by the clock that all processes
share, and the prompt's checksum.
"""

import argparse
import asyncio
import json
import math
import random
import time
import zlib
from collections import deque
from pathlib import Path
from typing import TextIO

DIGEST = "0" * 64
#: Seconds for a request for vectors, and for each of its texts: an Ollama 0.24.0 with a very small model on a processor
#: took 3.4 ms for a text alone (4 requests in flight) and 0.8 ms for one of a pack of 64.
_REQUEST, _TEXT = 0.0027, 0.0008
_VECTOR = json.dumps([round(random.Random(place).uniform(-0.1, 0.1), 8) for place in range(768)]).encode()
_OTHERS = {
    b"/api/version": {"version": "0.33.0"},
    b"/api/tags": {"models": [{"name": "bench:latest", "model": "bench:latest", "digest": DIGEST, "size": 1}]},
    b"/api/ps": {"models": [{"name": "bench:latest", "model": "bench:latest", "size": 1, "size_vram": 1}]},
    b"/api/show": {"capabilities": ["completion", "embedding"], "model_info": {}, "parameters": ""},
}


_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


def _chunk(part: object) -> bytes:
    """Return a line of a stream, in a chunk of its own and as dense as Ollama writes it."""
    line = json.dumps(part, separators=(",", ":")).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


class Bench:
    """What all connections share."""

    def __init__(
        self, slots: int, seconds: float, sigma: float, tokens: int, gap: float, log: TextIO | None = None
    ) -> None:
        self._log = log
        self.tokens = tokens
        self.gap = gap
        self._free = slots
        self._seconds = seconds
        self._sigma = sigma
        self._queue: deque[asyncio.Future[None]] = deque()
        self._embedding = asyncio.Lock()
        self._served = 0.0
        self._first: float | None = None
        self._last = 0.0

    async def serve(self, prompt: str) -> tuple[float, float]:
        """Take a slot for as long as this prompt takes; return seconds of service and in all."""
        began = time.perf_counter()
        self._first = began if self._first is None else self._first
        if not self._seconds:
            return 0.0, 0.0
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._give_back()
                raise
        seconds = random.Random(prompt).lognormvariate(math.log(self._seconds) - self._sigma**2 / 2, self._sigma)
        started = time.perf_counter()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._give_back()
        ended = time.perf_counter()
        self._served += ended - started
        self._last = ended
        if self._log is not None:
            self._log.write(f"{started} {ended} {zlib.crc32(prompt.encode())}\n")
        return ended - started, ended - began

    def _give_back(self) -> None:
        """Give a slot to the next that waits."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def embed(self, texts: int) -> None:
        """Take as long as that many texts take, one request at a time."""
        async with self._embedding:
            await asyncio.sleep(_REQUEST + texts * _TEXT)

    def statistics(self) -> dict[str, float]:
        """Seconds of service, and from the first request to the last answer; when the first came. And begin anew."""
        found = {"served": self._served, "wall": self._last - (self._first or 0.0), "first": self._first or 0.0}
        self._served, self._first = 0.0, None
        return found


class Connection(asyncio.Protocol):
    """One connection, speaking just enough HTTP/1.1."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._buffer = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        path = head.split(b" ", 2)[1]
        if path in {b"/api/generate", b"/api/chat"}:
            task = asyncio.get_running_loop().create_task(self._generate(json.loads(rest[:length])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif path == b"/api/embed":
            task = asyncio.get_running_loop().create_task(self._embed(json.loads(rest[:length])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answer(self._bench.statistics() if path == b"/statistics" else _OTHERS[path])

    def _answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(data) + data)

    async def _embed(self, body: dict) -> None:
        texts = len(body.get("input", ()))
        if texts:
            await self._bench.embed(texts)
        vectors = b",".join([_VECTOR] * texts)
        data = b'{"model":"bench","embeddings":[%b],"total_duration":1,"prompt_eval_count":%d}' % (vectors, 5 * texts)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(data) + data)

    async def _generate(self, body: dict) -> None:
        prompt = body.get("prompt", "")
        if not prompt:
            self._answer({"model": body["model"], "done": True, "done_reason": "load"})
            return
        service, total = await self._bench.serve(prompt)
        created = "2026-11-22T00:00:00.000000000Z"
        tokens = self._bench.tokens
        last = {
            "model": body["model"],
            "created_at": created,
            "response": "",
            "done": True,
            "done_reason": "stop",
            "total_duration": int(total * 1e9) + 1,
            "load_duration": 1,
            "prompt_eval_count": 20,
            "prompt_eval_duration": int(service * 1e8) + 1,
            "eval_count": tokens,
            "eval_duration": int(service * 9e8) + 1,
        }
        if body.get("stream", True):
            piece = {"model": body["model"], "created_at": created, "response": " word", "done": False}
            # In a format the words are the text of an object.
            start, end = ('{"word": "', '"}') if body.get("format") else ("", "")
            start, piece, last = (
                _chunk(part) for part in (piece | {"response": start}, piece, last | {"response": end})
            )
            self._transport.write(_STREAM + (start if body.get("format") else b""))
            if self._bench.gap:
                for _ in range(tokens):
                    self._transport.write(piece)
                    await asyncio.sleep(self._bench.gap)
                self._transport.write(last + _END)
            else:
                self._transport.write(piece * tokens + last + _END)
        else:
            self._answer(last | {"response": " word" * tokens})


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    # Line by line, so that a killed server has told of all that it answered.
    log = given.log.open("a", buffering=1) if given.log else None
    bench = Bench(given.slots, given.seconds, given.sigma, given.tokens, given.gap, log)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(bench), "127.0.0.1", given.port, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
