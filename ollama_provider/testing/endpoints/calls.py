"""The request that a handler works on, and the error that it answers with."""

from dataclasses import dataclass

from ollama_provider.testing.exchange import Request
from ollama_provider.testing.go.encoding import Json, dumps
from ollama_provider.testing.scripting.script import ReplyPlan


class RefusalError(Exception):
    """A handler refuses the request.

    Attributes:
        status: HTTP status.
        text: The `error` in the reply.
        late: The error comes from the runner, after validation and loading. Before 0.12.6 a stream had already begun
            by then.
    """

    def __init__(self, status: int, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.late = late


def llama_server_error(code: int, message: str, kind: str, **counts: int) -> RefusalError:
    """An error of llama-server as Ollama forwards it since 0.30: its JSON is the error text."""
    error = {"code": code, "message": message, "type": kind, **counts}
    return RefusalError(code, dumps({"error": error}), late=True)


@dataclass(slots=True)
class Call:
    """A request that a handler works on.

    Attributes:
        request: The HTTP request.
        body: The fields of its JSON body that the endpoint knows.
        plan: What the script has for it.
        started: When it arrived, Unix time.
    """

    request: Request
    body: dict[str, Json]
    plan: ReplyPlan
    started: float

    @property
    def streams(self) -> bool:
        """Whether to stream the reply, which is the default of the endpoints that can."""
        return bool(self.body.get("stream", True))
