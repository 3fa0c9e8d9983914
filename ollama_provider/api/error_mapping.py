"""The mapping of failures to error classes: exceptions of httpx, statuses, and the server's error texts.

An error text is matched at its *beginning*, together with the status. The texts are those of Ollama 0.1 to 0.33, in
lower case with blanks collapsed. What follows the beginning may be a quotation: when a model's process dies, the error
ends with the last lines of that process's log, which are about other requests. The exception is a failed load, where
the rest of the line is the cause, and no other request can be in the log.

A status alone says little: a misspelt option is a 500, and the crash of an embedding model's process is a 400. But a
5xx without Ollama's JSON does not come from Ollama: a gateway answers in its place.
"""

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.redaction import quote
from ollama_provider.api.retry import read_retry_after
from ollama_provider.api.strict_json import read_json

_Kind = type[OllamaError]
_Table = tuple[tuple[_Kind, tuple[str, ...]], ...]

#: The model's process died during requests. What follows is the log of that process.
_CRASH = re.compile(
    r"an (unknown )?error was encountered while running the model"
    r"|(error[\w ]{0,40}: )?\S+( \S+)? process no longer running"
    r"|model runner has unexpectedly stopped|error reading llm (response|stream)"
)
#: A failed load. What follows on the same line is the cause.
_FAILED_LOAD = re.compile(
    r"(?P<ended>(error[\w ]{0,40}: )?\S+( \S+)? process has terminated)"
    r"|(\w+: )?error loading model|failed to load model|unable to load model"
)
_OUT_OF_MEMORY = re.compile(
    r"out of (device )?memory|(cuda|hip)malloc failed|failed to allocate|allocation failed"
    r"|not enough memory|insufficient memory|unable to allocate"
    r"|requires more system memory|unable to load full model on gpu|requires .* but only .* (are|is) available"
)
_BROKEN = re.compile(
    r"error loading model|unknown model architecture|unable to load model|invalid file magic|exceeds file size"
    r"|unsupported |missing tensor|compatible with your version of ollama|no such file or directory"
)
#: Characters of a text that are examined. The log behind it may be long.
_READ = 2000
#: A text about memory names the device or the function within so many characters.
_MEMORY_WITHIN = 120

# Go's network errors: between the server and its registry, ollama.com, or whatever it forwards requests to.
_NETWORK = (
    r"dial tcp|(read|write) (tcp|udp)|lookup \S+|proxyconnect|unexpected eof|(\S+: )?eof$|i/o timeout|broken pipe"
    r"|connection (refused|reset)|server misbehaving|no such host|context (deadline exceeded|canceled)|wsarecv"
    r"|net/http: (tls handshake timeout|request canceled|timeout awaiting|http/1\.x transport connection broken)"
    r"|tls handshake timeout|http2: (server sent goaway|client connection lost|client connection force closed)"
    r"|stream error: |server sent goaway|forcibly closed|an existing connection was forcibly closed"
)
_TOKENS, _THE = r"( \(\d+ tokens\))?", r"(the |maximum )?(available )?"
_REQUESTED = r"((get|post|put|head|patch|delete) \S+: )?"

