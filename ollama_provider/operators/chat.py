"""Answer a chat."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas import ChatRequest
from ollama_provider.operators._inference import InferenceOperator

#: A list of messages that a template has turned into text: the model would read brackets and quotes.
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


class OllamaChatOperator(InferenceOperator):
    """Ask a model for the next message of a chat; its text goes to XCom.

    All arguments of `InferenceOperator` besides these.

    Args:
        messages: the chat so far, a list of dicts with ``role`` (system, user, assistant, tool), ``content`` and
            whatever else Ollama knows (``images``, ``tool_calls``, …); a plain string is one message of the user.
            Templates are rendered at any depth, and a ``content`` may be the name of a ``.prompt`` or ``.jinja2`` file.
    """

    template_fields: Sequence[str] = (*InferenceOperator.template_fields, "messages")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **InferenceOperator.template_fields_renderers,
        "messages": "json",
    }
    request_kind = ChatRequest

    def __init__(self, *, messages: str | list[dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.messages = messages

    def request_fields(self) -> dict[str, Any]:
        """Return the messages."""
        # The server would only load the model, and answer with nothing.
        if not self.messages or (isinstance(self.messages, str) and not self.messages.strip()):
            raise InvalidRequestError("messages: there are none; check the template, or the task that they come from")
        if isinstance(self.messages, str) and _LIST_AS_TEXT.match(self.messages):
            raise InvalidRequestError(
                "messages: a list was rendered as text; pass the other task's .output instead of a template, or set "
                "render_template_as_native_obj on the DAG"
            )
        return {"messages": self.messages}
