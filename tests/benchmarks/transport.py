"""How many requests a second one core can send: httpx's own pool, its aiohttp transport, and AsyncClient upon it.

    python tests/benchmarks/transport.py [requests]

The server is the smallest that answers a generate request, in a process of its own, so that the client is what is
measured. Seconds are those of the client's processor, which is what other work on the machine disturbs least.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import httpx
from common import tell
from httpx_aiohttp import AiohttpTransport

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.schemas import GenerateRequest
from ollama_provider.api.settings import Settings

IN_FLIGHT = 16
REQUEST = GenerateRequest(model="m", prompt="Why is the sky blue? " * 10)

_PARTS = [
    {"model": "m", "created_at": "2026-11-22T18:55:16.882630052Z", "response": text, "done": False}
    for text in ("Because", " it is.")
] + [
    {
        "model": "m",
        "created_at": "2026-11-22T18:55:16.88443234Z",
        "response": "",
        "done": True,
        "done_reason": "stop",
        "context": list(range(60)),
        "total_duration": 9_915_593,
        "prompt_eval_count": 60,
        "eval_count": 3,
        "eval_duration": 1_737_130,
    }
]
_LINES = [json.dumps(part).encode() + b"\n" for part in _PARTS]
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in _LINES)
    + b"0\r\n\r\n"
)


class Server(asyncio.Protocol):
    """Answers each request with the same three lines."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self.received) < end + 4 + length:
                return
            self.received = self.received[end + 4 + length :]
            self.transport.write(ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(send: Callable[[], Awaitable[object]], requests: int) -> float:
    """Return requests a second of the client's processor."""

    async def worker() -> None:
        for _ in range(requests // IN_FLIGHT):
            await send()

    await send()
    began = time.process_time()
    await asyncio.gather(*[worker() for _ in range(IN_FLIGHT)])
    return requests / (time.process_time() - began)


async def main(url: str, requests: int) -> None:
    body = REQUEST.body()
    limits = httpx.Limits(max_connections=IN_FLIGHT)

    async with httpx.AsyncClient(limits=limits, timeout=None) as client:  # noqa: S113  # nothing here can stall
        pool = await measure(lambda: client.post(f"{url}/api/generate", content=body), requests)

    transport = AiohttpTransport(limits=limits)
    async with httpx.AsyncClient(transport=transport, timeout=None) as client:  # noqa: S113  # nothing here can stall
        plugged = await measure(lambda: client.post(f"{url}/api/generate", content=body), requests)

        async def bare() -> None:
            message = httpx.Request("POST", f"{url}/api/generate", content=body)
            response = await transport.handle_async_request(message)
            await response.aread()
            await response.aclose()

        alone = await measure(bare, requests)

    async with AsyncClient(Settings(base_url=url), concurrency=IN_FLIGHT) as client:
        ours = await measure(lambda: client.send(REQUEST), requests)
    tell(
        "transport",
        "requests/s of one core: AsyncClient.send",
        f"{ours:.0f}",
        f"httpx {pool:.0f} ({ours / pool:.1f}x), on httpx-aiohttp {plugged:.0f}, its transport alone {alone:.0f}",
        ">= 2x",
        ours / pool,
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        with subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True) as process:
            try:
                port = process.stdout.readline().strip()
                asyncio.run(main(f"http://127.0.0.1:{port}", int(sys.argv[1]) if sys.argv[1:] else 4000))
            finally:
                process.kill()
