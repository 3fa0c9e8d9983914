"""OpenTelemetry spans of requests and of larger work, by the semantic conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai has them. A span begins below the one that is current, such
as that of an Airflow task. No prompt and no answer is in it, unless the conventions' own switch asks for that:
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT``.

Whoever has set tracing up has imported OpenTelemetry. So nothing is imported here, and where nobody has, or tracing is
off, nothing is done.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from ollama_provider import __version__
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    EmbedRequest,
    GenerateReply,
    GenerateRequest,
    Message,
    Metrics,
    Options,
    PullRequest,
    Reply,
    Request,
    ToolCall,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

#: Attributes of a request by the names of Ollama's options.
_OPTIONS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "num_predict": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "stop": "gen_ai.request.stop_sequences",
}
_SWITCH = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@contextmanager
def work_span(operation: str, model: str) -> Iterator[dict[str, Any]]:
    """Make the block a span, with those of its requests below it.

    Args:
        operation: one word for the work, such as "batch".
        model: name of the model.

    Yields:
        Attributes that the span gets at its end, to be filled in.
    """
    attributes: dict[str, Any] = {}
    tracer = _tracer()
    if tracer is None:
        yield attributes
        return
    with tracer.start_as_current_span(
        f"{operation} {model}",
        attributes=_identity(operation, model),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield attributes
        except BaseException as error:
            _set_error(span, error)
            raise
        finally:
            span.set_attributes(attributes)


class RequestSpan:
    """The span of a request, with all its attempts.

    Args:
        span: of OpenTelemetry.
        request: the request.
    """

    def __init__(self, span: "Span", request: Request[Any]) -> None:
        self._span = span
        self._request = request
        self._reply: Reply | None = None
        captures = os.environ.get(_SWITCH, "").lower() in {"true", "span_only", "span_and_event"}
        self._answer = _Answer() if captures and isinstance(request, GenerateRequest | ChatRequest) else None

    @classmethod
    def start(cls, request: Request[Any]) -> Self | None:
        """Return the span of a request; None if tracing is off, or if it is a question about the server."""
        tracer = _tracer()
        operation = None if tracer is None else _operation(request)
        if tracer is None or operation is None:
            return None
        model = request.model  # type: ignore[attr-defined]  # all requests with an operation have one
        span = tracer.start_span(
            f"{operation} {model}",
            kind=sys.modules["opentelemetry.trace"].SpanKind.CLIENT,
            attributes=_identity(operation, model) | _asked(request),
        )
        return cls(span, request) if span.is_recording() else None

    def add(self, reply: Reply) -> None:
        """Take the reply, or the next object of a streamed one."""
        self._reply = reply
        if self._answer is not None and isinstance(reply, GenerateReply | ChatReply):
            self._answer.add(reply)

    def failed_attempt(self, error: OllamaError) -> None:
        """Add the event of an attempt that is followed by another."""
        self._span.add_event("retry", {"error.type": type(error).__name__, **_server(error.host)})

    def end(self, error: BaseException | None) -> None:
        """End the span.

        Args:
            error: why the request has failed; None if it was answered.
        """
        if error is not None:
            _set_error(self._span, error)
        if self._reply is not None:
            self._span.set_attributes(_answered(self._reply))
        if self._answer is not None:
            self._span.set_attributes(_content(self._request) | self._answer.content(self._reply))
        self._span.end()


class _Answer:
    """The texts of a reply, for those who ask for them in the span."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, reply: GenerateReply | ChatReply) -> None:
        self._texts.append(reply.text)
        self._thinking.append(reply.thinking or "")
        self._calls += reply.tool_calls or []

    def content(self, last: Reply | None) -> dict[str, str]:
        parts = _parts("".join(self._texts), "".join(self._thinking), self._calls)
        reason = getattr(last, "done_reason", None) or "error"
        return {"gen_ai.output.messages": _json([{"role": "assistant", "parts": parts, "finish_reason": reason}])}


def _tracer() -> "Tracer | None":
    """Return the tracer; None if nobody has set up OpenTelemetry in this process."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    tracer: Tracer = api.get_tracer("ollama_provider", __version__)
    return tracer


def _operation(request: Request[Any]) -> str | None:  # noqa: PLR0911  # a table
    match request:
        case GenerateRequest(prompt="", keep_alive=0):
            return "unload"
        case GenerateRequest(prompt="") | ChatRequest(messages=[]) | EmbedRequest(input=[]):
            return "load"
        case GenerateRequest():
            return "text_completion"
        case ChatRequest():
            return "chat"
        case EmbedRequest():
            return "embeddings"
        case PullRequest():
            return "pull"
    return None


def _identity(operation: str, model: str) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": model,
    }


def _asked(request: Request[Any]) -> dict[str, Any]:
    """Return what is known before the request is sent, but for its content."""
    options: Options | None = getattr(request, "options", None)
    given = {} if options is None else {name: getattr(options, option) for option, name in _OPTIONS.items()}
    if isinstance(request, EmbedRequest):
        given["gen_ai.embeddings.dimension.count"] = request.dimensions
    elif getattr(request, "format", None) is not None:
        given["gen_ai.output.type"] = "json"
    return {name: value for name, value in given.items() if value is not None}


def _answered(reply: Reply) -> dict[str, Any]:
    """Return what a reply tells, but for its content."""
    told: dict[str, Any] = _server(reply.server)
    if isinstance(reply, Metrics):
        told["gen_ai.usage.input_tokens"] = reply.prompt_eval_count
    if isinstance(reply, GenerateReply | ChatReply):
        told["gen_ai.usage.output_tokens"] = reply.eval_count
        if reply.done_reason:
            told["gen_ai.response.finish_reasons"] = [reply.done_reason]
    if model := getattr(reply, "model", None):
        told["gen_ai.response.model"] = model
    return told


def _server(url: str | None) -> dict[str, Any]:
    parts = urlsplit(url or "")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return {"server.address": parts.hostname, "server.port": port} if parts.hostname and port else {}


def _set_error(span: "Span", error: BaseException) -> None:
    """Mark a span as failed. The text of an error is shown if it is ours: ours hold no prompts, answers and secrets."""
    span.set_attribute("error.type", type(error).__name__)
    ours = type(error).__module__.startswith("ollama_provider.")
    code = sys.modules["opentelemetry.trace"].StatusCode.ERROR
    span.set_status(code, str(error) if ours else None)
    if isinstance(error, OllamaError):
        span.set_attributes(_server(error.host))


def _content(request: Request[Any]) -> dict[str, str]:
    """Return the prompt, for those who ask for it in the span."""
    if isinstance(request, ChatRequest):
        return {"gen_ai.input.messages": _json([_message(message) for message in request.messages])}
    if not isinstance(request, GenerateRequest):
        return {}
    system = {"gen_ai.system_instructions": _json(_parts(request.system))} if request.system else {}
    return {"gen_ai.input.messages": _json([{"role": "user", "parts": _parts(request.prompt)}]), **system}


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        answer = {"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}
        return {"role": "tool", "parts": [answer]}
    return {"role": message.role, "parts": _parts(message.content, message.thinking, message.tool_calls or [])}


def _parts(text: str, thinking: str | None = None, calls: "list[ToolCall] | tuple[()]" = ()) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "reasoning", "content": thinking}] if thinking else []
    parts += [{"type": "text", "content": text}] if text else []
    return parts + [
        {"type": "tool_call", "id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in calls
    ]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
