"""The S3 server of moto, as a process of its own; its argument is a port of the loopback interface.

After ``PUT /slow-down`` with a number in the body, it refuses so many requests as S3 does under load.
"""

import sys
from threading import Lock
from typing import Any

from moto import server

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def body(environ: dict[str, Any]) -> bytes:
    """Read the body of a request."""
    content: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return content


class Throttled(server.DomainDispatcherApplication):
    """All services of moto, of which only S3 and the rights of its users are asked here."""

    refused = 0
    lock = Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Refuse a request, or answer it."""
        if environ["PATH_INFO"] == "/slow-down":
            self.refused = int(body(environ))
            start_response("204 No Content", [])
            return []
        with self.lock:
            refused, self.refused = self.refused, max(0, self.refused - 1)
        if not refused:
            return super().__call__(environ, start_response)
        body(environ)
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [_SLOW_DOWN]


server.DomainDispatcherApplication = Throttled
server.main(["--port", sys.argv[1]])
