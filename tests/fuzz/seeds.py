"""Where the search begins: recorded answers, and a few small files of each kind."""

import gzip
import json
import zlib
from pathlib import Path
from zlib import crc32

from ollama_provider.api.schemas import Options
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.lines import outcome_line, shared_fields
from tests.fuzz.targets import PASSWORD, PROMPT, REQUESTS, STATUSES

RECORDINGS = Path(__file__).resolve().parents[1] / "data" / "recordings"


def seeds(name: str) -> list[bytes]:
    """Return the first inputs of the target *name*."""
    return _SEEDS[name]()


def words() -> list[str]:
    """Return pieces of JSON that a search would hardly make by itself: names of fields, and values that are odd."""
    kinds = [*(request.reply for request in REQUESTS), Settings, Timeouts, Options]
    fields = {name for kind in kinds for name in kind.model_fields}
    names = sorted(
        fields
        | {
            "error",
            "object",
            "message",
            "type",
            "n_ctx",
            "role",
            "function",
            "arguments",
            "format",
            "round",
            "mode",
            "provenance",
            "index",
            "id",
            "status",
            "output",
            "class",
            "spans",
        }
    )
    odd = ["null", "[]", "{}", "true", '""', "1e400", "NaN", str(2**63), "-1", "\\ud83d", "[[[[[[[[", '{"a":{"a":']
    return [*(f'"{name}":' for name in names), *odd]


def _replies() -> list[bytes]:
    kinds = {request.path: number for number, request in enumerate(REQUESTS)}
    found = set()
    for file in sorted(RECORDINGS.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            exchange = json.loads(line)
            kind = kinds.get(exchange["request"]["path"])
            status = exchange.get("status")
            if kind is None or status not in STATUSES:
                continue
            objects = exchange.get("lines") or [exchange.get("body", {})]
            body = "\n".join(map(json.dumps, objects)).encode()[:2000]
            found.add(_reply(kind, status, body))
    odd = [
        {"error": f"cannot read {PROMPT!r}"},
        {"error": {"message": json.dumps({"error": PROMPT}), "type": "exceed_context_size_error", "n_ctx": 5}},
        {"error": f"Authorization: Bearer {PASSWORD}\x1b[31m"},
        {"object": "list", "data": []},
        {"error": "pull model manifest: max retries exceeded: write /x: no space left on device"},
    ]
    found |= {
        _reply(kind, status, json.dumps(body).encode()) for kind in (0, 2, 6) for status in (200, 500) for body in odd
    }
    found.add(
        _reply(0, 502, b"<html><title>Bad Gateway</title></html>", b"text/html", b"Wed, 21 Oct 2026 07:28:00 GMT")
    )
    found.add(_reply(0, 302, b"", b"", b"3", b"https://login.example.com/?token=1"))
    return sorted(found)


def _reply(kind: int, status: int, body: bytes, content_type: bytes = b"", *more: bytes) -> bytes:
    headers = b"\n".join([content_type or b"application/json", *more, *[b""] * (2 - len(more))])
    return bytes([kind, STATUSES.index(status), 255]) + headers + b"\n" + body


def _compressed() -> list[bytes]:
    text = b'{"response":"a","done":true}\n' * 20
    whole = gzip.compress(text, mtime=0)
    raw = zlib.compress(text)[2:-4]
    return [b"\x10" + data for data in (whole, whole + whole, whole[:30], zlib.compress(text), raw, text)]


def _parts() -> list[bytes]:
    shared = shared_fields({"model": "m", "digest": "0" * 64})
    lines = [
        outcome_line(outcome, shared)
        for outcome in (
            Outcome("0" * 32, "ok", output="a"),
            Outcome("1" * 32, "ok", output={"a": [1]}, request="2" * 32, reply="text"),
            Outcome("0" * 32, "failed", error={"class": "X", "text": "y"}, attempts=2),
        )
    ]
    plain = [line[: line.rindex(b',"crc32"')] for line in lines]
    assert all(line == b'%b,"crc32":"%08x"}\n' % (text, crc32(text)) for text, line in zip(plain, lines, strict=True))
    old = b"".join(text + b"}\n" for text in plain)
    new = b"".join(lines)
    return [b"\0" + old, b"\1" + new, b"\2" + new, b"\2" + new[:-20], b"\1" + new.replace(b"}\n{", b"}{"), b"\0" + new]


def _rows() -> list[bytes]:
    parts = [data[1:] for data in _parts()[:2]]
    found = {"key": "0" * 32, "index": 0, "id": "</td><script>alert(1)</script>", "status": "ok", "output": "a" * 600}
    failed = found | {
        "status": "failed",
        "output": None,
        "error": {"class": "'><img onerror=x>", "text": "b"},
        "reply": "\x1b[2J",
    }
    lines = "".join(
        json.dumps(each | {"index": n}) + "\n" for n, each in enumerate([found, failed, found | {"output": [1]}] * 2)
    )
    asked = [b"\n\n\n", b"2000:700\n\n\n", b"\nSCRIPT\n\n", b"\n\n'><img onerror=x>\n", b'0001-0001-000001:5\n"\n\n']
    return [bytes([kind]) + line + lines.encode() for kind in (0, 1, 4, 5) for line in asked] + [
        bytes([kind]) + line + part for kind in (2, 3, 6, 10, 11) for line in asked for part in parts
    ]


def _manifests() -> list[bytes]:
    good = {"format": 2, "round": 1, "mode": "all", "num_ctx": None, "settings": {}, "common": None, "provenance": None}
    more = {
        "model": "m", "digest": None, "server": "http://h", "server_version": "0.33.0", "options_hash": "0" * 16,
        "seed": 1, "num_ctx": 4096,
    }  # fmt: skip
    return [json.dumps(found).encode() for found in (good, good | {"provenance": more, "num_ctx": 2048})]


def _connections() -> list[bytes]:
    return [
        json.dumps(extra).encode()
        for extra in (
            {},
            {"model": "llama3.2", "options": {"temperature": 0.2, "stop": ["a"]}, "keep_alive": "5m"},
            {"headers": {"x-key": "k"}, "verify": "false", "pull_allow": "hf.co/ours/*, b"},
            {"options": '{"seed": 1}', "headers": "{}", "first_token_timeout": 5, "max_attempts": "3"},
            {"trust_env": "no", "auto_pull": 0, "client_cert": "/x.pem", "max_retry_seconds": 1.5, "modell": "m"},
        )
    ]


_SEEDS = {
    "reply_path": _replies,
    "compressed_answer": _compressed,
    "jsonl_rows": lambda: [
        b'\xef\xbb\xbf{"a": 1}\n\n"text"\r\n{"b": [NaN, 1e400]}\n[\n{"c": "\xff"}\nnull',
        b'{"a": "\\ud83d", "b": "\xe2\x80\xa8"}\n{"a": 123456789012345678901234567890}\n',
    ],
    "csv_rows": lambda: [
        b'a,b\n1,2\n"x\ny",3\n',
        b'\xef\xbb\xbf"a";"b"\n1;2\n', b'a,b\r\n1\r\n"x', b'a\n"b""c"\n\xff\n'],
    "part_files": _parts,
    "batch_manifest": _manifests,
    "page_rows": _rows,
    "connection": _connections,
    "host": lambda: [
        b"", b"gpu1", b"gpu1:11434, gpu2\n5678\nhttps", b"[::1]:80", b"https://a.example.com/base/", b"::",
        b"0.0.0.0:5678", b":5678", b"http://ada:pass@h", b"fe80::1%eth0", b"b\xc3\xbccher.example", b"ollama.com",
    ],
}  # fmt: skip
