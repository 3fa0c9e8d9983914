"""From a reply, or an error, to the outcome of a row. Nothing is made up: what is no good fails, and says why."""

from dataclasses import dataclass
from typing import Any

from ollama_provider.api.errors import ContextLengthError, CutAnswerError, CutPromptError, OllamaError
from ollama_provider.api.schemas import GenerateRequest, InferenceReply
from ollama_provider.api.truncation import prompt_was_cut
from ollama_provider.batch.plan import Ticket
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.spec import OnTruncation
from ollama_provider.batch.tasks import Task


@dataclass(frozen=True)
class Judge:
    """Decides what a reply is worth.

    Attributes:
        task: knows the result in a reply.
        host: base URL of the server, for errors.
        model: name of the model, for errors.
        refuses_long_prompts: the server answers 400 to a prompt over the context when it is told ``truncate: false``.
        on_truncation, allow_cut: see `BatchSpec`.
    """

    task: Task
    host: str
    model: str
    refuses_long_prompts: bool
    on_truncation: OnTruncation = "dead_letter"
    allow_cut: bool = False

    def accept(
        self, key: str, ticket: Ticket, request: GenerateRequest, reply: InferenceReply, seconds: float
    ) -> Outcome:
        """Return the outcome of a good reply.

        Raises:
            CutPromptError: a part of the prompt was dropped, and that is no good here.
            CutAnswerError: the answer is not complete, and that is no good here.
            RejectedReplyError: the task finds that it is no good.
        """
        prompt_cut = ticket.cut_allowed or self._cut_unasked(request, reply)
        if prompt_cut and self.on_truncation != "flag":
            raise self._error(CutPromptError, f"{reply.prompt_eval_count} tokens of the prompt were read")
        if reply.answer_cut and not self.allow_cut:
            raise self._error(CutAnswerError, f"the answer was cut after {reply.eval_count} tokens")
        return Outcome(
            key=key,
            status="ok",
            output=self.task.output(reply),
            attempts=ticket.attempts + 1,
            prompt_cut=prompt_cut,
            **_measures(reply, seconds),
        )

    def _cut_unasked(self, request: GenerateRequest, reply: InferenceReply) -> bool:
        return not self.refuses_long_prompts and prompt_was_cut(request, reply)

    def _error(self, kind: type[OllamaError], what: str) -> OllamaError:
        return kind(what, host=self.host, model=self.model)

    def reject(
        self, key: str, ticket: Ticket, error: OllamaError, reply: InferenceReply | None, seconds: float
    ) -> Outcome:
        """Return the outcome of a row that failed for good."""
        kept: dict[str, Any] = {} if reply is None else {"reply": self.task.raw(reply), **_measures(reply, seconds)}
        return Outcome(
            key=key,
            status="failed",
            error={"class": type(error).__name__, "text": str(error)},
            attempts=ticket.attempts or 1,
            prompt_cut=isinstance(error, CutPromptError),
            **kept,
        )

    def let_it_cut(self, ticket: Ticket, error: OllamaError) -> bool:
        """Tell whether the row is to be asked again with leave to cut its prompt."""
        return self.on_truncation == "flag" and isinstance(error, ContextLengthError) and not ticket.cut_allowed

    def ends_batch(self, error: OllamaError) -> bool:
        """Tell whether the batch ends because of this one row."""
        return self.on_truncation == "fail" and isinstance(error, ContextLengthError | CutPromptError)


def _measures(reply: InferenceReply, seconds: float) -> dict[str, Any]:
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