_TEXTS: _Table = (
    (
        errors.ModelNotFoundError,
        (
            r"""model ['"].*['"] not found""",
            r"(open|stat) .*[/\\]manifests[/\\].*: (no such file|the system cannot find)",
        ),
    ),
    (
        errors.ContextLengthError,
        (
            rf"(the )?(request|input|prompt)( length)?{_TOKENS} (exceeds|is longer than) {_THE}context (length|size)",
            rf"input{_TOKENS} is too (large|long) to process",
        ),
    ),
    (
        errors.UnsupportedError,
        (
            r"""("[^"]*"|\S+|this (model|server)|multimodal data provided, but model) does not support """,
            r"think value \S+ is not supported for this model",
        ),
    ),
    (
        errors.QuotaError,
        (
            r"you .{0,80}have reached your .{0,40}usage limit|((session|hourly|daily|weekly|monthly) )?usage limit",
            r"(this|the) model requires a subscription|\S+ requires a subscription|payment required",
            r"\S+ is not available on your (current )?plan",
        ),
    ),
    (errors.AuthenticationError, (r"ollama cloud is disabled|unauthorized",)),
    (
        errors.BadRequestError,
        (
            r"invalid model name|model is required|missing request body|json: cannot unmarshal|illegal base64",
            r"(failed to encode response: )?json: unsupported value|embedding contains nan or inf",
            r"""option ".+" must be|invalid format:|invalid json schema in format|format must be|invalid input type""",
            r"time: (missing|unknown) unit|time: invalid duration|invalid duration|missing unit in duration",
            r"invalid think value|think must be|top_logprobs must be",
            r"(failed to process inputs: )?(image: unknown format|invalid image|failed to load image)",
            r"this server cannot run this remote model|use either :local or :cloud|template: |invalid character",
            # What `create` does not make a model of.
            r"template error: |supplied file was not in gguf format|unknown type$|only one adapter is",
            r"(unsupported )?quantization (type|is only)|invalid digest format|neither 'from' or",
            r"file path must be|insecure protocol http",
        ),
    ),
    (
        errors.BrokenModelError,
        (
            r"unknown model architecture|invalid file magic|tensor .* exceeds file size|llama-server binary not found",
            r"unsupported (model|architecture)|unsupported .{0,60}(format|quantization|version)",
            r"(this )?model .{0,60}compatible with your version of ollama|.{0,60}requires mlx support",
            r"(open|stat) .*: (no such file or directory|the system cannot find)",
        ),
    ),
    (
        errors.OverloadedError,
        (
            r"server busy, please try again|timed out waiting for a concurrent request slot|server overloaded",
            r"llm busy - no slots available|no slots available after|llm server loading model|unexpected server status",
        ),
    ),
    (
        errors.RunnerError,
        (
            r"""([\w ]+: )?post "?http://(127\.0\.0\.1|localhost):""",
            r"timed out waiting for (llama runner|llama-server) to start|timeout waiting for mlx runner",
            r"server not responding|health resp:|model failed to load",
            r"(cuda|hip|rocm) error(?!.{0,40}out of memory)|ggml_assert",
        ),
    ),
    (errors.GatewayError, (_REQUESTED + f"({_NETWORK})",)),
    (errors.NotOllamaError, (r"unexpected endpoint or method",)),
)

# Errors of a pull: they are about the registry, not about this server. Any other text is a permanent failure.
_PULL_TEXTS: _Table = (
    (errors.BadRequestError, (r"invalid model name|model is required|missing request body|json: cannot unmarshal",)),
    (
        errors.TransientPullError,
        (
            _REQUESTED + f"({_NETWORK})",
            r"(5\d\d|429|408):|digest mismatch, file must be downloaded again|part \d+ attempt \d+ failed",
        ),
    ),
    (errors.PullFailedError, (r".*requires mlx support",)),
)
_MANIFEST = "pull model manifest: "
_TRIED = re.compile(r"max retries exceeded(: )?")
#: Errors of the server's own disk or certificates are permanent.
_LASTING = re.compile(_REQUESTED + r"(x509|tls: failed to verify|(write|open|mkdir|create|sync|rename|copy|close) )")


def _compile(table: _Table) -> tuple[tuple[_Kind, re.Pattern[str]], ...]:
    return tuple((kind, re.compile("|".join(f"({pattern})" for pattern in patterns))) for kind, patterns in table)


_BY_TEXT = _compile(_TEXTS)
_BY_PULL_TEXT = _compile(_PULL_TEXTS)

#: Error types of llama-server, which Ollama forwards since 0.30.
_BY_TYPE: dict[str, _Kind] = {
    "exceed_context_size_error": errors.ContextLengthError,
    "not_supported_error": errors.UnsupportedError,
    "unavailable_error": errors.OverloadedError,
}

_BY_STATUS: dict[int, _Kind] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.QuotaError,
    403: errors.AuthenticationError,
    404: errors.NotOllamaError,
    405: errors.EndpointNotFoundError,
    407: errors.AuthenticationError,
    408: errors.GatewayError,
    410: errors.QuotaError,
    413: errors.BadRequestError,
    425: errors.GatewayError,
    429: errors.OverloadedError,
    499: errors.GatewayError,
    500: errors.UnknownServerError,
    501: errors.UnsupportedError,
    503: errors.OverloadedError,
}

_ORIGIN = (
    "A proxy (Cloudflare) answers in the server's place and does not reach it: is the server running, and its tunnel?"
)
_STATUS_ADVICE = {
    402: "The account at ollama.com has to be paid for this: see its plan, or use another model.",
    410: "The model was retired there: use another one.",
    413: "A proxy bounds the size of requests: send less at a time, or raise its limit.",
    499: "A proxy gave up waiting for the answer: raise its read timeout, or send fewer requests at a time.",
    524: (
        "A proxy (Cloudflare) gives up after 100 s without a byte, and none comes before the first token: load the "
        "model before, send fewer requests at a time, or connect past the proxy."
    ),
    **dict.fromkeys((520, 521, 522, 523, 530), _ORIGIN),
    **dict.fromkeys(
        (525, 526), "A proxy (Cloudflare) does not trust the certificate of the server behind it, or gets none."
    ),
}

