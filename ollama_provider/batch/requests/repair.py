"""How an attempt for a row differs from the ordinary request, and the ladder of such variants for structured output.

A local model misses a schema for a few known reasons: it was not told what was wrong, the answer was cut, it spent
itself on reasoning, or it is too small. Each repair of the ladder answers one of them and is used once for a row; a row
that fails on the last one is failed, with the raw reply. No repair ever puts a value in the model's place. No network.
"""

from dataclasses import dataclass, replace
from typing import Literal

from ollama_provider.api.schemas import InferenceReply, Options, Think

Repair = Literal["asked_again", "more_tokens", "no_thinking", "fallback_model"]

#: How much longer the second answer may be.
_MORE = 4
#: Characters of a bad answer that are shown to the model again: the rest says no more about what is wrong.
_QUOTED = 4000


@dataclass(frozen=True, slots=True)
class Variant:
    """How an attempt differs from the ordinary request.

    Attributes:
        truncate: the server may cut the prompt.
        spans: begin and end of the overlapping pieces that the text is sent in; none is the whole.
        repairs: what was tried on the ladder, in this order.
        answer: the answer that was no good, beginning only.
        feedback: what was wrong with it; None to ask as if for the first time.
        num_predict: bound of the answer in tokens; None is the run's own.
        thinking: False switches the model's reasoning off; True leaves it as the run has it.
        fallback: ask the fallback model.
    """

    truncate: bool = False
    spans: tuple[tuple[int, int], ...] = ()
    repairs: tuple[Repair, ...] = ()
    answer: str = ""
    feedback: str | None = None
    num_predict: int | None = None
    thinking: bool = True
    fallback: bool = False


UNCHANGED = Variant()


@dataclass(frozen=True)
class RepairStrategy:
    """What can be done for a row whose answer does not fit the schema.

    Attributes:
        num_predict: bound of an answer in tokens; None or negative is none, and then more of it is no help.
        think: reasoning of the run.
        has_fallback: there is a second model.
    """

    num_predict: int | None
    think: Think
    has_fallback: bool

    def next_variant(self, variant: Variant, reply: InferenceReply, what: str) -> Variant | None:
        """Return the variant of the next attempt; None when the ladder ends.

        Args:
            variant: of the attempt that failed.
            reply: its answer: cut, or complete and wrong.
            what: is wrong with it; names places and rules, never values.
        """
        repair = self._next(variant, reply)
        if repair is None:
            return None
        variant = replace(variant, repairs=(*variant.repairs, repair))
        match repair:
            case "asked_again":
                return replace(variant, answer=_text(reply)[:_QUOTED], feedback=what)
            case "more_tokens":
                return replace(variant, num_predict=_MORE * (self.num_predict or 1))
            case "no_thinking":
                return replace(variant, thinking=False)
        return replace(variant, fallback=True, answer="", feedback=None)

    def without_feedback(self, variant: Variant) -> Variant:
        """Return the variant that shows the model no bad answer: both together were longer than the context."""
        return replace(variant, answer="", feedback=None)

    def _next(self, variant: Variant, reply: InferenceReply) -> Repair | None:
        repairs: list[Repair] = []
        if reply.answer_cut:
            repairs += ["more_tokens"] if (self.num_predict or 0) > 0 else []
        elif _text(reply).strip():
            repairs += ["asked_again"]
        repairs += ["no_thinking"] if self.think else []
        repairs += ["fallback_model"] if self.has_fallback else []
        return next((repair for repair in repairs if repair not in variant.repairs), None)


def _text(reply: InferenceReply) -> str:
    text: str = getattr(reply, "text", "")
    return text


def options_for(options: Options, variant: Variant) -> Options:
    """Return the options of an attempt."""
    return options if variant.num_predict is None else options.model_copy(update={"num_predict": variant.num_predict})


def prompt_for(prompt: str, variant: Variant) -> str:
    """Return the prompt of an attempt: with the bad answer, and what is wrong with it, behind it."""
    if variant.feedback is None:
        return prompt
    return f"{prompt}\n\nYour earlier answer was:\n\n{variant.answer}\n\n{correction(variant)}"


def correction(variant: Variant) -> str:
    """Return what the model is told about its bad answer."""
    return f"This is no good: {variant.feedback}. Answer again, with nothing but JSON that fits the schema."
