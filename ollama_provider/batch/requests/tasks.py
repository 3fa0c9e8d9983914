"""What the engine needs of an endpoint: how to ask for rows, and what the replies are worth.

`Generate` and `Chat` (`tasks.py`, judged in `replies.py`) and `Embed` (`embedding.py`) are such.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from ollama_provider.api.errors import OllamaError
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
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.requests.repair import Variant, correction, options_for, prompt_for
from ollama_provider.batch.requests.work_item import WorkItem


class Task(Protocol):
    """How to ask for rows."""

    @property
    def model(self) -> str:
        """Name to ask for, without digest."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do, in the words of ``/api/show``."""

    @property
    def sent_options(self) -> Options:
        """The options with the context that was chosen."""

    @property
    def schema(self) -> Any:
        """The schema of an answer, as plain data; None where there is none."""

    def identity(self) -> Mapping[str, Any]:
        """Return what bears on the answer, as plain data, but prompt, images, model and schema."""

    def needs_own_request(self, prompt: str) -> bool:
        """Tell whether a row shall not share its request."""

    def request(self, item: WorkItem) -> Request[Any]:
        """Return the request for an item and its rest."""

    def load(self) -> Request[Any]:
        """Return the request that only loads the model, with the options of the run."""


class ReplyValidator(Protocol):
    """What replies are worth. A reply is of the kind that the task's requests have."""

    def accept(self, item: WorkItem, request: Any, reply: Any, seconds: float) -> list[Outcome]:
        """Return the outcomes of a good reply: the item's and its rest'.

        Raises:
            RejectedReplyError: it is no good.
        """

    def reject(self, item: WorkItem, error: OllamaError, reply: Any, seconds: float) -> Outcome:
        """Return the outcome of a row that failed for good; *reply* is None if none came."""

    def next_variant(self, item: WorkItem, error: OllamaError, reply: Any) -> Variant | None:
        """Return the variant in which the row is to be asked at once again; None if that is no help."""

    def revalidate(self, key: str, line: Mapping[str, Any]) -> tuple[Outcome, str] | None:
        """ReplyValidator a kept raw reply anew.

        Args:
            key: of the work with the new schema.
            line: of a part, with the reply and its provenance.

        Returns:
            The outcome and what it has in common with those of its run, or None: the row must be asked.
        """

    def is_final(self, error: OllamaError) -> bool:
        """Tell whether the row has failed for good, whatever attempts are left."""

    def ends_batch(self, error: OllamaError, *, answered: bool) -> bool:
        """Tell whether the batch ends because of this one row; *answered* says that another one got a good answer."""


# FROM batch.tasks: What is asked for each row, and which part of the reply is the result. A task is the one place that


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What generate and chat have in common.

    Attributes:
        model: name to ask for, without digest.
        options: as the user gave them.
        num_ctx: the context to ask for, where the options name none.
        system, keep_alive, think: see `BatchSpec`.
        output_type: what the answer must look like; None for text.
        fallback_model: see `BatchSpec`; no part of the identity, since it answers the same question.
        sees: rows have images.
    """

    model: str
    options: Options
    num_ctx: int | None = None
    system: str | None = None
    keep_alive: KeepAlive | None = None
    think: Think = False
    output_type: Output | None = None
    fallback_model: str | None = None
    sees: bool = False

    endpoint: ClassVar[str]

    @property
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do, in the words of ``/api/show``."""
        return ("completion", *(("thinking",) if self.think else ()), *(("vision",) if self.sees else ()))

    def identity(self) -> Mapping[str, Any]:
        """Return what bears on the answer, as plain data, but prompt, images, model and schema."""
        return {
            "task": self.endpoint,
            "options": self.options.model_dump(exclude_none=True),
            "system": self.system,
            "think": self.think,
        }

    @property
    def schema(self) -> Any:
        """The schema of the answer, as plain data; None for text."""
        return None if self.output_type is None else self.output_type.format

    @cached_property
    def sent_options(self) -> Options:
        """The options with the context that was chosen."""
        return self.options if self.num_ctx is None else self.options.model_copy(update={"num_ctx": self.num_ctx})

    def load(self) -> GenerateRequest:
        """Return the request that only loads the model, with the options of the run."""
        return GenerateRequest(model=self.model, options=self.sent_options, keep_alive=self.keep_alive)

    def needs_own_request(self, prompt: str) -> bool:  # noqa: ARG002  # of a pack's texts; see `Task`
        """See `Task`: each row has a request of its own in any case."""
        return True

    def _shared(self, variant: Variant) -> dict[str, Any]:
        """Return the fields that both endpoints know."""
        return {
            "model": self.fallback_model if variant.fallback else self.model,
            "format": self.schema,
            "options": options_for(self.sent_options, variant),
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
        return GenerateRequest(
            prompt=prompt_for(item.prompt, item.variant),
            images=list(item.images) or None,
            system=self.system,
            **self._shared(item.variant),
        )


@dataclass(frozen=True, kw_only=True)
class Chat(Completion):
    """One answer of an assistant a row. The prompt of a row is its turns, as JSON."""

    endpoint: ClassVar[str] = "chat"

    def request(self, item: WorkItem) -> Request[ChatReply]:
        """Return the request for a row."""
        messages = json.loads(item.prompt)
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        if item.images:
            # The model sees what comes with the turn that asks for it.
            messages[-1]["images"] = list(item.images)
        if item.variant.feedback is not None:
            messages.append({"role": "assistant", "content": item.variant.answer})
            messages.append({"role": "user", "content": correction(item.variant)})
        return ChatRequest(messages=messages, **self._shared(item.variant))


def unload(model: str) -> GenerateRequest:
    """Return the request that takes a model of any kind out of memory (0.3.11; before, after its last request)."""
    return GenerateRequest(model=model, keep_alive=0)