#: What servers with TLS answer to plain HTTP: those in Go, nginx, Apache.
_WANTS_TLS = re.compile(
    rb"HTTP request to an HTTPS server|plain HTTP request was sent to HTTPS port|plain HTTP to an SSL-enabled server"
)
#: What nginx answers without a certificate of the client, or with a wrong one.
_WANTS_CERTIFICATE = re.compile(rb"No required SSL certificate was sent|The SSL certificate error")
_CERTIFICATE_ADVICE = "Check 'client_cert' of the connection: a PEM file with the certificate and its key."

_PULL_PATH = "/api/pull"


@dataclass(frozen=True)
class ErrorField:
    """The contents of an ``error`` field.

    Attributes:
        text: in words; may be empty.
        kind: its ``type``, where it was an object.
        prompt_tokens, context: the numbers of a prompt over the context (llama-server, since 0.30).
    """

    text: str
    kind: str | None = None
    prompt_tokens: int | None = None
    context: int | None = None

    @property
    def words(self) -> str:
        """The text to quote."""
        if self.prompt_tokens is not None and self.context is not None:
            return f"the prompt has {self.prompt_tokens} tokens, and the context has room for {self.context}"
        return self.text


def read_error(value: Any) -> ErrorField:
    """Parse an ``error`` field: a string, an object, JSON at the beginning of a string, or anything else."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                found, _ = json.JSONDecoder().raw_decode(value.lstrip())
                inner = read_error(found)
            except (ValueError, RecursionError):
                return ErrorField(value)
            return inner if inner.text else ErrorField(value)
        return ErrorField(value)
    if not isinstance(value, dict):
        return ErrorField("")
    inner = read_error(value.get("error", value.get("message")))
    kind = value.get("type")
    counts = [value.get(key) for key in ("n_prompt_tokens", "n_ctx")]
    prompt_tokens, context = (count if isinstance(count, int) and 0 <= count < 2**63 else None for count in counts)
    if not isinstance(kind, str) and prompt_tokens is None and context is None:
        return inner
    return ErrorField(inner.text, kind if isinstance(kind, str) else None, prompt_tokens, context)


def by_text(said: ErrorField, path: str, status: int = 200) -> _Kind | None:
    """Return the error class for a server's text at this path and with this status; None for an unknown text."""
    if said.kind in _BY_TYPE:
        return _BY_TYPE[said.kind]
    plain = " ".join(said.text[:_READ].lower().split())
    if path == _PULL_PATH or plain.startswith(_MANIFEST):
        return _by_pull_text(plain)
    if status == 400 and plain == "unexpected eof":  # the request ended too early
        return errors.BadRequestError
    if failed := _FAILED_LOAD.match(plain):
        return _by_load(said.text, ended=bool(failed["ended"]))
    known = errors.RunnerError if _CRASH.match(plain) else _first(_BY_TEXT, plain)
    return known or (errors.OutOfMemoryError if _OUT_OF_MEMORY.search(plain[:_MEMORY_WITHIN]) else None)


def _by_load(text: str, *, ended: bool) -> _Kind:
    """Return the error class for a failed load, by the first line. The loading process may also have crashed."""
    cause = " ".join(text[:_READ].strip().partition("\n")[0].lower().split())
    if _OUT_OF_MEMORY.search(cause):
        return errors.OutOfMemoryError
    return errors.RunnerError if ended and not _BROKEN.search(cause) else errors.BrokenModelError


def _first(table: tuple[tuple[_Kind, re.Pattern[str]], ...], plain: str) -> _Kind | None:
    return next((kind for kind, pattern in table if pattern.match(plain)), None)


def _by_pull_text(plain: str) -> _Kind | None:
    cause = plain.removeprefix(_MANIFEST)
    if tried := _TRIED.match(cause):
        return errors.PullFailedError if _LASTING.match(cause[tried.end() :]) else errors.TransientPullError
    return _first(_BY_PULL_TEXT, cause) or (errors.PullFailedError if plain.startswith(_MANIFEST) else None)


