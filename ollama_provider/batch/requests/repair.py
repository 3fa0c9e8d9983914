"""How an attempt for a row differs from the ordinary request, and the ladder of such forms for structured output.

A local model misses a schema for a few known reasons: it was not told what was wrong, the answer was cut, it spent
itself on reasoning, or it is too small. Each rung of the ladder answers one of them and is used once for a row; a row
that fails on the last one is failed, with the raw reply. No rung ever puts a value in the model's place. No network.
"""

from dataclasses import dataclass, replace
from typing import Literal

from ollama_provider.api.schemas import InferenceReply, Options, Think

Rung = Literal["asked_again", "more_tokens", "no_thinking", "fallback_model"]

#: How much longer the second answer may be.
_MORE = 4
#: Characters of a bad answer that are shown to the model again: the rest says no more about what is wrong.
_QUOTED = 4000


@dataclass(frozen=True, slots=True)
class Form:
    """How an attempt differs from the ordinary request.

    Attributes:
        cut_allowed: the server may cut the prompt.
        spans: begin and end of the overlapping pieces that the text is sent in; none is the whole.
        rungs: what was tried on the ladder, in this order.
        answer: the answer that was no good, beginning only.
        complaint: what was wrong with it; None to ask as if for the first time.
        num_predict: bound of the answer in tokens; None is the run's own.
        thinking: False switches the model's reasoning off; True leaves it as the run has it.
        fallback: ask the fallback model.
    """

    cut_allowed: bool = False
    spans: tuple[tuple[int, int], ...] = ()
    rungs: tuple[Rung, ...] = ()
    answer: str = ""
    complaint: str | None = None
    num_predict: int | None = None
    thinking: bool = True
    fallback: bool = False


ORDINARY = Form()


@dataclass(frozen=True)
class Ladder:
    """What can be done for a row whose answer does not fit the schema.

    Attributes:
        num_predict: bound of an answer in tokens; None or negative is none, and then more of it is no help.
        think: reasoning of the run.
        has_fallback: there is a second model.
    """

    num_predict: int | None
    think: Think
    has_fallback: bool

    def climb(self, form: Form, reply: InferenceReply, what: str) -> Form | None:
        """Return the form of the next attempt; None when the ladder ends.

        Args:
            form: of the attempt that failed.
            reply: its answer: cut, or complete and wrong.
            what: is wrong with it; names places and rules, never values.
        """
        rung = self._next(form, reply)
        if rung is None:
            return None
        form = replace(form, rungs=(*form.rungs, rung))
        match rung:
            case "asked_again":
                return replace(form, answer=_text(reply)[:_QUOTED], complaint=what)
            case "more_tokens":
                return replace(form, num_predict=_MORE * (self.num_predict or 1))
            case "no_thinking":
                return replace(form, thinking=False)
        return replace(form, fallback=True, answer="", complaint=None)

    def without_complaint(self, form: Form) -> Form:
        """Return the form that shows the model no bad answer: both together were longer than the context."""
        return replace(form, answer="", complaint=None)

    def _next(self, form: Form, reply: InferenceReply) -> Rung | None:
        rungs: list[Rung] = []
        if reply.answer_cut:
            rungs += ["more_tokens"] if (self.num_predict or 0) > 0 else []
        elif _text(reply).strip():
            rungs += ["asked_again"]
        rungs += ["no_thinking"] if self.think else []
        rungs += ["fallback_model"] if self.has_fallback else []
        return next((rung for rung in rungs if rung not in form.rungs), None)


def _text(reply: InferenceReply) -> str:
    text: str = getattr(reply, "text", "")
    return text


def with_form(options: Options, form: Form) -> Options:
    """Return the options of an attempt."""
    return options if form.num_predict is None else options.model_copy(update={"num_predict": form.num_predict})


def with_complaint(prompt: str, form: Form) -> str:
    """Return the prompt of an attempt: with the bad answer, and what is wrong with it, behind it."""
    if form.complaint is None:
        return prompt
    return f"{prompt}\n\nYour earlier answer was:\n\n{form.answer}\n\n{correction(form)}"


def correction(form: Form) -> str:
    """Return what the model is told about its bad answer."""
    return f"This is no good: {form.complaint}. Answer again, with nothing but JSON that fits the schema."
