"""The chat operator, which may let the model call tools."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from ollama_provider.api.arguments import one_of, read_text
from ollama_provider.api.errors import InvalidRequestError, ToolLoopError
from ollama_provider.operators._images import read_images
from ollama_provider.operators._text_generation import TextGenerationOperator

if TYPE_CHECKING:
    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import ChatRequest, ToolCall
    from ollama_provider.api.structured_output import Output
    from ollama_provider.operators._text_generation import Answer
    from ollama_provider.tools import Toolbox

#: Matches a list of messages that a template has turned into text. The model would read it with brackets and quotes.
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


class OllamaChatOperator(TextGenerationOperator):
    """Generate the next message of a chat; its text goes to XCom.

    All arguments of `TextGenerationOperator`, and these.

    If *tools* are Python functions, the model may call them before it answers. The worker calls the function and sends
    the result to the model, until the model answers or *max_rounds* is reached. If a call fails (no such tool, invalid
    arguments, an exception), the error is sent to the model, which may try again. The log names each call, and
    ``usage`` counts them; arguments and results are logged at DEBUG only. Such a task always waits in the worker. With
    a format, the model is asked once more for the answer in that format, because it cannot call tools and keep to a
    format at the same time.

    If *tools* are schemas, a later task has to carry out the calls: XCom gets a list of dicts with ``name``,
    ``arguments`` and ``id``, or the text if the model answered without calls.

    Args:
        messages: the chat so far, a list of dicts with ``role`` (system, user, assistant, tool), ``content`` and other
            fields of Ollama's messages (``tool_calls``, …). A string is one message of the user. Templates are
            rendered at any depth, and a ``content`` may be the name of a ``.prompt`` or ``.jinja2`` file. ``images`` of
            a message may be what `OllamaGenerateOperator` takes as *images*.
        tools: functions with annotated arguments and a docstring that describes them to the model; or schemas
            (``{"type": "function", "function": {"name": …, "description": …, "parameters": …}}``).
        max_rounds: how many replies with tool calls the model may send before it must answer.
        on_tool_error: what happens when a function raises an exception: ``"tell"`` sends it to the model, ``"fail"``
            fails the task with it. ``AirflowFailException`` and ``AirflowSkipException`` always end the task.
    """

    template_fields: Sequence[str] = (*TextGenerationOperator.template_fields, "messages")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **TextGenerationOperator.template_fields_renderers,
        "messages": "json",
    }

    def __init__(
        self,
        *,
        messages: str | list[dict[str, Any]],
        tools: Sequence[Callable[..., Any] | Mapping[str, Any]] | None = None,
        max_rounds: int = 8,
        on_tool_error: Literal["tell", "fail"] = "tell",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.messages = messages
        self.tools = tools
        self.max_rounds = max_rounds
        self.on_tool_error = on_tool_error

    @property
    def request_kind(self) -> "type[ChatRequest]":
        """The type of the request: a chat."""
        from ollama_provider.api.schemas import ChatRequest

        return ChatRequest

    def request_fields(self) -> dict[str, Any]:
        """Return messages and tools."""
        # The server would only load the model and send an empty answer.
        if not self.messages or (isinstance(self.messages, str) and not self.messages.strip()):
            raise InvalidRequestError("messages: empty; check the template, or the task that they come from")
        if isinstance(self.messages, str) and _LIST_AS_TEXT.match(self.messages):
            raise InvalidRequestError(
                "messages: a list was rendered as text; pass the other task's .output instead of a template, or set "
                "render_template_as_native_obj on the DAG"
            )
        box = self.read_tools()
        return {"messages": self._read_messages(), "tools": box and box.definitions}

    def read_tools(self) -> "Toolbox | None":
        """Return the tools; None if there are none."""
        from ollama_provider.tools import Toolbox

        one_of("on_tool_error", self.on_tool_error, "tell", "fail")
        if self.max_rounds < 1:
            raise InvalidRequestError(f"max_rounds: {self.max_rounds} is not at least 1")
        if not self.tools:
            return None
        box = Toolbox(self.tools)
        if not box.callable and (self.format is not None or self.output_type is not None):
            raise InvalidRequestError(
                "tools that are schemas cannot be combined with a format, because the calls are the answer"
            )
        return box

    def _read_messages(self) -> Any:
        if not isinstance(self.messages, list | tuple):
            return self.messages if isinstance(self.messages, dict) else read_text("messages", self.messages)
        return [self._with_images(place, _with_text(place, message)) for place, message in enumerate(self.messages)]

    def _with_images(self, place: int, message: Any) -> Any:
        if not isinstance(message, Mapping) or not message.get("images"):
            return message
        images = read_images(message["images"], images_from=self.images_from, place=f"messages.{place}.images")
        return {**message, "images": images}

    def images_of(self, fields: dict[str, Any]) -> Iterable[bytes]:
        """Return the images of all messages."""
        messages = fields["messages"] if isinstance(fields["messages"], list) else ()
        return [image for message in messages if isinstance(message, Mapping) for image in message.get("images") or ()]

    def capabilities(self, fields: dict[str, Any]) -> set[str]:
        """Return the capabilities that the model needs, ``tools`` included."""
        return super().capabilities(fields) | ({"tools"} if fields["tools"] else set())

    @property
    def tied_to_worker(self) -> str | None:
        """Why the task must wait in the worker: its functions are called there."""
        return "tools are called in the worker" if any(map(callable, self.tools or ())) else super().tied_to_worker

    def generate(self, request: "ChatRequest", send: "Send", trained: int | None) -> "tuple[Sequence[Answer], bool]":
        """Send requests and call functions until the model answers."""
        from ollama_provider.api.request_flow import inference_flow, run_flow
        from ollama_provider.tools import ToolChat

        box = self.read_tools()
        if box is None or not box.callable:
            return super().generate(request, send, trained)
        chat = ToolChat(request.messages, max_rounds=self.max_rounds)
        replies: list[Answer] = []
        prompt_cut = False

        def send_chat(**changes: Any) -> Any:
            nonlocal prompt_cut
            asked = request.model_copy(update={"messages": chat.messages, **changes})
            reply, cut = run_flow(inference_flow(asked, may_cut=self.may_cut, trained=trained), send)
            prompt_cut = prompt_cut or cut
            replies.append(reply)
            return reply

        try:
            while calls := chat.add_reply(send_chat(format=None)):
                for call in calls:
                    chat.add_result(call, self.call_tool(box, call))
        except ToolLoopError as error:
            error.host = replies[-1].server
            raise
        if request.format is not None:
            send_chat(tools=None)
        return replies, prompt_cut

    def numbers(self, replies: "Sequence[Answer]") -> dict[str, Any]:
        """Return tokens and seconds, and the number of calls of each tool."""
        calls = Counter(call.function.name for reply in replies for call in reply.tool_calls or ())
        return super().numbers(replies) | ({"tool_calls": dict(calls)} if self.tools else {})

    def call_tool(self, box: "Toolbox", call: "ToolCall") -> str:
        """Call a function, and return the result or the error as a text for the model."""
        from ollama_provider.tools import ToolError, shown_name

        name = shown_name(call)
        self.log.debug("Tool %s: called with %s", name, call.function.arguments)
        try:
            result = box.call(call)
        except ToolError as error:
            self.log.warning("Tool %s: the call is not valid; the error is sent to the model", name)
            self.log.debug("Tool %s: %s", name, error)
            return f"error: {error}"
        except (AirflowFailException, AirflowSkipException):
            raise
        except Exception as error:
            if self.on_tool_error == "fail":
                raise
            self.log.warning("Tool %s: it raised %s; the error is sent to the model", name, type(error).__name__)
            self.log.debug("Tool %s: %s", name, error, exc_info=True)
            return f"error: {type(error).__name__}: {error}"
        self.log.info("Tool %s: called", name)
        self.log.debug("Tool %s: returned %s", name, result)
        return result

    def read_answer(self, reply: "Answer", output: "Output | None") -> Any:
        """Return the answer as text or data, or the tool calls that a later task has to carry out."""
        if reply.tool_calls and output is None:
            return [
                {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
                for call in reply.tool_calls
            ]
        return super().read_answer(reply, output)


def _with_text(place: int, message: Any) -> Any:
    """Return the message with a text as content, if native rendering has turned the content into a number."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), int | float):
        return message
    return {**message, "content": read_text(f"messages.{place}.content", message["content"])}