#: The ``object`` field of answers in OpenAI's API.
_OPENAI_OBJECTS = {"chat.completion", "chat.completion.chunk", "text_completion"}
_OTHER_ADVICE = (
    "This package speaks Ollama's own API (/api/...), which that program does not have: run Ollama, and give its port "
    "(11434 by default)."
)


def other_program(found: Mapping[str, Any]) -> str | None:
    """Return the name of the program that sent this JSON object, if it is known not to be Ollama."""
    kind = found.get("object")
    if kind == "list" and "data" in found:
        return "llama-server, or another program with OpenAI's API,"
    if isinstance(kind, str) and kind in _OPENAI_OBJECTS:
        return "a program with OpenAI's API (llama-server, LM Studio, vLLM)"
    error = found.get("error")
    if isinstance(error, str) and error.lower().startswith("unexpected endpoint or method"):
        return "LM Studio"
    if isinstance(error, dict) and error.get("type") == "not_found_error" and error.get("message") == "File Not Found":
        return "llama-server"
    return None


def _other(name: str, path: str) -> tuple[_Kind, str, str]:
    return errors.NotOllamaError, f"{name} answers to {path}, and not Ollama", _OTHER_ADVICE


def object_error(
    found: Mapping[str, Any], *, path: str, host: str, model: str | None, private: Sequence[str] = ()
) -> OllamaError | None:
    """Return the error for a JSON object of an answer with status 200; None if it is no error.

    Args:
        found: the object; any object may have an ``error``.
        path: of the request.
        host: base URL, for the error's text.
        model: of the request, for the error's text.
        private: texts to redact from what is quoted.
    """
    advice: str | None
    if (name := other_program(found)) is not None:
        kind, what, advice = _other(name, path)
    elif found.get("error") is None:
        return None
    else:
        said, pulls = read_error(found["error"]), path == _PULL_PATH
        kind = by_text(said, path) or (errors.PullFailedError if pulls else errors.UnknownServerError)
        what = _say("pull failed" if pulls else "failed midway", said, private)
        advice = _advice(kind, said, None)
    return kind(what, host=host, model=model, advice=advice)


def _say(what: str, said: ErrorField, private: Sequence[str]) -> str:
    text = quote(said.words, private)
    return f"{what}: {text}" if text else f"{what}, and the server does not say why"


def status_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    path: str,
    host: str,
    model: str | None,
    now: datetime,
    private: Sequence[str] = (),
) -> OllamaError:
    """Return the error for an answer with a status outside of 2xx.

    Args:
        status: the HTTP status.
        headers: of the answer, found by lower-case names.
        body: of the answer, or as much of it as was read.
        path: of the request.
        host: base URL, for the error's text.
        model: of the request, for the error's text.
        now: the time (with a zone), for ``Retry-After`` as a date.
        private: texts to redact from what is quoted.
    """
    kind, what, advice = _read_status(status, headers, body, path, private)
    return kind(
        what,
        host=host,
        model=model,
        status=status,
        retry_after=read_retry_after(headers.get("retry-after"), now),
        advice=advice,
    )


def _read_status(
    status: int, headers: Mapping[str, str], body: bytes, path: str, private: Sequence[str]
) -> tuple[_Kind, str, str | None]:
    """Return error class, text, and advice if it is better than that of the class."""
    found = _json_object(body)
    if found is not None and (name := other_program(found)) is not None:
        return _other(name, path)
    if 300 <= status < 400:
        return errors.NotOllamaError, f"{path} answers {status}, a redirect{_target(headers, private)}", None
    if found is not None and "error" in found:
        return _read_text(status, read_error(found["error"]), path, private)
    if known := _silent(status, body, path):
        return known
    kind = _by_status(status)
    # Ollama's own errors are JSON, or, after an internal failure, an empty 500.
    if status >= 500 and kind is not errors.OverloadedError and not (status == 500 and not body):
        kind = errors.GatewayError
    return kind, f"{path} answers {status}{_describe(headers, body, private)}", _STATUS_ADVICE.get(status)


def _silent(status: int, body: bytes, path: str) -> tuple[_Kind, str, str | None] | None:
    """Map the refusals that Ollama, or TLS in front of it, sends without JSON; None for any other."""
    if status == 400 and _WANTS_TLS.search(body):
        return errors.TLSError, "the port speaks https, and the connection says http", None
    if status == 400 and _WANTS_CERTIFICATE.search(body):
        return errors.TLSError, "the server wants another client certificate, or one at all", _CERTIFICATE_ADVICE
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
    return None


