"""A request on its way through a handler, and the error that a handler answers with."""

from dataclasses import dataclass

from ollama_provider.testing.exchange import Request
from ollama_provider.testing.go.encoding import Json, dumps
from ollama_provider.testing.scripting.script import Plan


class RefusalError(Exception):
    """The request is answered with an error.

    Attributes:
        status: HTTP status.
        text: The `error`.
        late: It comes from the runner, after validation and loading: before 0.12.6 a stream had begun by then.
    """

    def __init__(self, status: int, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.late = late


def from_llama_server(code: int, message: str, kind: str, **counts: int) -> RefusalError:
    """What llama-server refused, as Ollama passes it on since 0.30: its JSON is the text of the error."""
    error = {"code": code, "message": message, "type": kind, **counts}
    return RefusalError(code, dumps({"error": error}), late=True)


@dataclass(slots=True)
class Call:
    """A request on its way through a handler.

    Attributes:
        request: As it came.
        body: The fields of its JSON body that the endpoint knows.
        plan: What the script says about it.
        started: When it came, Unix time.
    """

    request: Request
    body: dict[str, Json]
    plan: Plan
    started: float

    @property
    def streams(self) -> bool:
        """The default of the endpoints that can."""
        return bool(self.body.get("stream", True))
