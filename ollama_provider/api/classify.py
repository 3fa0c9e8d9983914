"""The one table from failures to errors: what httpx raises, what a status means, what a text of the server means.

Texts are matched in lower case with blanks collapsed; they are those of Ollama 0.1 to 0.33. A status alone says little:
a misspelt option is a 500, and the crash of an embedding model's process is a 400.
"""

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.retry import read_retry_after

#: How much of a server's own text an error quotes: it may echo parts of the request.
LONGEST_QUOTE = 300

_Kind = type[OllamaError]

# In this order: a text about memory often also says "error loading model", and a crash may name a lasting cause.
_TEXTS: tuple[tuple[_Kind, tuple[str, ...]], ...] = (
    (
        errors.OutOfMemoryError,
        (
            r"out of memory|cudamalloc failed|hipmalloc failed|failed to allocate|allocation failed",
            r"not enough memory|insufficient memory|out of device memory|unable to allocate",
            r"requires more system memory|unable to load full model on gpu|requires .* but only .* (are|is) available",
        ),
    ),
    # Permanent.
    (errors.ModelNotFoundError, (r"""^model ['"].*['"] not found""",)),
    (
        errors.ContextLengthError,
        (
            r"exceeds the context length|exceeds maximum context length|exceeds the available context size",
            r"exceed_context_size_error|prompt is longer than the context length",
        ),
    ),
    (errors.BadRequestError, (r"embedding contains nan or inf|unsupported value: nan",)),
    (errors.UnsupportedError, (r"does not support|is not supported for this model",)),
    (errors.QuotaError, (r"usage limit",)),
    (errors.AuthenticationError, (r"ollama cloud is disabled|^unauthorized",)),
    (
        errors.BadRequestError,
        (
            r"""invalid model name|model is required|missing request body|json: cannot unmarshal|illegal base64""",
            r"""option ".+" must be|invalid format:|invalid json schema in format|format must be|invalid input type""",
            r"missing unit in duration|unknown unit|invalid duration|invalid think value|think must be",
            r"top_logprobs must be|this server cannot run this remote model|use either :local or :cloud",
            r"^template: |^invalid character",
            # A request that ended too early; after a crash the same words stand behind others.
            r"^unexpected eof$",
        ),
    ),
    (
        errors.BrokenModelError,
        (
            r"unknown model architecture|error loading model|unable to load model|invalid file magic|exceeds file size",
            r"unsupported model|unsupported architecture|unsupported .*(format|quantization|version)",
            r"compatible with your version of ollama|llama-server binary not found|requires mlx support",
            r"no such file or directory",
        ),
    ),
    # Transient.
    (
        errors.OverloadedError,
        (
            r"server busy, please try again|timed out waiting for a concurrent request slot",
            r"llm busy - no slots available|no slots available after|llm server loading model|unexpected server status",
        ),
    ),
    (
        errors.RunnerError,
        (
            r"(llama runner|llama-server) process has terminated|process no longer running",
            r"model runner has unexpectedly stopped|error was encountered while running the model",
            r"""post predict: post "http://127\.0\.0\.1:""",
            r"""do embedding request: post "http://127\.0\.0\.1:.*(eof|connection refused|connection reset)""",
            r"timed out waiting for (llama runner|llama-server) to start|timeout waiting for mlx runner",
            r"server not responding|health resp:",
        ),
    ),
    (
        errors.GatewayError,
        (
            r"server sent goaway|i/o timeout|tls handshake timeout|context deadline exceeded|no such host|dial tcp",
            r"unexpected eof|connection reset by peer|broken pipe|forcibly closed|wsarecv",
        ),
    ),
)

# What a pull says, before the table above is asked: it speaks of the registry, not of this server.
_PULL_TEXTS: tuple[tuple[_Kind, tuple[str, ...]], ...] = (
    (
        errors.PullFailedError,
        (
            r"file does not exist|pull model manifest: 412:|unauthorized: access denied|does not match original host",
            r"no space left on device|requires mlx support|x509:|permission denied|read-only file system",
        ),
    ),
    (
        errors.TransientPullError,
        (
            r"max retries exceeded|file must be downloaded again|pull model manifest: (5\d\d|429|408)",
            r"dial tcp|no such host|i/o timeout|connection refused|connection reset|proxyconnect|unexpected eof|: eof$",
            r"tls handshake timeout|context deadline exceeded|server sent goaway|broken pipe|server misbehaving",
        ),
    ),
    (errors.PullFailedError, (r"^pull model manifest:",)),
)