def _read_text(status: int, said: ErrorField, path: str, private: Sequence[str]) -> tuple[_Kind, str, str | None]:
    kind = by_text(said, path, status)
    if kind is None and path == _PULL_PATH and status == 500:
        kind = errors.PullFailedError
    kind = kind or _by_status(status)
    return kind, _say(f"{path} answers {status}", said, private), _advice(kind, said, status)


def _advice(kind: _Kind, said: ErrorField, status: int | None) -> str | None:
    if kind is errors.AuthenticationError:
        # Ollama itself has no credentials: the server's account at ollama.com was refused.
        if "disabled" in said.text:
            return "The server may use no cloud models."
        return "Run 'ollama signin' on the server, or check login and password (or the API key) of the connection."
    if kind is errors.QuotaError and "limit" in said.text:
        return None
    if kind is errors.GatewayError and said.text:
        return "The server's own way out failed: look at its network, name resolution and proxy."
    return _STATUS_ADVICE.get(status) if status is not None else None


def _by_status(status: int) -> _Kind:
    return _BY_STATUS.get(status) or (errors.BadRequestError if status < 500 else errors.GatewayError)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = read_json(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _target(headers: Mapping[str, str], private: Sequence[str]) -> str:
    """Return the target of a redirect as text: its host only, since the rest may contain a session or a token."""
    try:
        target = urlsplit(headers.get("location", "")).hostname
    except ValueError:
        return " to what is no URL"
    # The host of a URL comes in lower case.
    return f" to {quote(target, [*private, *(ours.lower() for ours in private)])}" if target else ""


def _describe(headers: Mapping[str, str], body: bytes, private: Sequence[str]) -> str:
    """Describe an answer that is not Ollama's JSON. Only a page's title is quoted: the rest may echo the request."""
    title = re.search(rb"<title[^>]*>\s*(.{1,80}?)\s*</title>", body, re.IGNORECASE | re.DOTALL)
    if title:
        return f" with a page titled '{quote(title.group(1).decode(errors='replace'), private)}'"
    kind = quote(headers.get("content-type", "").partition(";")[0], private)[:50]
    if not body.strip():
        return " without a body"
    return f" with {kind}" if kind else ""


def transport_error(error: Exception, *, answered: bool, host: str, model: str | None) -> OllamaError:
    """Return the error for a failure of the network.

    Args:
        error: what was raised by httpx (or below it).
        answered: the answer had begun.
        host: base URL, for the error's text.
        model: of the request, for the error's text.
    """
    kind, what = _read_failure(error, answered=answered)
    return kind(what, host=host, model=model)


_BY_CAUSE: tuple[tuple[tuple[type[BaseException], ...], _Kind, str], ...] = (
    ((ssl.SSLError, ssl.CertificateError), errors.TLSError, "TLS failed: {}"),
    ((socket.gaierror,), errors.UnreachableError, "there is no such host: {}"),
    ((ConnectionRefusedError,), errors.UnreachableError, "connection refused"),
    ((httpx.ProxyError,), errors.UnreachableError, "the proxy that the environment names failed: {}"),
)


#: The server closed or reset a connection while TLS was being negotiated.
_HUNG_UP = (ssl.SSLEOFError, ConnectionResetError)


def _read_failure(error: Exception, *, answered: bool) -> tuple[_Kind, str]:
    if answered:
        return errors.IncompleteReplyError, "the connection broke in the middle of the answer"
    causes = list(_causes(error))
    for kinds, kind, what in _BY_CAUSE:
        # A server that hangs up says nothing about certificates, also where it does so before TLS stands.
        found = [cause for cause in causes if isinstance(cause, kinds) and not isinstance(cause, _HUNG_UP)]
        if found:
            return kind, what.format(_reason(found[-1]))
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return errors.NotOllamaError, "what answers does not speak HTTP"
    if isinstance(error, httpx.ConnectTimeout):
        return errors.ConnectTimeoutError, "no connection within connect_timeout"
    if isinstance(error, httpx.ConnectError) and not any(isinstance(cause, _HUNG_UP) for cause in causes):
        return errors.UnreachableError, f"no connection: {_reason(causes[-1])}"
    return errors.ConnectionBrokenError, "the connection broke before an answer"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: httpx wraps an exception of a socket several times.

    httpcore keeps the inner exception as an argument and drops the ``__cause__``. The ``__context__`` is not used:
    it ends with whatever exception the caller is handling.
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
