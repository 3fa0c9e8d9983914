"""Generate and chat. Field semantics: server 0.33; the first version that knows a field stands beside it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ollama_provider.api.schemas.base import Label, Metrics, Part, Reply, Request
from ollama_provider.api.schemas.options import Format, Image, KeepAlive, Options, Think
from ollama_provider.api.strict_json import read_json


def _read_arguments(value: Any) -> Any:
    """Take what servers and their imitations send: an object, its JSON text, or nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    return read_json(value) if isinstance(value, str) else value


class ToolCallFunction(Reply):
    """The function a model wants called, and with what."""

    name: str = ""
    arguments: Annotated[dict[str, Any], BeforeValidator(_read_arguments)] = Field(default_factory=dict)
    index: int | None = None


class ToolCall(Reply):
    """One call of a tool; ``id`` since 0.12.10."""

    id: str | None = None
    function: ToolCallFunction


class Message(Reply):
    """One message of a chat, sent or received.

    ``role`` is system, user, assistant or tool. A ``tool`` message answers the call named by ``tool_name`` (0.9.6) and
    ``tool_call_id`` (0.12.10).
    """

    role: str
    content: str = ""
    thinking: str | None = None
    images: list[Image] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class InferenceReply(Metrics):
    """What generate and chat have in common: one object of the stream, or all of them put together."""

    model: Label = ""
    done: bool = False
    #: "stop", "length" (cut), "load", "unload"; absent before 0.1.35 and in all objects but the last.
    done_reason: Label | None = None
    logprobs: list[dict[str, Any]] | None = None
    remote_model: str | None = None
    remote_host: str | None = None

    @property
    def answer_cut(self) -> bool:
        """The answer ended because of ``num_predict`` or the context, not because the model was done."""
        return self.done_reason == "length"


class GenerateReply(InferenceReply):
    """The text of a completion."""

    response: str = ""
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None
    context: list[int] | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return self.response


class ChatReply(InferenceReply):
    """The assistant's next message."""

    message: Message = Message(role="assistant")

    @property
    def text(self) -> str:
        """The answer."""
        return self.message.content

    @property
    def thinking(self) -> str | None:
        """The reasoning, apart from the answer."""
        return self.message.thinking

    @property
    def tool_calls(self) -> list[ToolCall] | None:
        """The tools the model wants called."""
        return self.message.tool_calls


class InferenceRequest(Part):
    """The fields that generate and chat share."""

    model: str = Field(min_length=1)
    format: Format | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None
    #: 0.9.0. Absent means on for a model that can think (since 0.12.5).
    think: Think | None = None
    #: False answers 400 to a prompt over the context instead of cutting it (0.12.6). Does not reload the model.
    truncate: bool | None = None
    #: False ends at the context's end instead of moving it (0.12.6). A change of it reloads the model (0.30).
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: Literal[True] = True


class GenerateRequest(InferenceRequest, Request[GenerateReply]):
    """POST /api/generate: a completion; with an empty prompt, only load the model (or unload it: ``keep_alive=0``)."""

    path: ClassVar[str] = "/api/generate"
    reply: ClassVar[type[Reply]] = GenerateReply
    streamed: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True
    read_timeout: ClassVar[float | None] = None
    max_bytes: ClassVar[int] = 256 * 2**20

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[Image] | None = None
    context: list[int] | None = None


class ToolFunction(Part):
    """What a tool is called, does and takes (``parameters`` is a JSON schema)."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class Tool(Part):
    """A tool the model may call (0.2.6)."""

    type: Literal["function"] = "function"
    function: ToolFunction


def _read_messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ChatRequest(InferenceRequest, Request[ChatReply]):
    """POST /api/chat (0.1.14). A plain string as ``messages`` is one message of the user."""

    path: ClassVar[str] = "/api/chat"
    reply: ClassVar[type[Reply]] = ChatReply
    streamed: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True
    read_timeout: ClassVar[float | None] = None
    max_bytes: ClassVar[int] = 256 * 2**20

    messages: Annotated[list[Message], BeforeValidator(_read_messages)] = Field(default_factory=list)
    tools: list[Tool] | None = None