def _compile(
    table: tuple[tuple[_Kind, tuple[str, ...]], ...],
) -> tuple[tuple[_Kind, re.Pattern[str]], ...]:
    return tuple((kind, re.compile("|".join(patterns))) for kind, patterns in table)


_BY_TEXT = _compile(_TEXTS)
_BY_PULL_TEXT = _compile(_PULL_TEXTS)

_BY_STATUS: dict[int, _Kind] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    403: errors.AuthenticationError,
    404: errors.NotOllamaError,
    405: errors.EndpointNotFoundError,
    407: errors.AuthenticationError,
    408: errors.GatewayError,
    413: errors.BadRequestError,
    429: errors.OverloadedError,
    500: errors.UnknownServerError,
    501: errors.UnsupportedError,
    502: errors.GatewayError,
    503: errors.OverloadedError,
    504: errors.GatewayError,
}

_PULL_PATH = "/api/pull"


def by_text(text: str, path: str) -> _Kind | None:
    """Return the error that a text of the server means at this path; None for an unknown text."""
    plain = " ".join(text.lower().split())
    tables = (_BY_PULL_TEXT, _BY_TEXT) if path == _PULL_PATH or "pull model manifest:" in plain else (_BY_TEXT,)
    return next((kind for table in tables for kind, pattern in table if pattern.search(plain)), None)


def read_error(value: Any) -> str:
    """Return the text of an ``error`` field: a string, an object, JSON in a string, or nothing at all."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                return read_error(json.loads(value)) or value
            except ValueError:
                return value
        return value
    if isinstance(value, dict):
        inner = value.get("error", value.get("message"))
        kind = value.get("type")
        text = read_error(inner) if inner is not None else ""
        # The type is what tells a context overflow from other runner errors (since 0.30).
        return f"{text} ({kind})" if text and isinstance(kind, str) else text
    return ""


def quote(text: str) -> str:
    """Shorten a server's text for an error, and take out links that carry keys (``signin_url``)."""
    plain = re.sub(r"https?://\S*\?\S*", "(link)", " ".join(text.split()))
    return plain if len(plain) <= LONGEST_QUOTE else f"{plain[:LONGEST_QUOTE]}…"


def line_error(value: Any, *, path: str, host: str, model: str | None) -> OllamaError:
    """Return the error that an object with an ``error`` field means, inside an answer with status 200."""
    text = read_error(value)
    if path == _PULL_PATH:
        return (by_text(text, path) or errors.PullFailedError)(_say("pull failed", text), host=host, model=model)
    return (by_text(text, path) or errors.UnknownServerError)(_say("failed midway", text), host=host, model=model)


def _say(what: str, text: str) -> str:
    return f"{what}: {quote(text)}" if text.strip() else f"{what}, and the server does not say why"


def status_error(
    status: int, headers: Mapping[str, str], body: bytes, *, path: str, host: str, model: str | None, now: datetime
) -> OllamaError:
    """Return the error that an answer with a status outside of 2xx means.

    Args:
        status: the HTTP status.
        headers: of the answer, found by lower-case names.
        body: of the answer, or as much of it as was read.
        path: of the request.
        host: base URL, for the error's text.
        model: asked for, for the error's text.
        now: the time (with a zone), for ``Retry-After`` as a date.
    """
    kind, what, advice = _read_status(status, headers, body, path)
    return kind(
        what,
        host=host,
        model=model,
        status=status,
        retry_after=read_retry_after(headers.get("retry-after"), now),
        advice=advice,
    )


def _read_status(status: int, headers: Mapping[str, str], body: bytes, path: str) -> tuple[_Kind, str, str | None]:
    """Return class, text and, where the class's own is not the best, advice."""
    if 300 <= status < 400:
        return errors.NotOllamaError, f"{path} answers {status}, a redirect{_target(headers)}", None
    text = _error_text(body)
    if text is not None:
        return _read_text(status, text, path)
    if status == 404 and body.strip() == b"404 page not found":
        return errors.EndpointNotFoundError, f"there is no {path}", None
    if status == 404 and path.startswith("/api/blobs/"):
        return errors.BlobNotFoundError, "the server does not have this blob", None
    if status == 403 and not body:
        advice = (
            "Ollama bound to loopback takes local names only in the Host header: let the proxy set it "
            "(Host: localhost:11434), or set OLLAMA_HOST=0.0.0.0 on the server."
        )
        return errors.AuthenticationError, f"{path} answers 403 without a word", advice
    return _by_status(status), f"{path} answers {status}{_describe(headers, body)}", _STATUS_ADVICE.get(status)


