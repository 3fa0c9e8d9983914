"""The operator that completes a prompt."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ollama_provider.api.arguments import read_text
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.operators._images import read_images
from ollama_provider.operators._text_generation import TextGenerationOperator

if TYPE_CHECKING:
    from ollama_provider.api.schemas import ChatRequest, GenerateRequest


class OllamaGenerateOperator(TextGenerationOperator):
    """Complete a prompt; the answer goes to XCom.

    All arguments of `TextGenerationOperator`, and these.

    Args:
        prompt: the prompt, or the name of a file that contains it and ends in ``.prompt`` or ``.jinja2``. Airflow looks
            for the file in the DAG's folder and its ``template_searchpath``.
        system: system prompt, or such a file, instead of the model's own.
        images: images for a model with vision (or sounds for one with audio), each as bytes, as base64 text, or as an
            ``ObjectStoragePath``. *images_from* allows paths as text. PNG, JPEG, WebP, WAV or MP3, 20 MB at most.
    """

    template_fields: Sequence[str] = (*TextGenerationOperator.template_fields, "prompt", "system", "images")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **TextGenerationOperator.template_fields_renderers,
        "prompt": "md",
        "system": "md",
    }

    def __init__(
        self,
        *,
        prompt: str,
        system: str | None = None,
        images: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.system = system
        self.images = images

    @property
    def request_kind(self) -> "type[GenerateRequest] | type[ChatRequest]":
        """The type of the request: a completion."""
        from ollama_provider.api.schemas import GenerateRequest

        return GenerateRequest

    def request_fields(self) -> dict[str, Any]:
        """Return prompt, system prompt and images."""
        # The server would only load the model and send an empty answer.
        if self.prompt is None or (isinstance(self.prompt, str) and not self.prompt.strip()):
            raise InvalidRequestError("prompt: it is empty; check the template, or the task that the text comes from")
        if self.think and (self.format is not None or self.output_type is not None):
            raise InvalidRequestError(
                "think cannot be combined with a format in generate, because the format would apply to the reasoning: "
                "use OllamaChatOperator, or think=False"
            )
        images = None if self.images is None else read_images(self.images, images_from=self.images_from)
        system = None if self.system is None else read_text("system", self.system)
        return {"prompt": read_text("prompt", self.prompt), "system": system, "images": images}

    def images_of(self, fields: dict[str, Any]) -> Iterable[bytes]:
        """Return the images."""
        return fields["images"] or ()
