"""Faults on the way to the server: no connection, no TLS, no HTTP."""

import contextlib
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

from tests.api.faults.fault import (
    BAD_REQUEST,
    BROKEN,
    CONNECT_TIMEOUT,
    NOT_OLLAMA,
    TLS,
    UNREACHABLE,
    Fault,
    Place,
    everywhere,
    whole,
)
from tests.api.faults.operations import Group
from tests.api.faults.server import Call, Reset, Script, Server, Step
from tests.processes import free_port
from tests.sockets import listening
from tests.tls import make_certificate


def _good(call: Call) -> list[Step]:
    return whole(call, call.operation.answer)


def _refused(_: Server) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{free_port()}"}


def _full_backlog(server: Server) -> dict[str, Any]:
    """Listen without accepting: when its backlog is full, the kernel drops what asks for a connection."""
    listener = server.resources.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(8):
        client = server.resources.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
    return {"base_url": f"http://127.0.0.1:{listener.getsockname()[1]}"}


def _tls_context(server: Server, **certificate: Any) -> tuple[ssl.SSLContext, str]:
    """Return the context of a server with a new certificate, and the certificate's file."""
    folder = Path(server.resources.enter_context(tempfile.TemporaryDirectory()))
    file = make_certificate(folder, "server", **certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file


def _tls(*, trusted: bool = True, scheme: str = "https", **certificate: Any) -> Place:
    """Return the place of a server with TLS.

    Args:
        trusted: the client trusts the certificate's issuer.
        scheme: what the client speaks.
        certificate: see `make_certificate`.
    """

    def place(server: Server) -> dict[str, Any]:
        context, file = _tls_context(server, **certificate)
        url = server.play(_good, context).url
        return {"base_url": url.replace("https", scheme), "verify": file if trusted else True}

    return place


def _client_certificate_wanted(server: Server) -> dict[str, Any]:
    context, file = _tls_context(server)
    context.load_verify_locations(file)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve_one(connection: socket.socket) -> None:
        secure = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with contextlib.suppress(ssl.SSLError):
            secure.do_handshake()
        # Read what the client has sent already. Otherwise the kernel would reset the connection, and drop the alert.
        with socket.socket(fileno=secure.detach()) as plain:
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(65536):
                pass

    return {"base_url": server.resources.enter_context(listening(serve_one)).replace("http", "https"), "verify": file}


def _http_as_https(script: Script) -> Place:
    return lambda server: {"base_url": server.play(script).url.replace("http", "https")}


def _hangs_up(server: Server) -> dict[str, Any]:
    """Accept connections, and close them when something came."""
    url = server.resources.enter_context(listening(lambda connection: connection.recv(65536)))
    return {"base_url": url.replace("http", "https")}


def _silent(server: Server) -> dict[str, Any]:
    """Accept connections, and send nothing."""
    listener = server.resources.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
    return {"base_url": f"https://127.0.0.1:{listener.getsockname()[1]}"}


def _page(text: str) -> Script:
    """Return what a server answers to a request without the TLS, or the certificate, that it wants."""
    return lambda call: whole(call, f"{text}\n".encode(), "Content-Type: text/plain", "Connection: close", status=400)


CONNECTIONS = [
    Fault("nobody listens", everywhere(UNREACHABLE), places={"refused": _refused}),
    Fault(
        "no such host",
        everywhere(UNREACHABLE),
        places={"name": lambda _: {"base_url": "http://no-such-host.invalid:11434"}},
    ),
    Fault(
        "the connection is never made",
        everywhere(CONNECT_TIMEOUT),
        places={"backlog": _full_backlog},
        settings={"timeouts": {"connect": 0.2}},
    ),
    Fault("the certificate is not trusted", everywhere(TLS), places={"self-signed": _tls(trusted=False)}),
    Fault("the certificate has expired", everywhere(TLS), places={"expired": _tls(expired=True)}),
    Fault("the certificate is for another host", everywhere(TLS), places={"host": _tls(address="127.0.0.2")}),
    Fault("the server wants a client certificate", everywhere(TLS), places={"client": _client_certificate_wanted}),
    Fault(
        "the same, as a proxy says it in a page",
        everywhere(TLS, {Group.HEAD: BAD_REQUEST}),
        {
            "nginx": _page("<html><title>400 No required SSL certificate was sent</title></html>"),
            "nginx, another": _page("<html><title>400 The SSL certificate error</title></html>"),
        },
    ),
    Fault("https, and the port speaks http", everywhere(TLS), places={"https": _http_as_https(_good)}),
    Fault(
        "https, and the port never answers",
        everywhere(CONNECT_TIMEOUT),
        places={"silent": _silent},
        settings={"timeouts": {"connect": 0.2}},
    ),
    Fault("https, and the port hangs up", everywhere(BROKEN), places={"hangs up": _hangs_up}),
    Fault("http, and the port speaks https and hangs up", everywhere(BROKEN), places={"http": _tls(scheme="http")}),
    Fault(
        "http, and the port speaks https and says so",
        everywhere(TLS, {Group.HEAD: BAD_REQUEST}),
        {
            "Go": _page("Client sent an HTTP request to an HTTPS server."),
            "nginx": _page("<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>"),
            "Apache": _page("Reason: You're speaking plain HTTP to an SSL-enabled server port."),
        },
    ),
    Fault("closed without a byte", everywhere(BROKEN), {"closed": lambda _: []}),
    Fault("reset without a byte", everywhere(BROKEN), {"reset": lambda _: [Reset()]}),
    Fault(
        "something that is not HTTP",
        everywhere(NOT_OLLAMA),
        {
            "mail": lambda _: [b"220 mail ESMTP\r\n\r\n"],
            "bytes": lambda _: [b"\x00\x01\x02\x03\r\n\r\n"],
            "body without head": lambda call: [call.operation.answer + b'{"a":1}\n\r\n\r\n'],
        },
    ),
]
