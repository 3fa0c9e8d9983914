"""What a reply is worth, and what is tried after one that is not good enough. No network.

A validator turns a reply, or the error that came instead, into the outcome of a row. It never changes or completes an
answer: a row whose answer is not acceptable fails, with the reason and the raw reply.

A local model misses a schema for a few known reasons: it was not told what was wrong, its answer was cut, it spent its
tokens on reasoning, or it is too small. `RepairStrategy` has one repair for each of them, and uses each at most once
for a row. The next attempt is described by a `Variant`, which the task turns into a request.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ollama_provider.api.errors import (
    BadRequestError,
    ContextLengthError,
    CutAnswerError,
    CutPromptError,
    InvalidOutputError,
    OllamaError,
    RejectedReplyError,
)
from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    GenerateReply,
    GenerateRequest,
    InferenceReply,
    Think,
)
from ollama_provider.api.truncation import prompt_was_cut
from ollama_provider.batch.records import OnTruncation, Outcome
from ollama_provider.batch.requests.tasks import Chat, Generate
from ollama_provider.batch.requests.work_item import Repair, Variant, WorkItem
from ollama_provider.batch.store.lines import shared_fields

_OUTCOME_FIELDS = frozenset(field.name for field in fields(Outcome))
_SCHEMA_ERROR = re.compile(r"format|schema|grammar", re.IGNORECASE)

#: How many times longer the answer may be after the repair ``more_tokens``.
_MORE_TOKENS = 4
#: Characters of a bad answer that the model is shown again. The rest would say no more about what is wrong.
_SHOWN_ANSWER = 4000


class ReplyValidator(ABC):
    """Decides what the replies of a task are worth, and what follows from its errors."""

    @abstractmethod
    def accept(self, item: WorkItem, request: Any, reply: Any, seconds: float) -> list[Outcome]:
        """Return the outcomes of a good reply, one for each item of the pack.

        Args:
            item: that was sent.
            request: as it was sent.
            reply: of the type that the request names.
            seconds: from sending the request to its last token.

        Raises:
            RejectedReplyError: the reply is not acceptable.
        """

    @abstractmethod
    def reject(self, item: WorkItem, error: OllamaError, reply: Any, seconds: float) -> Outcome:
        """Return the outcome of a row that has failed for good; *reply* is None if none came."""

    @abstractmethod
    def next_variant(self, item: WorkItem, error: OllamaError, reply: Any) -> Variant | None:
        """Return how to ask again at once, without using up an attempt; None if no variant can help."""

    def revalidate(self, key: str, line: Mapping[str, Any]) -> tuple[Outcome, str] | None:  # noqa: ARG002  # as below
        """Validate a stored raw reply against a schema that it was not asked for.

        Args:
            key: of the request with the new schema.
            line: of a part, with the reply and its provenance.

        Returns:
            The outcome and the fields that it has in common with others of its run; None if the row must be asked.
        """
        return None

    def is_final(self, error: OllamaError) -> bool:  # noqa: ARG002  # for those that override it
        """Return whether the row has failed for good, even if it has attempts left."""
        return False

    def ends_batch(self, error: OllamaError, *, answered: bool) -> bool:  # noqa: ARG002  # for those that override it
        """Return whether the error of this row ends the batch; *answered*: another row has a good answer."""
        return False


@dataclass(frozen=True)
class RepairStrategy:
    """Chooses what to try next for a row whose answer does not fit the schema.

    Attributes:
        num_predict: limit of an answer in tokens. None or negative is no limit, and then it cannot be raised.
        think: reasoning of the run.
        has_fallback: there is a second model.
    """

    num_predict: int | None
    think: Think
    has_fallback: bool

    def next_variant(self, variant: Variant, reply: InferenceReply, problem: str) -> Variant | None:
        """Return how to ask next; None when every repair was tried.

        Args:
            variant: of the attempt that failed.
            reply: its answer: cut, or complete and wrong.
            problem: what is wrong with the answer. It names places and rules, never values.
        """
        repair = next((each for each in self._repairs(reply) if each not in variant.repairs), None)
        if repair is None:
            return None
        variant = replace(variant, repairs=(*variant.repairs, repair))
        match repair:
            case "asked_again":
                return replace(variant, rejected_answer=_text(reply)[:_SHOWN_ANSWER], feedback=problem)
            case "more_tokens":
                return replace(variant, num_predict=_MORE_TOKENS * (self.num_predict or 1))
            case "no_thinking":
                return replace(variant, thinking=False)
        return replace(without_feedback(variant), fallback=True)

    def _repairs(self, reply: InferenceReply) -> list[Repair]:
        """Return what can help against this reply, in the order in which it is tried."""
        repairs: list[Repair] = []
        if reply.answer_cut:
            repairs += ["more_tokens"] if (self.num_predict or 0) > 0 else []
        elif _text(reply).strip():
            repairs += ["asked_again"]
        repairs += ["no_thinking"] if self.think else []
        repairs += ["fallback_model"] if self.has_fallback else []
        return repairs


def without_feedback(variant: Variant) -> Variant:
    """Return the variant that does not show the model its bad answer, for example since both exceed the context."""
    return replace(variant, rejected_answer="", feedback=None)


def _text(reply: InferenceReply) -> str:
    text: str = getattr(reply, "text", "")
    return text


@dataclass(frozen=True)
class AnswerValidator(ReplyValidator):
    """Validates the answers of `Generate` and `Chat`.

    Attributes:
        task: finds the result in a reply.
        host: base URL of the server, for errors.
        refuses_long_prompts: the server answers 400 to a prompt over the context when it is told ``truncate: false``.
        context_length: tokens that the model was trained for; None if the server does not say.
        on_truncation, allow_cut: see `FailurePolicy`.
        repairs: what to try for an answer that does not fit the schema; None for text.
    """

    task: Generate | Chat
    host: str
    refuses_long_prompts: bool
    context_length: int | None = None
    on_truncation: OnTruncation = "dead_letter"
    allow_cut: bool = False
    repairs: RepairStrategy | None = None

    def accept(
        self, item: WorkItem, request: GenerateRequest | ChatRequest, reply: GenerateReply | ChatReply, seconds: float
    ) -> list[Outcome]:
        """Return the outcome of a good reply.

        Raises:
            CutPromptError: a part of the prompt was dropped, which the batch does not allow.
            CutAnswerError: the answer is not complete, which the batch does not allow.
            InvalidOutputError: the answer does not fit the schema.
        """
        variant = item.variant
        prompt_cut = variant.truncate or self._prompt_was_cut(request, reply)
        if prompt_cut and self.on_truncation != "flag":
            raise self._error(CutPromptError, f"{reply.prompt_eval_count} tokens of the prompt were read")
        if reply.answer_cut and not self.allow_cut:
            raise self._error(CutAnswerError, f"the answer was cut after {reply.eval_count} tokens")
        return [
            Outcome(
                key=item.key,
                status="ok",
                output=self.task.output(reply),
                attempts=item.attempts + len(variant.repairs) + 1,
                prompt_cut=prompt_cut,
                rungs=variant.repairs,
                request=item.request_key,
                reply=None if self.repairs is None else self.task.raw(reply),
                **_measures(reply, seconds),
            )
        ]

    def _prompt_was_cut(self, request: GenerateRequest | ChatRequest, reply: GenerateReply | ChatReply) -> bool:
        if self.refuses_long_prompts:
            return False
        trained = self.context_length if request.model == self.task.model else None
        return prompt_was_cut(request, reply, context_length=trained)

    def _error(self, kind: type[OllamaError], what: str) -> OllamaError:
        return kind(what, host=self.host, model=self.task.model)

    def reject(
        self, item: WorkItem, error: OllamaError, reply: GenerateReply | ChatReply | None, seconds: float
    ) -> Outcome:
        """Return the outcome of a row that has failed for good, with the raw reply where there is one."""
        kept: dict[str, Any] = {} if reply is None else {"reply": self.task.raw(reply), **_measures(reply, seconds)}
        return Outcome(
            key=item.key,
            status="failed",
            error={"class": type(error).__name__, "text": str(error)},
            attempts=(item.attempts or 1) + len(item.variant.repairs),
            prompt_cut=isinstance(error, CutPromptError),
            rungs=item.variant.repairs,
            request=item.request_key if reply is not None and self.repairs is not None else None,
            **kept,
        )

    def next_variant(
        self, item: WorkItem, error: OllamaError, reply: GenerateReply | ChatReply | None
    ) -> Variant | None:
        """Return how to ask again at once: with a cut prompt where that is allowed, or with the next repair."""
        variant = item.variant
        if isinstance(error, ContextLengthError):
            if self.repairs is not None and variant.feedback is not None:
                return without_feedback(variant)
            if self.on_truncation == "flag" and not variant.truncate:
                return replace(variant, truncate=True)
            return None
        if self.repairs is None or reply is None or not isinstance(error, CutAnswerError | InvalidOutputError):
            return None
        return self.repairs.next_variant(variant, reply, error.what)

    def revalidate(self, key: str, line: Mapping[str, Any]) -> tuple[Outcome, str] | None:
        """Validate a stored raw reply against the schema of this run; see `ReplyValidator.revalidate`."""
        if self.task.output_type is None or (line["answer_cut"] and not self.allow_cut):
            return None
        if line["prompt_cut"] and self.on_truncation != "flag":
            return None
        try:
            output = self.task.output_type.read(line["reply"])
        except InvalidOutputError:
            return None
        known = {name: line[name] for name in _OUTCOME_FIELDS if name in line}
        known |= {"key": key, "status": "ok", "output": output, "error": None}
        return Outcome(**known), shared_fields({name: line[name] for name in line if name not in _OUTCOME_FIELDS})

    def is_final(self, error: OllamaError) -> bool:
        """Return whether every repair was tried: the same request again would bring the same answer."""
        return self.repairs is not None and isinstance(error, RejectedReplyError)

    def ends_batch(self, error: OllamaError, *, answered: bool) -> bool:
        """Return whether the batch ends: a prompt is cut and the batch forbids it, or the server refuses the schema."""
        if self.on_truncation == "fail" and isinstance(error, ContextLengthError | CutPromptError):
            return True
        # All rows have the same schema. A good answer shows that the server can take it.
        return (
            not answered
            and self.repairs is not None
            and type(error) is BadRequestError
            and bool(_SCHEMA_ERROR.search(error.what))
        )


def _measures(reply: GenerateReply | ChatReply, seconds: float) -> dict[str, Any]:
    speed = reply.tokens_per_second
    return {
        "thinking": getattr(reply, "thinking", None) or None,
        "prompt_tokens": reply.prompt_eval_count or None,
        "tokens": reply.eval_count or None,
        "seconds": round(seconds, 3),
        "queue_seconds": round(reply.queue_seconds, 3) if reply.total_duration else None,
        "tokens_per_second": round(speed, 1) if speed is not None else None,
        "done_reason": reply.done_reason,
        "answer_cut": reply.answer_cut,
    }
