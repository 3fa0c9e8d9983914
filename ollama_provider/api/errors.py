"""The error classes, as a tree, with whether a retry can help.

::

    OllamaError
    ├── InvalidRequestError            never sent: a wrong field, option, image or setting
    ├── TransportError                 no usable answer came
    │   ├── UnreachableError           refused, no such host                              again, the server's fault
    │   │   ├── ConnectTimeoutError       no connection in time                            again, the server's fault
    │   │   └── ConnectionBrokenError     closed or reset before an answer                 again, the server's fault
    │   ├── TLSError                   certificate not trusted                            hopeless, the setup's fault
    │   ├── ResponseTimeoutError       one of the four timeouts ran out
    │   │   ├── FirstTokenTimeoutError    nothing came: queue, load, prompt                again (once)
    │   │   ├── IdleTimeoutError          it began, then stalled                           again
    │   │   └── TotalTimeoutError         it came too slowly                               no
    │   ├── IncompleteReplyError       cut, damaged, not as Ollama sends it, or nothing    again
    │   └── ClientClosedError          close() was called meanwhile                       by a new client
    ├── ServerError                    an answer that says no
    │   ├── OverloadedError            503 and similar: busy, queue full                  again, the server's fault
    │   ├── GatewayError               a 5xx of a proxy; 408, 425, 499; the registry       again, the server's fault
    │   ├── RunnerError                the model's process crashed                        again (twice)
    │   ├── OutOfMemoryError           no memory for the model now                        again (twice)
    │   ├── UnknownServerError         a 5xx that says nothing known                      again (once)
    │   ├── BadRequestError            the server does not take this request              no
    │   │   ├── ContextLengthError        the prompt is longer than the context
    │   │   └── UnsupportedError          the model lacks the capability
    │   ├── ModelNotFoundError         404 of a model: pull it                            no, the setup's fault
    │   ├── BrokenModelError           it cannot be loaded                                no, the setup's fault
    │   ├── AuthenticationError        401, 403                                           no, the setup's fault
    │   ├── QuotaError                 402, 410, or a limit of the account                 no, the setup's fault
    │   ├── BlobNotFoundError          404 of a blob: upload it                           no
    │   ├── EndpointNotFoundError      404 of a path: base path, or a server too old      no, the setup's fault
    │   └── NotOllamaError             a redirect, a proxy's page, something else         no, the setup's fault
    ├── PullError                      the model did not come
    │   ├── PullFailedError               in the server's words                            no
    │   │   └── TransientPullError           the registry or the network failed            again, the server's fault
    │   ├── PullStalledError              no byte more for too long                        again
    │   └── PullNotAllowedError           another registry, or auto_pull is off            no
    ├── RejectedReplyError             an answer came and was rejected
    │   ├── InvalidOutputError            it does not fit the schema                       again
    │   ├── CutAnswerError                it ended at num_predict or the context           no
    │   ├── CutPromptError                the server dropped a part of the prompt          no
    │   └── ToolLoopError                 it calls tools again and again                   no
    └── UnforeseenError                an unexpected exception in a batch                  no
"""

from enum import Enum
from typing import ClassVar


class Blame(Enum):
    """Where the fault is, which decides what a batch does next."""

    #: This one request: others may well succeed.
    REQUEST = "request"
    #: The server, for a while: wait, then send the same requests again.
    SERVER = "server"
    #: The setup: every request would fail in the same way, so stop.
    SETUP = "setup"


class OllamaError(Exception):
    """Something went wrong between us and Ollama.

    Attributes:
        retryable: the same request, sent again, may succeed.
        blame: whose fault it is.
        max_attempts: how often it is worth trying in all, where that is less than the caller's own bound.
        host: base URL of the server, without credentials; None when no server was involved.
        model: the model that was asked for.
        status: the HTTP status, where there was one.
        retry_after: seconds a proxy asked us to wait (``Retry-After``).
    """

    retryable: ClassVar[bool] = False
    blame: ClassVar[Blame] = Blame.REQUEST
    max_attempts: ClassVar[int | None] = None
    #: What the reader can do about it; an error may know better than its class.
    advice: str = ""

    def __init__(
        self,
        what: str,
        *,
        host: str | None = None,
        model: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        advice: str | None = None,
    ) -> None:
        self.what = what
        self.host = host
        self.model = model
        self.status = status
        self.retry_after = retry_after
        if advice is not None:
            self.advice = advice
        super().__init__(what)

    def __str__(self) -> str:
        where = " ".join(
            part
            for part in (f"at {self.host}" if self.host else "", f"model {self.model!r}" if self.model else "")
            if part
        )
        text = f"{self.what} ({where})" if where else self.what
        return f"{text}. {self.advice}" if self.advice else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and Airflow pickles what a task raises.
        return _rebuild, (type(self), self.what, self.__dict__)


def _rebuild(kind: type[OllamaError], what: str, state: dict[str, object]) -> OllamaError:
    error = kind(what)
    error.__dict__.update(state)
    return error


class InvalidRequestError(OllamaError):
    """The request or a setting is wrong; nothing was sent."""


class TransportError(OllamaError):
    """No usable answer came."""

    retryable = True


class UnreachableError(TransportError):
    """No connection."""

    blame = Blame.SERVER
    advice = "Is the server running, and are host and port of the connection right?"


class ConnectTimeoutError(UnreachableError):
    """No connection stood within ``connect_timeout``."""

    advice = (
        "Is the server running, are host and port right, and does a firewall drop packets? Else raise connect_timeout."
    )


class ConnectionBrokenError(UnreachableError):
    """The connection stood, and broke before any answer."""

    advice = "Did the server end or restart? Else check host, port and http or https of the connection."


