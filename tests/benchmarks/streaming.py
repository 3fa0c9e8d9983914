"""What a streamed token costs the client: `AsyncClient` and the official client, both joining the pieces to an answer.

    python tests/benchmarks/streaming.py [rows]

Counted in seconds of the client's processor, the two in turns. Answers that come at once show the work on bytes; those
that come token by token (16 in flight, 5 ms from one to the next) show what each wake-up costs beside it.
"""

import asyncio
import sys
import time

from common import peer, serve, tell
from rows import prompt

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.schemas import GenerateRequest, Options
from ollama_provider.api.settings import Settings

CONCURRENCY = 16


async def ask(url: str, rows: int) -> float:
    """Ask for the answers; return seconds of the processor."""
    async with AsyncClient(Settings(base_url=url, max_attempts=1), concurrency=CONCURRENCY) as client:

        async def one(number: int) -> str:
            request = GenerateRequest(model="bench", prompt=prompt(number), options=Options(seed=1))
            return (await client.send(request)).response

        await asyncio.gather(*map(one, range(CONCURRENCY)))
        began = time.process_time()
        answers = await asyncio.gather(*map(one, range(rows)))
        seconds = time.process_time() - began
    assert len(set(answers)) == 1
    return seconds


def measure(tokens: int, gap: float, rows: int, wanted: str) -> None:
    """Measure and print."""
    ours, theirs = 0.0, 0.0
    with serve(tokens=tokens, gap=gap) as url:
        for _ in range(3):
            ours = max(ours, rows / asyncio.run(ask(url, rows)))
            few = max(rows // 4, 2 * CONCURRENCY)
            theirs = max(theirs, few / peer("ollama-streams", url, few, CONCURRENCY, CONCURRENCY)["processor"])
    tell(
        f"streaming-{tokens}{'-one-by-one' if gap else ''}",
        f"streamed rows/s of one core, {tokens} tokens, {'one by one' if gap else 'at once'}",
        f"{ours:.0f}",
        f"ollama {theirs:.0f} ({ours / theirs:.1f}x)",
        wanted,
        ours / theirs,
    )


def main(rows: int) -> None:
    """Measure and print."""
    measure(40, 0.0, rows, ">= 5x")
    measure(300, 0.0, rows // 4, ">= 4x")
    measure(40, 0.005, rows // 8, "")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
