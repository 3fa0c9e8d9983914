"""What people write today: N requests at a time behind a semaphore, answers into a list. Runs in .venv-peers.

    .venv-peers/bin/python tests/benchmarks/peers.py ollama|ollama-streams|aiohttp URL ROWS CONCURRENCY [WARM-UP ROWS]

Prints seconds on the clock and of the processor.
"""

import asyncio
import json
import sys
import time

import aiohttp
from ollama import AsyncClient
from rows import prompt


async def ask_with_ollama(url: str, rows: int, concurrency: int) -> int:
    client, slots = AsyncClient(url), asyncio.Semaphore(concurrency)

    async def ask(number: int) -> str:
        async with slots:
            return (await client.generate(model="bench", prompt=prompt(number), options={"seed": 1})).response

    return len(await asyncio.gather(*map(ask, range(rows))))


async def stream_with_ollama(url: str, rows: int, concurrency: int) -> int:
    client, slots = AsyncClient(url), asyncio.Semaphore(concurrency)

    async def ask(number: int) -> str:
        async with slots:
            parts = await client.generate(model="bench", prompt=prompt(number), options={"seed": 1}, stream=True)
            return "".join([part.response async for part in parts])

    return len(await asyncio.gather(*map(ask, range(rows))))


async def ask_with_aiohttp(url: str, rows: int, concurrency: int) -> int:
    slots = asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:

        async def ask(number: int) -> str:
            body = {"model": "bench", "prompt": prompt(number), "options": {"seed": 1}, "stream": False}
            async with slots, session.post(f"{url}/api/generate", json=body) as response:
                return json.loads(await response.read())["response"]

        return len(await asyncio.gather(*map(ask, range(rows))))


if __name__ == "__main__":
    which = {"ollama": ask_with_ollama, "ollama-streams": stream_with_ollama, "aiohttp": ask_with_aiohttp}[sys.argv[1]]
    asyncio.run(which(sys.argv[2], int((sys.argv[5:] or [0])[0]), 1))
    wall, processor = time.perf_counter(), time.process_time()
    asyncio.run(which(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    print(json.dumps({"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}))