class TLSError(TransportError):
    """The server's certificate is not trusted, or it does not speak TLS."""

    retryable = False
    blame = Blame.SETUP
    advice = "Check http or https in the connection, and 'verify' (a CA file for a private certificate)."


class ResponseTimeoutError(TransportError):
    """One of the four timeouts ran out."""


class FirstTokenTimeoutError(ResponseTimeoutError):
    """Nothing came within ``first_token_timeout``."""

    # Closing the connection ended the load, so each attempt starts it again. The second finds the file in the cache.
    max_attempts = 2
    advice = "The model may still be loading or the queue be long: raise first_token_timeout, or load the model before."


class IdleTimeoutError(ResponseTimeoutError):
    """The answer began and then stalled for ``idle_timeout``."""


class TotalTimeoutError(ResponseTimeoutError):
    """The answer was not complete within ``total_timeout``."""

    retryable = False
    advice = "Raise total_timeout, or bound the answer with options.num_predict."


class IncompleteReplyError(TransportError):
    """The answer ended without its last object, is cut or damaged, has fields that Ollama does not send, or is none.

    A fault of this one answer: another may well be whole.
    """


class ClientClosedError(TransportError):
    """The client was closed before the answer was complete, as ``on_kill`` does."""

    # Worth trying in a new task, but never by the client that was closed.
    max_attempts = 1


class ServerError(OllamaError):
    """The server's answer says no."""


class OverloadedError(ServerError):
    """The server is busy."""

    retryable = True
    blame = Blame.SERVER
    advice = "Send fewer requests at a time, or raise OLLAMA_MAX_QUEUE on the server."


class GatewayError(ServerError):
    """A proxy answers in Ollama's place (any 5xx that is not Ollama's own), or the server's own way out failed."""

    retryable = True
    blame = Blame.SERVER
    advice = "Is the server behind the proxy running? A proxy may also give up too early: raise its read timeout."


class RunnerError(ServerError):
    """The process that runs the model crashed; the next request starts it again."""

    retryable = True
    max_attempts = 3
    advice = "The server's log says why the model's process ended."


class OutOfMemoryError(ServerError):
    """No memory for the model now; other models may use it."""

    retryable = True
    max_attempts = 3
    advice = "Use a smaller model, a smaller options.num_ctx, or unload other models."


class UnknownServerError(ServerError):
    """A failure with a text we do not know."""

    retryable = True
    max_attempts = 2
    advice = "The server's log says more."


class BadRequestError(ServerError):
    """The server does not take this request."""


class ContextLengthError(BadRequestError):
    """The prompt is longer than the context."""

    advice = "Shorten the prompt, or raise options.num_ctx."


class UnsupportedError(BadRequestError):
    """The model cannot do what is asked: see its capabilities in ``/api/show``."""

    advice = "Choose a model with that capability."


class ModelNotFoundError(ServerError):
    """The server does not have the model."""

    blame = Blame.SETUP
    advice = "Pull it first, or allow auto_pull."


class BrokenModelError(ServerError):
    """The model is there and cannot be loaded."""

    blame = Blame.SETUP
    advice = "Pull the model again, or update Ollama."


class AuthenticationError(ServerError):
    """Not allowed: credentials, a proxy's rule, or Ollama's own check of the Host header."""

    blame = Blame.SETUP
    advice = "Check login and password (or the API key) of the connection."


class QuotaError(ServerError):
    """The account at ollama.com may not do this now: its limit is reached, its plan lacks it, or it is retired."""

    blame = Blame.SETUP
    advice = "See plan and usage of the account at ollama.com, wait for the limit to pass, or use another model."


class BlobNotFoundError(ServerError):
    """The server does not have the blob."""

    advice = "Upload it first."


class EndpointNotFoundError(ServerError):
    """The path does not exist there."""

    blame = Blame.SETUP
    advice = "Check the base path of the connection; an old server may not have this endpoint."


class NotOllamaError(ServerError):
    """What answers there is not Ollama."""

    blame = Blame.SETUP
    advice = "Check host, port and base path of the connection."


class PullError(OllamaError):
    """The model did not come."""

    blame = Blame.SETUP


class PullFailedError(PullError):
    """The server could not pull the model; the text is the server's own."""


class TransientPullError(PullFailedError):
    """The registry or the network between it and the server failed; a new pull goes on where this one ended."""

    retryable = True
    blame = Blame.SERVER


class PullStalledError(PullError):
    """No byte more for too long, though the server keeps sending progress."""

    retryable = True
    blame = Blame.SERVER
    advice = "Check the server's way to the registry; a new pull goes on where this one ended."


class PullNotAllowedError(PullError):
    """The model is missing and may not be pulled."""

    advice = "Pull it by hand, set auto_pull, or add its registry to pull_allow of the connection."


class RejectedReplyError(OllamaError):
    """A complete answer was rejected."""


class InvalidOutputError(RejectedReplyError):
    """The answer does not fit the schema."""

    retryable = True
    advice = "Describe the wanted JSON in the prompt, or use a larger model."


class CutAnswerError(RejectedReplyError):
    """The answer ended at ``num_predict`` or at the end of the context."""

    advice = "Raise options.num_predict or options.num_ctx, or accept cut answers."


class CutPromptError(RejectedReplyError):
    """The server dropped a part of the prompt without a word."""

    advice = "Shorten the prompt, or raise options.num_ctx."


class ToolLoopError(RejectedReplyError):
    """The model went on calling tools instead of answering."""

    advice = "Raise max_rounds, say in the prompt when to stop, or use a larger model."


class UnforeseenError(OllamaError):
    """An unexpected exception ended the request, the validation or the writing of a row of a batch."""

    advice = "Please report it, with the traceback that the task's log has of the first such row."
