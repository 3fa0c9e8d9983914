"""Vectors: packs against single calls, decoding and writing against JSON, and what a pack costs in memory.

    python tests/benchmarks/embed.py [texts]

The server works on one text at a time, as Ollama does.
"""

import asyncio
import json
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path

import httpx
from common import serve, tell

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Embedding, run_batch
from ollama_provider.batch.requests.embedding import PackRequest
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.parquet import parquet_format
from ollama_provider.batch.store.lines import encode_vector

WIDTH, PACK = 768, 64


def batch(url: str, texts: int) -> float:
    """Embed that many texts; return seconds, the table included."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        spec = BatchSpec(
            model="bench",
            rows=({"text": f"text {number}"} for number in range(texts)),
            embedding=Embedding(),
            options=Options(num_ctx=512),
        )
        began = time.perf_counter()
        summary = run_batch(spec, Settings(base_url=url), folder)
        assert summary.ok == texts, summary
        return time.perf_counter() - began


async def single(url: str, texts: int) -> float:
    """Embed them one by one, four at a time, and keep nothing; return seconds."""
    gate = asyncio.Semaphore(4)
    async with httpx.AsyncClient(timeout=60) as client:

        async def one(number: int) -> None:
            async with gate:
                await client.post(f"{url}/api/embed", json={"model": "bench", "input": [f"text {number}"]})

        began = time.perf_counter()
        await asyncio.gather(*map(one, range(texts)))
        return time.perf_counter() - began


def replies(count: int) -> list[bytes]:
    """Return the answers to packs, *count* vectors in all."""
    vector = [round(((place * 7919) % 20011) / 100055 - 0.1, 8) for place in range(WIDTH)]
    body = json.dumps({"model": "m", "embeddings": [vector] * PACK, "prompt_eval_count": 5}, separators=(",", ":"))
    return [body.encode()] * (count // PACK)


def as_json(bodies: list[bytes], folder: Path) -> float:
    """Decode with `response.json()` and write JSON lines; return seconds."""
    began = time.process_time()
    with (folder / "vectors.jsonl").open("w") as lines:
        for body in bodies:
            for vector in httpx.Response(200, content=body).json()["embeddings"]:
                lines.write(json.dumps({"embedding": vector}) + "\n")
    return time.process_time() - began


class _Writing:
    def __init__(self, file: object) -> None:
        self.write = file.write  # type: ignore[attr-defined]


def as_table(bodies: list[bytes], folder: Path) -> float:
    """Decode as the batch does, through the form of its parts, into Parquet; return seconds."""
    began = time.process_time()
    order = RowOrder(with_fields=False)
    lines = [
        f'{{"key":"{0:032d}","status":"ok","output":"{encode_vector(vector)}","error":null}}\n'.encode()
        for body in bodies
        for vector in PackRequest.decode(body)["embeddings"]
    ]
    with (folder / "vectors.parquet").open("wb") as file:
        table = parquet_format(None, vectors=True).open(_Writing(file), order, iter(lines))  # type: ignore[arg-type]
        for first in range(0, len(lines), 1000):
            rows = [(line, first + place, b'"id":null') for place, line in enumerate(lines[first : first + 1000])]
            assert not table.write(rows)
        table.close()
    return time.process_time() - began


def main(texts: int) -> None:
    """Measure and print."""
    with serve() as url:
        batch(url, 200)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours = batch(url, texts)
        few = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        batch(url, 4 * texts)
        many = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        alone = asyncio.run(single(url, texts))
    tell(
        "embedding-packs",
        "embedding: texts/s, packs of a size it finds",
        f"{texts / ours:.0f}",
        f"single calls, 4 in flight {texts / alone:.0f} ({alone / ours:.1f}x)",
        ">= 3x",
        alone / ours,
    )
    bodies = replies(10_000)
    with tempfile.TemporaryDirectory() as folder:
        slow = min(as_json(bodies, Path(folder)) for _ in range(3))
        quick = min(as_table(bodies, Path(folder)) for _ in range(3))
    tell(
        "embedding-decoding",
        "embedding: 10,000 x 768 decoded and written, seconds",
        f"{quick:.2f}",
        f"response.json() and JSON lines {slow:.2f} ({slow / quick:.1f}x)",
        ">= 5x",
        slow / quick,
    )
    tell(
        "embedding-memory",
        f"embedding: memory for {texts} texts, MB",
        f"{(few - before) / 1024:.0f}",
        f"for {4 * texts} texts {(many - before) / 1024:.0f}",
        "the same",
        max(few - before, 1) / max(many - before, 1),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
