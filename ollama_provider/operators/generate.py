"""Complete a prompt."""

from collections.abc import Sequence
from typing import Any, ClassVar

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas import GenerateRequest
from ollama_provider.operators._inference import InferenceOperator


class OllamaGenerateOperator(InferenceOperator):
    """Ask a model to complete a prompt; the answer goes to XCom.

    All arguments of `InferenceOperator` besides these.

    Args:
        prompt: the prompt, or the name of a file with it that ends in ``.prompt`` or ``.jinja2`` (looked up where
            Airflow looks for templates: the DAG's folder and its ``template_searchpath``).
        system: system prompt, or a file with it, instead of the model's own.
        images: pictures for a model with vision, as bytes or base64.
    """

    template_fields: Sequence[str] = (*InferenceOperator.template_fields, "prompt", "system", "images")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **InferenceOperator.template_fields_renderers,
        "prompt": "md",
        "system": "md",
    }
    request_kind = GenerateRequest

    def __init__(
        self,
        *,
        prompt: str,
        system: str | None = None,
        images: list[bytes | str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.system = system
        self.images = images

    def request_fields(self) -> dict[str, Any]:
        """Return prompt, system prompt and images."""
        # The server would only load the model, and answer with nothing.
        if self.prompt is None or (isinstance(self.prompt, str) and not self.prompt.strip()):
            raise InvalidRequestError("prompt: it is empty; check the template, or the task that the text comes from")
        return {"prompt": self.prompt, "system": self.system, "images": self.images}
