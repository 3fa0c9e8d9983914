"""From a reply, or an error, to the outcome of a row. Nothing is made up: what is no good fails, and says why."""

import re
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
from ollama_provider.api.schemas import ChatReply, ChatRequest, GenerateReply, GenerateRequest
from ollama_provider.api.truncation import prompt_was_cut
from ollama_provider.batch.records import OnTruncation, Outcome
from ollama_provider.batch.requests.repair import RepairStrategy, Variant
from ollama_provider.batch.requests.tasks import Chat, Generate
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.store.journal import shared_fields

_OUTCOME = frozenset(field.name for field in fields(Outcome))
_FORMAT = re.compile(r"format|schema|grammar", re.IGNORECASE)


@dataclass(frozen=True)
class AnswerValidator:
    """Decides what a reply is worth.

    Attributes:
        task: knows the result in a reply.
        host: base URL of the server, for errors.
        model: name of the model, for errors.
        refuses_long_prompts: the server answers 400 to a prompt over the context when it is told ``truncate: false``.
        context_length: tokens that the model was trained for; None if the server does not say.
        on_truncation, allow_cut: see `BatchSpec`.
        repair: what to do for an answer that does not fit the schema; None for text.
    """

    task: Generate | Chat
    host: str
    model: str
    refuses_long_prompts: bool
    context_length: int | None = None
    on_truncation: OnTruncation = "dead_letter"
    allow_cut: bool = False
    repair: RepairStrategy | None = None

    def accept(
        self, item: WorkItem, request: GenerateRequest | ChatRequest, reply: GenerateReply | ChatReply, seconds: float
    ) -> list[Outcome]:
        """Return the outcome of a good reply.

        Raises:
            CutPromptError: a part of the prompt was dropped, and that is no good here.
            CutAnswerError: the answer is not complete, and that is no good here.
            RejectedReplyError: the task finds that it is no good.
        """
        variant = item.variant
        prompt_cut = variant.truncate or self._cut_unasked(request, reply)
        if prompt_cut and self.on_truncation != "flag":
            raise self._error(CutPromptError, f"{reply.prompt_eval_count} tokens of the prompt were read")
        if reply.answer_cut and not self.allow_cut:
            raise self._error(CutAnswerError, f"the answer was cut after {reply.eval_count} tokens")
        judged = self.repair is not None
        return [
            Outcome(
                key=item.key,
                status="ok",
                output=self.task.output(reply),
                attempts=item.attempts + len(variant.repairs) + 1,
                prompt_cut=prompt_cut,
                rungs=variant.repairs,
                request=item.request_key,
                reply=self.task.raw(reply) if judged else None,
                **_measures(reply, seconds),
            )
        ]

    def _cut_unasked(self, request: GenerateRequest | ChatRequest, reply: GenerateReply | ChatReply) -> bool:
        if self.refuses_long_prompts:
            return False
        trained = self.context_length if request.model == self.model else None
        return prompt_was_cut(request, reply, context_length=trained)

    def _error(self, kind: type[OllamaError], what: str) -> OllamaError:
        return kind(what, host=self.host, model=self.model)

    def reject(
        self, item: WorkItem, error: OllamaError, reply: GenerateReply | ChatReply | None, seconds: float
    ) -> Outcome:
        """Return the outcome of a row that failed for good."""
        kept: dict[str, Any] = {} if reply is None else {"reply": self.task.raw(reply), **_measures(reply, seconds)}
        return Outcome(
            key=item.key,
            status="failed",
            error={"class": type(error).__name__, "text": str(error)},
            attempts=(item.attempts or 1) + len(item.variant.repairs),
            prompt_cut=isinstance(error, CutPromptError),
            rungs=item.variant.repairs,
            request=item.request_key if reply is not None and self.repair is not None else None,
            **kept,
        )

    def next_variant(
        self, item: WorkItem, error: OllamaError, reply: GenerateReply | ChatReply | None
    ) -> Variant | None:
        """Return the variant in which the row is to be asked at once again; None if that is no help."""
        variant = item.variant
        if isinstance(error, ContextLengthError):
            if self.repair is not None and variant.feedback is not None:
                return self.repair.without_feedback(variant)
            if self.on_truncation == "flag" and not variant.truncate:
                return replace(variant, truncate=True)
            return None
        if self.repair is None or reply is None or not isinstance(error, CutAnswerError | InvalidOutputError):
            return None
        return self.repair.next_variant(variant, reply, error.what)

    def revalidate(self, key: str, line: Mapping[str, Any]) -> tuple[Outcome, str] | None:
        """Judge a kept raw reply anew, by a schema that it was not asked for.

        Args:
            key: of the work with the new schema.
            line: of a part, with the reply and its provenance.

        Returns:
            The outcome and what it has in common with those of its run, or None: the row must be asked.
        """
        if self.task.output_type is None or (line["answer_cut"] and not self.allow_cut):
            return None
        if line["prompt_cut"] and self.on_truncation != "flag":
            return None
        try:
            output = self.task.output_type.read(line["reply"])
        except InvalidOutputError:
            return None
        known = {name: line[name] for name in _OUTCOME if name in line}
        known |= {"key": key, "status": "ok", "output": output, "error": None}
        return Outcome(**known), shared_fields({name: line[name] for name in line if name not in _OUTCOME})

    def is_final(self, error: OllamaError) -> bool:
        """Tell whether the row has failed for good, whatever attempts are left: its repair has ended."""
        return self.repair is not None and isinstance(error, RejectedReplyError)

    def ends_batch(self, error: OllamaError, *, answered: bool) -> bool:
        """Tell whether the batch ends because of this one row; *answered* says that another one got a good answer."""
        if self.on_truncation == "fail" and isinstance(error, ContextLengthError | CutPromptError):
            return True
        # The server cannot take the schema, and it is the same for all rows.
        return (
            not answered
            and self.repair is not None
            and type(error) is BadRequestError
            and bool(_FORMAT.search(error.what))
        )


def _measures(reply: GenerateReply | ChatReply, seconds: float) -> dict[str, Any]:
    speed = reply.tokens_per_second
    return {
        "thinking": getattr(reply, "thinking", None) or None,
        "prompt_tokens": reply.prompt_eval_count or None,
        "tokens": reply.eval_count or None,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(speed, 1) if speed is not None else None,
        "done_reason": reply.done_reason,
        "answer_cut": reply.answer_cut,
    }
