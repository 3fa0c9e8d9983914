"""How a row becomes a request, and where its result is in the reply: `Generate` and `Chat`.

`Embed` is in `ollama_provider.batch.requests.embedding`, with the packs that only it has.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    GenerateReply,
    GenerateRequest,
    KeepAlive,
    Options,
    Request,
    Think,
)
from ollama_provider.api.structured_output import Output
from ollama_provider.batch.requests.work_item import Variant, WorkItem


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """How rows are sent to a model.

    Attributes:
        model: name to ask for, without digest.
        options: as the user gave them.
        num_ctx: the context that was chosen, in tokens; None where the options have one.
        keep_alive: how long the server keeps the model in memory after each request; None is the server's own.
    """

    model: str
    options: Options
    num_ctx: int | None = None
    keep_alive: KeepAlive | None = None

    #: Name of the task, and of its endpoint.
    endpoint: ClassVar[str]

    @property
    @abstractmethod
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do, in the terms of ``/api/show``."""

    @property
    def schema(self) -> Any:
        """JSON schema of an answer, as plain data; None where there is none."""
        return None

    def identity(self) -> Mapping[str, Any]:
        """Return what the answer depends on, as plain data, except for prompt, images, model and schema."""
        return {"task": self.endpoint, "options": self.options.model_dump(exclude_none=True)}

    @cached_property
    def sent_options(self) -> Options:
        """The options with the context that was chosen."""
        return self.options if self.num_ctx is None else self.options.model_copy(update={"num_ctx": self.num_ctx})

    def readable(self, prompt: str) -> str:
        """Return the prompt of a row as people read it."""
        return prompt

    @abstractmethod
    def needs_own_request(self, prompt: str) -> bool:
        """Return whether a row must not share its request with others."""

    @abstractmethod
    def request(self, item: WorkItem) -> Request[Any]:
        """Return the request for an item, and for the rest of its pack."""

    @abstractmethod
    def load(self) -> Request[Any]:
        """Return the request that only loads the model, with the options of the run."""


@dataclass(frozen=True, kw_only=True)
class Completion(Task):
    """What `Generate` and `Chat` have in common: a model writes an answer.

    Attributes:
        system, think: see `BatchSpec`.
        output_type: schema of the answer; None for text.
        fallback_model: see `FailurePolicy`. No part of the identity, since it answers the same question.
        sees: rows have images.
    """

    system: str | None = None
    think: Think = False
    output_type: Output | None = None
    fallback_model: str | None = None
    sees: bool = False

    @property
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do: answer, and reason or see where that is asked for."""
        return ("completion", *(("thinking",) if self.think else ()), *(("vision",) if self.sees else ()))

    @property
    def schema(self) -> Any:
        """JSON schema of the answer, as plain data; None for text."""
        return None if self.output_type is None else self.output_type.format

    def identity(self) -> Mapping[str, Any]:
        """Return what the answer depends on: also system message and reasoning."""
        return {**super().identity(), "system": self.system, "think": self.think}

    def needs_own_request(self, prompt: str) -> bool:  # noqa: ARG002  # only vectors are packed
        """Return True: each answer is a request of its own."""
        return True

    def load(self) -> GenerateRequest:
        """Return the request that only loads the model, with the options of the run."""
        return GenerateRequest(model=self.model, options=self.sent_options, keep_alive=self.keep_alive)

    def _common_fields(self, variant: Variant) -> dict[str, Any]:
        """Return the fields that both endpoints know."""
        options = self.sent_options
        if variant.num_predict is not None:
            options = options.model_copy(update={"num_predict": variant.num_predict})
        return {
            "model": self.fallback_model if variant.fallback else self.model,
            "format": self.schema,
            "options": options,
            "keep_alive": self.keep_alive,
            "think": self.think if variant.thinking else False,
            "truncate": None if variant.truncate else False,
        }

    def raw(self, reply: GenerateReply | ChatReply) -> str:
        """Return the answer as the model gave it."""
        return reply.text

    def output(self, reply: GenerateReply | ChatReply) -> Any:
        """Return the result of a reply.

        Raises:
            InvalidOutputError: it does not fit the schema.
        """
        return reply.text if self.output_type is None else self.output_type.read(reply.text)


@dataclass(frozen=True, kw_only=True)
class Generate(Completion):
    """One completion a row."""

    endpoint: ClassVar[str] = "generate"

    def request(self, item: WorkItem) -> Request[GenerateReply]:
        """Return the request for a row."""
        prompt, variant = item.prompt, item.variant
        if variant.feedback is not None:
            prompt += f"\n\nYour earlier answer was:\n\n{variant.rejected_answer}\n\n{_correction(variant.feedback)}"
        return GenerateRequest(
            prompt=prompt,
            images=list(item.images) or None,
            system=self.system,
            **self._common_fields(variant),
        )


@dataclass(frozen=True, kw_only=True)
class Chat(Completion):
    """One assistant message a row. The prompt of a row is its messages, as JSON."""

    endpoint: ClassVar[str] = "chat"

    def readable(self, prompt: str) -> str:
        """Return the messages of a row as people read them: each with its role in front."""
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in json.loads(prompt))

    def request(self, item: WorkItem) -> Request[ChatReply]:
        """Return the request for a row."""
        variant = item.variant
        messages = json.loads(item.prompt)
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        if item.images:
            # A model sees the images of the message that asks about them.
            messages[-1]["images"] = list(item.images)
        if variant.feedback is not None:
            messages.append({"role": "assistant", "content": variant.rejected_answer})
            messages.append({"role": "user", "content": _correction(variant.feedback)})
        return ChatRequest(messages=messages, **self._common_fields(variant))


def _correction(feedback: str) -> str:
    """Return what the model is told about its bad answer."""
    return f"This is no good: {feedback}. Answer again, with nothing but JSON that fits the schema."


def unload(model: str) -> GenerateRequest:
    """Return the request that unloads a model of any kind. Servers before 0.3.11 do so after its last request."""
    return GenerateRequest(model=model, keep_alive=0)
