"""What is asked for each row, and which part of the reply is the result.

A task is the one place that knows an endpoint; the rest of the batch knows prompts, keys and outcomes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from ollama_provider.api.schemas import GenerateReply, GenerateRequest, KeepAlive, Options, Request, Think


class Task(Protocol):
    """How to ask for one row."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do, in the words of ``/api/show``."""

    def identity(self) -> Mapping[str, Any]:
        """Return what bears on the answer, as plain data, but prompt, images and model."""

    def request(self, prompt: str, images: Sequence[str], *, cut_allowed: bool) -> Request[Any]:
        """Return the request for a row."""

    def load(self) -> Request[Any]:
        """Return the request that only loads the model, with the options of the run."""

    def raw(self, reply: Any) -> str:
        """Return the answer as the model gave it."""

    def output(self, reply: Any) -> Any:
        """Return the result of a reply.

        Raises:
            RejectedReplyError: it is no good.
        """


@dataclass(frozen=True)
class Generate:
    """One completion a row.

    Attributes:
        model: name to ask for, without digest.
        options: as the user gave them.
        num_ctx: the context to ask for, where the options name none.
        system, keep_alive, think: see `BatchSpec`.
    """

    model: str
    options: Options
    num_ctx: int | None = None
    system: str | None = None
    keep_alive: KeepAlive | None = None
    think: Think = False

    endpoint: ClassVar[str] = "generate"

    @property
    def capabilities(self) -> Sequence[str]:
        """See `Task`."""
        return ("completion", "thinking") if self.think else ("completion",)

    def identity(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {
            "task": self.endpoint,
            "options": self.options.model_dump(exclude_none=True),
            "system": self.system,
            "think": self.think,
        }

    @cached_property
    def sent_options(self) -> Options:
        """The options with the context that was chosen."""
        return self.options if self.num_ctx is None else self.options.model_copy(update={"num_ctx": self.num_ctx})

    def request(self, prompt: str, images: Sequence[str], *, cut_allowed: bool) -> GenerateRequest:
        """See `Task`."""
        return GenerateRequest(
            model=self.model,
            prompt=prompt,
            images=list(images) or None,
            system=self.system,
            options=self.sent_options,
            keep_alive=self.keep_alive,
            think=self.think,
            truncate=None if cut_allowed else False,
        )

    def load(self) -> GenerateRequest:
        """See `Task`."""
        return GenerateRequest(model=self.model, options=self.sent_options, keep_alive=self.keep_alive)

    def raw(self, reply: GenerateReply) -> str:
        """See `Task`."""
        return reply.text

    def output(self, reply: GenerateReply) -> str:
        """See `Task`."""
        return reply.text
