"""Find the handler of a request, and turn its errors into replies.

Before that: redirects of unclean paths, and the check of Host and Origin.
"""

import ipaddress
import posixpath
import socket
from collections.abc import Callable
from functools import lru_cache
from html import escape
from http import HTTPStatus
from urllib.parse import quote

from ollama_provider.testing.endpoints import models, openai, requests
from ollama_provider.testing.endpoints.calls import Call, RefusalError
from ollama_provider.testing.endpoints.embed import embed, embeddings
from ollama_provider.testing.endpoints.generate_chat import chat, generate
from ollama_provider.testing.endpoints.structs import REQUEST_STRUCTS
from ollama_provider.testing.endpoints.transfers import create, pull, push
from ollama_provider.testing.exchange import JSON, Head, Line, Request, Response, Steps
from ollama_provider.testing.go.encoding import BadRequestError, decode, dumps
from ollama_provider.testing.scripting.faults import EarliestFailure
from ollama_provider.testing.scripting.script import ReplyPlan
from ollama_provider.testing.state.server_state import ServerState

_Handler = Callable[[ServerState, Call], Steps]

_ROUTES: dict[str, tuple[str, dict[str, _Handler]]] = {
    "/api/generate": ("0.1.0", {"POST": generate}),
    "/api/chat": ("0.1.14", {"POST": chat}),
    "/api/embed": ("0.2.6", {"POST": embed}),
    "/api/embeddings": ("0.1.0", {"POST": embeddings}),
    "/api/tags": ("0.1.0", {"GET": models.tags, "HEAD": models.tags}),
    "/api/show": ("0.1.0", {"POST": models.show}),
    "/api/ps": ("0.1.38", {"GET": models.ps}),
    "/api/version": ("0.1.14", {"GET": models.version, "HEAD": models.version}),
    "/api/status": ("0.16.2", {"GET": models.status}),
    "/api/me": ("0.12.0", {"POST": models.me}),
    "/api/pull": ("0.1.0", {"POST": pull}),
    "/api/push": ("0.1.0", {"POST": push}),
    "/api/create": ("0.1.0", {"POST": create}),
    "/api/copy": ("0.1.0", {"POST": models.copy}),
    "/api/delete": ("0.1.0", {"DELETE": models.delete}),
    "/api/blobs/": ("0.1.10", {"HEAD": models.blob, "POST": models.blob}),
    # Valid requests of /v1 arrive as requests of /api, so only invalid ones come here.
    **{path: (since, {method: openai.explain_refusal}) for path, (since, method) in openai.ENDPOINTS.items()},
}
_TRANSFERS = frozenset({"/api/pull", "/api/push", "/api/create"})
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def handle(state: ServerState, request: Request, plan: ReplyPlan) -> Steps:
    """Answer a request.

    Args:
        state: The server's settings and models.
        request: The request. One of `/v1` is already translated if it is valid.
        plan: What the script has for it.
    """
    if (early_answer := _redirect(state, request) or _answer_before_routing(state, request)) is not None:
        yield early_answer
        return
    path = "/api/blobs/" if request.path.startswith("/api/blobs/") else openai.route(request.path)
    since, handlers = _ROUTES.get(path, ("", {}))
    if not handlers or not state.since(since):
        yield Response(404, b"404 page not found", "text/plain")
        return
    if (handler := handlers.get(request.method)) is None:
        if state.since("0.7.0"):
            yield Response(405, b"405 method not allowed", "text/plain", {"Allow": ", ".join(handlers)})
        else:
            yield Response(404, b"404 page not found", "text/plain")
        return
    call = Call(request, {}, plan, state.clock())
    try:
        if path in REQUEST_STRUCTS and path.startswith("/api/"):
            call.body = requests.read(path, decode(request.body))
        yield from handler(state, call)
    except BadRequestError as wrong:
        yield error(400, str(wrong))
    except RefusalError as refusal:
        yield from _error_reply(state, call, refusal)


def earliest_failure(state: ServerState, path: str) -> EarliestFailure:
    """How early this version can report an error at this endpoint."""
    transfers = path in _TRANSFERS
    return EarliestFailure(
        lines=int(transfers),
        status=not transfers and state.since("0.12.6"),
        llama_server=state.since("0.30.0"),
        embedding=_embedding_status(state, path),
    )


def _embedding_status(state: ServerState, path: str) -> int:
    if path == "/api/embed":
        return 400 if state.since("0.13.3") else 500
    return 500 if path == "/api/embeddings" else 0


def error(status: int, text: str, content_type: str = JSON) -> Response:
    """An error in Ollama's format."""
    return Response(status, dumps({"error": text}).encode(), content_type)


def _error_reply(state: ServerState, call: Call, refusal: RefusalError) -> Steps:
    transfers = call.request.path in _TRANSFERS
    if not refusal.late or not (call.streams or transfers):
        yield error(refusal.status, refusal.text)
    elif transfers or state.since("0.12.6"):
        yield error(refusal.status, refusal.text, "application/json")
    else:
        yield Head()
        yield Line(dumps({"error": refusal.text}).encode() + b"\n")


def _answer_before_routing(state: ServerState, request: Request) -> Response | None:
    origin = request.headers.get("origin", "").rpartition("://")[2]
    if state.loopback and not (_is_local(request.headers.get("host", "")) and _is_local(origin)):
        return Response(403, content_type=None)
    if request.path == "/" and request.method in {"GET", "HEAD"}:
        return Response(200, b"Ollama is running", "text/plain; charset=utf-8")
    return None


def _redirect(state: ServerState, request: Request) -> Response | None:
    """The redirect for an unclean path: Go removes `//` and `..`, and then gin removes a slash at the end."""
    path, clean = request.path, _clean_path(request.path)
    if clean != path:
        target, status = clean, 307 if state.since("0.23.1") else 301
    elif path.endswith("/") and path[:-1] in _ROUTES:
        target, status = path[:-1], 301 if request.method == "GET" else 307
    else:
        return None
    location = quote(target) + (f"?{request.query}" if request.query else "")
    link = f'<a href="{escape(location)}">{HTTPStatus(status).phrase}</a>.\n\n' if request.method == "GET" else ""
    shown = "text/html; charset=utf-8" if request.method in {"GET", "HEAD"} else None
    return Response(status, link.encode(), shown, {"Location": location})


@lru_cache(maxsize=256)
def _clean_path(path: str) -> str:
    slash = "/" if path.endswith("/") and path.strip("/") else ""
    return "/" + posixpath.normpath(path).lstrip("/") + slash


@lru_cache(maxsize=256)
def _is_local(host: str) -> bool:
    """Whether a server that listens on loopback only accepts this Host or Origin header."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    if name in {"", "localhost", socket.gethostname().lower()} or name.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified
