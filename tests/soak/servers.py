"""Three stand-ins that fail in every way, in a process of its own. The first line of output is the URLs, as JSON.

The first server is reached directly, so that an outage refuses connections; in front of the others is a relay that
breaks the HTTP of some connections. A line ``calm`` on the standard input ends all faults, its end the process.
"""

import asyncio
import json
import random
import sys
import threading
from typing import Any

from watch import Report

from ollama_provider.testing import Crash, Cut, Fail, Insert, Pace, Respond, Server, Stall, StandIn, Unfinished

BUSY = "server busy, please try again.  maximum pending requests exceeded"
FAULTS: tuple[Any, ...] = (
    Fail(BUSY, status=503),
    Fail("model requires more system memory (9.0 GiB) than is available (1.0 GiB)"),
    Crash(),
    Crash(after=0),
    Crash(after=3),
    Respond(502, "<html><h1>502 Bad Gateway</h1></html>"),
    Respond(429, "slow down", headers={"Retry-After": "1"}),
    Respond(200, "<html>Please log in</html>"),
    Respond(504, b""),
    Stall(),
    Stall(after=2),
    Cut(),
    Cut(after=2),
    Cut(after=1, reset=True),
    Unfinished(after=3),
    Insert(b"{broken\n", after=1),
    Insert(b"\xff\xfe\x00\n", after=2),
    Pace(load=0.5),
    Pace(first_token=2.0),
)
RAW_FAULTS = ("reset", "close", "garbage", "freeze", "drip", "no HTTP", "wrong length")
#: Of the connections through a relay, the share that breaks.
BROKEN = 0.03


class Relay:
    """Passes bytes between clients and a server, and breaks some connections after a random number of bytes."""

    def __init__(self, server: Server, chance: random.Random, report: Report) -> None:
        self._server = server
        self._chance = chance
        self._report = report
        self.calm = False

    async def start(self) -> str:
        """Listen; return the URL."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream = await asyncio.open_connection(self._server.host, self._server.port)
        except OSError:
            writer.transport.abort()
            return
        up = asyncio.create_task(self._pass_on(reader, upstream))
        try:
            await self._answer(upstream_reader, writer)
        except OSError:
            pass
        finally:
            up.cancel()
            upstream.transport.abort()
            writer.close()

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            pass
        # The client has left, and nothing reads the answer.
        writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection is kept for many requests, so the number of bytes decides which of them is hit.
        left = self._chance.randrange(8000) if self._chance.random() < BROKEN * 10 else 1 << 60
        while data := await reader.read(65536):
            if self.calm or len(data) <= left:
                writer.write(data)
                await writer.drain()
                left -= len(data)
                continue
            writer.write(data[:left])
            fault = self._chance.choice(RAW_FAULTS)
            self._report.counts[f"raw: {fault}"] += 1
            await self._break(fault, data[left:], writer)
            return

    @staticmethod
    async def _break(fault: str, rest: bytes, writer: asyncio.StreamWriter) -> None:
        match fault:
            case "reset":
                writer.transport.abort()
            case "garbage":
                writer.write(b"\xff\x00\x1b[31mgarbage\r\n\r\n")
            case "no HTTP":
                writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            case "wrong length":
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"a":')
            case "freeze":
                await asyncio.sleep(20)
            case "drip":
                for byte in rest[:40]:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.1)


def script_faults(servers: list[Server], chance: random.Random, report: Report, calm: threading.Event) -> None:
    """Script faults and stop servers at random moments, until it is to be calm."""
    while not calm.wait(chance.expovariate(1 / 2)):
        server = chance.choice(servers)
        if chance.random() < 0.08:
            report.counts["outage of a server"] += 1
            server.stop()
            calm.wait(chance.uniform(0.3, 5))
            server.start()
            continue
        fault = chance.choice(FAULTS)
        times = chance.choice((1, 1, 2, 4))
        report.counts[f"scripted: {type(fault).__name__}"] += times
        server.stand_in.script(fault, times=times)


async def main() -> None:
    """Serve until the standard input ends."""
    name, seed = sys.argv[1:]
    chance, report = random.Random(seed), Report(name)
    stand_ins = [StandIn(parallel=n, tokens_per_second=500, keep_requests=0) for n in (4, 2, 8)]
    servers = [Server(stand_in) for stand_in in stand_ins]
    for server in servers:
        server.start()
    relays = [Relay(server, chance, report) for server in servers[1:]]
    urls = [servers[0].url, *[await relay.start() for relay in relays]]
    calm = threading.Event()
    faults = threading.Thread(target=script_faults, args=(servers, chance, report, calm), daemon=True)
    faults.start()
    print(json.dumps(urls), flush=True)
    report.save_regularly()
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "calm":
            calm.set()
            await asyncio.to_thread(faults.join)
            for server, relay in zip(servers[1:], relays, strict=True):
                server.stand_in._script.clear()
                relay.calm = True
            servers[0].stand_in._script.clear()
            print("calm", flush=True)
    report.save()
    for server in servers:
        await asyncio.to_thread(server.close)


if __name__ == "__main__":
    asyncio.run(main())