_STATUS_ADVICE = {413: "A proxy bounds the size of requests: send less at a time, or raise its limit."}


def _read_text(status: int, text: str, path: str) -> tuple[_Kind, str, str | None]:
    kind = by_text(text, path)
    if kind is None and path == _PULL_PATH and status == 500:
        kind = errors.PullFailedError
    advice = None
    if kind is errors.AuthenticationError:
        # Ollama itself knows no credentials: it is the server's account at ollama.com that is refused.
        advice = (
            "The server may use no cloud models."
            if "disabled" in text
            else "Run 'ollama signin' on the server, or check login and password (or the API key) of the connection."
        )
    return kind or _by_status(status), _say(f"{path} answers {status}", text), advice


def _by_status(status: int) -> _Kind:
    return _BY_STATUS.get(status) or (errors.BadRequestError if status < 500 else errors.UnknownServerError)


def _error_text(body: bytes) -> str | None:
    """Return the text of a JSON body with an ``error``; None for any other body."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return read_error(value["error"]) if isinstance(value, dict) and "error" in value else None


def _target(headers: Mapping[str, str]) -> str:
    """Say where a redirect leads: the host alone, for the rest may hold a session or a token."""
    try:
        target = urlsplit(headers.get("location", "")).hostname
    except ValueError:
        return " to what is no URL"
    return f" to {target}" if target else ""


def _describe(headers: Mapping[str, str], body: bytes) -> str:
    """Say what came instead of Ollama's JSON. Only a page's title is quoted: the rest might echo the request."""
    title = re.search(rb"<title[^>]*>\s*(.{1,80}?)\s*</title>", body, re.IGNORECASE | re.DOTALL)
    if title:
        return f" with a page titled {' '.join(title.group(1).decode(errors='replace').split())!r}"
    kind = headers.get("content-type", "").partition(";")[0].strip()
    if not body.strip():
        return " without a body"
    return f" with {kind[:50]}" if kind else ""


def transport_error(error: Exception, *, answered: bool, host: str, model: str | None) -> OllamaError:
    """Return the error that a failure of the network means.

    Args:
        error: what was raised by httpx (or below it).
        answered: the answer had begun.
        host: base URL, for the error's text.
        model: asked for, for the error's text.
    """
    kind, what = _read_failure(error, answered=answered)
    return kind(what, host=host, model=model)


_BY_CAUSE: tuple[tuple[tuple[type[BaseException], ...], _Kind, str], ...] = (
    ((ssl.SSLError, ssl.CertificateError), errors.TLSError, "TLS failed: {}"),
    ((socket.gaierror,), errors.UnreachableError, "there is no such host: {}"),
    ((ConnectionRefusedError,), errors.UnreachableError, "connection refused"),
    ((httpx.ProxyError,), errors.UnreachableError, "the proxy that the environment names failed: {}"),
)


def _read_failure(error: Exception, *, answered: bool) -> tuple[_Kind, str]:
    causes = list(_causes(error))
    for kinds, kind, what in _BY_CAUSE:
        found = [cause for cause in causes if isinstance(cause, kinds)]
        if found:
            return kind, what.format(_reason(found[-1]))
    if answered:
        return errors.IncompleteReplyError, "the connection broke in the middle of the answer"
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return errors.NotOllamaError, "what answers does not speak HTTP"
    if isinstance(error, httpx.ConnectTimeout):
        return errors.ConnectTimeoutError, "no connection within connect_timeout"
    if isinstance(error, httpx.ConnectError):
        return errors.UnreachableError, f"no connection: {_reason(causes[-1])}"
    return errors.ConnectionBrokenError, "the connection broke before an answer"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk from an error down to what caused it: httpx wraps what a socket raised, more than once.

    Its core keeps the inner one as its argument and cuts the ``__cause__``. The ``__context__`` is of no use: at its
    end stands whatever the caller happens to be handling.
    """
    current: BaseException | None = error
    while current is not None:
        yield current
        inner = current.args[0] if current.args else None
        current = current.__cause__ or (inner if isinstance(inner, BaseException) else None)


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return quote(error.verify_message or str(error))
    if isinstance(error, ssl.SSLError) and getattr(error, "reason", None):
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return quote(str(error)) or type(error).__name__
