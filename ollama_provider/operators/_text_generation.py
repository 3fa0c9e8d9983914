"""What generate and chat share: formats, cut prompts and answers, and what goes to XCom."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ollama_provider.api.arguments import one_of
from ollama_provider.api.errors import (
    CutAnswerError,
    CutPromptError,
    InvalidOutputError,
    InvalidRequestError,
    RejectedReplyError,
)
from ollama_provider.operators._deferrable import DeferrableOperator
from ollama_provider.operators._images import capabilities_for

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import ChatReply, ChatRequest, GenerateReply, GenerateRequest, Think
    from ollama_provider.api.structured_output import Output

    Answer = GenerateReply | ChatReply


class TextGenerationOperator(DeferrableOperator):
    """A task that asks a model once.

    A subclass names its kind of request and, in `request_fields`, the fields that only this kind has.

    Args:
        options: the model's options (``{"temperature": 0, "num_ctx": 8192}``); they are laid over the connection's,
            key by key. A misspelt name is refused.
        keep_alive: how long the model stays in memory afterwards: seconds, ``"5m"``, 0 to unload, -1 for ever.
        think: reasoning on or off, or ``"low"``, ``"medium"``, ``"high"``, ``"max"``. Off by default, and sent
            explicitly, since servers from 0.12.5 on let a model think that nobody asked to. What is thought is no
            part of the answer, also where it stands there between ``<think>`` and ``</think>``; ``output="reply"`` has
            it as ``thinking``. It counts towards ``num_predict``: where it takes all of it, there is no answer and the
            task fails.
        format: ``"json"`` or a JSON schema (dict, or JSON text out of a template). The answer is validated and goes to
            XCom as data.
        output_type: instead of *format*: a pydantic class, a dataclass, or ``list[...]`` of one. XCom gets plain data.
        output: ``"text"``: XCom gets the answer, as text or, with a format, as data. ``"reply"``: the server's whole
            reply as a dict, with ``answer_cut`` and ``prompt_cut`` added and, with a format, the data as ``data``.
        on_truncation: what to do when the context was too small for the prompt, or the answer ended at
            ``num_predict``: ``"warn"`` in the log and flag it, or ``"fail"``.
        stream_to: show the answer while it comes: ``"log"``, every 5 seconds in the task's log (which then holds the
            answer), or a file on any ``ObjectStoragePath``. The wait is in the worker then. An answer that breaks off
            is not asked for again by itself, since a part of it was seen; the task's retries do that.
        images_from: a folder or a bucket, on any ``ObjectStoragePath``. Only with it are images read that a text names,
            and only such as lie in there, with ``..`` and links followed: a text may come from a template or another
            task, and who writes it would choose what the worker reads. A path that does not begin with ``/`` or a
            protocol begins in it. An ``ObjectStoragePath`` or ``pathlib.Path`` in the DAG is always read.
        auto_pull: pull the model if the server lacks it; None is the connection's setting.
        first_token_timeout: seconds for queue, load and prompt; None is the connection's setting.
        idle_timeout: seconds between two pieces of the answer; None is the connection's setting.
        total_timeout: seconds for one attempt in all; None is the connection's setting.

    A second XCom value, ``usage``, holds server, model, digest, tokens, seconds, tokens a second and the two flags.
    """

    template_fields: Sequence[str] = (
        *DeferrableOperator.template_fields,
        "options",
        "keep_alive",
        "format",
        "stream_to",
        "images_from",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"options": "json", "format": "json"}
    hook_overrides = ("auto_pull", "first_token_timeout", "idle_timeout", "total_timeout")

    def __init__(
        self,
        *,
        options: dict[str, Any] | None = None,
        keep_alive: float | str | None = None,
        think: "Think" = False,
        format: Literal["json"] | dict[str, Any] | str | None = None,  # noqa: A002  # Ollama's name of the field
        output_type: Any = None,
        output: Literal["text", "reply"] = "text",
        on_truncation: Literal["warn", "fail"] = "warn",
        stream_to: Any = None,
        images_from: Any = None,
        auto_pull: bool | None = None,
        first_token_timeout: float | None = None,
        idle_timeout: float | None = None,
        total_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.keep_alive = keep_alive
        self.think = think
        self.format = format
        self.output_type = output_type
        # Not self.output: every operator has that name, for the XComArg of its result.
        self.answer_as = output
        self.on_truncation = on_truncation
        self.stream_to = stream_to
        self.images_from = images_from
        self.auto_pull = auto_pull
        self.first_token_timeout = first_token_timeout
        self.idle_timeout = idle_timeout
        self.total_timeout = total_timeout

    @property
    def request_kind(self) -> "type[GenerateRequest] | type[ChatRequest]":
        """The kind of request."""
        raise NotImplementedError

    def request_fields(self) -> dict[str, Any]:
        """Return the fields that only this kind of request has, checked for being empty."""
        raise NotImplementedError

    @property
    def may_cut(self) -> bool:
        """Whether a part of the prompt will do."""
        return self.on_truncation == "warn"

    def capabilities(self, fields: dict[str, Any]) -> set[str]:
        """Return what a model must be able to do for a request with these fields, besides answering."""
        thinking = {"thinking"} if self.think else set()
        return thinking | capabilities_for(self.images_of(fields))

    def images_of(self, fields: dict[str, Any]) -> Iterable[bytes]:
        """Return the images among the fields of `request_fields`."""
        raise NotImplementedError

    def perform(self, context: "Context") -> Any:
        """Ask, and return the answer."""
        from ollama_provider.operators._server_models import require

        output, fields = self.read_format(), self.request_fields()
        request = self.hook.request(
            self.request_kind,
            model=self.model,
            options=self.options,
            keep_alive=self.keep_alive,
            think=self.think,
            format=output and output.format,
            truncate=False,
            **fields,
        )
        require(self.hook, request.model, self.capabilities(fields))
        trained = self.trained_length(request)
        return self.send_and_finish(context, request, **({} if trained is None else {"trained": trained}))

    def trained_length(self, request: "GenerateRequest | ChatRequest") -> int | None:
        """Return how many tokens the model was trained for, where a size of the context is asked for.

        A larger one than that is not to be had; servers before 0.12.6 cut the prompt at it without a word.
        """
        from ollama_provider.api.truncation import oversized_context
        from ollama_provider.operators._server_models import show_if_there

        num_ctx = request.options.num_ctx if request.options else None
        shown = None if num_ctx is None else show_if_there(self.hook, request.model)
        trained = None if shown is None else shown.context_length
        if warning := oversized_context(num_ctx, trained):
            self.log.warning("Model %s: %s", request.model, warning)
        return trained

    @property
    def tied_to_worker(self) -> str | None:
        """What the wait is needed for in the worker, so that it cannot be handed over."""
        return "the answer is shown while it comes" if self.stream_to else None

    def send_and_finish(self, context: "Context", request: Any, **remembered: Any) -> Any:
        """Wait for the answer, where it can be waited for, and `finish`."""
        if self.deferrable and self.tied_to_worker:
            self.log.info("The wait is not deferred: %s", self.tied_to_worker)
            return self.finish(context, request, self.hook.send, **remembered)
        return super().send_and_finish(context, request, **remembered)

    def finish(self, context: "Context", request: Any, send: "Send", trained: int | None = None, **_: Any) -> Any:
        """Take the answer and deliver it."""
        from ollama_provider.operators._stream_to import showing, shown

        with ExitStack() as stack:
            if self.stream_to:
                send = shown(self.hook, stack.enter_context(showing(self.stream_to, self.log)))
            replies, prompt_cut = self.generate(request, send, trained)
        return self.deliver(context, replies, prompt_cut=prompt_cut, output=self.read_format())

    def generate(self, request: Any, send: "Send", trained: int | None) -> "tuple[Sequence[Answer], bool]":
        """Return the model's replies, the last of which is the answer, and whether a part of a prompt was dropped.

        Args:
            request: what to ask.
            send: asks the server.
            trained: tokens the model was trained for, where that is known.
        """
        from ollama_provider.api.request_flow import inference_flow, run_flow

        reply, prompt_cut = run_flow(inference_flow(request, may_cut=self.may_cut, trained=trained), send)
        return [reply], prompt_cut

    def read_format(self) -> "Output | None":
        """Return what the answer must look like; None for plain text."""
        from ollama_provider.api.structured_output import Output

        one_of("output", self.answer_as, "text", "reply")
        one_of("on_truncation", self.on_truncation, "warn", "fail")
        if self.format is not None and self.output_type is not None:
            raise InvalidRequestError("give format or output_type, not both")
        wanted = self.output_type if self.format is None else self.format
        return None if wanted is None else Output(wanted)

    def deliver(
        self, context: "Context", replies: "Sequence[Answer]", *, prompt_cut: bool, output: "Output | None"
    ) -> Any:
        """Log and push the usage, judge the answer, and return what goes to XCom."""
        reply = replies[-1]
        cuts = {"answer_cut": reply.answer_cut, "prompt_cut": prompt_cut}
        numbers = self.numbers(replies)
        self.report(context, reply.model, numbers | cuts)
        for fault in self.faults(reply, prompt_cut=prompt_cut):
            if self.on_truncation == "fail" or _is_empty(reply):
                raise fault
            self.log.warning("%s", fault)
        answer = self.read_answer(reply, output)
        if self.answer_as == "text":
            return answer
        data = {} if output is None else {"data": answer}
        return reply.model_dump(mode="json", exclude_none=True) | cuts | data

    def numbers(self, replies: "Sequence[Answer]") -> dict[str, Any]:
        """Return tokens and seconds of all replies together."""
        tokens, duration = (sum(getattr(reply, name) for reply in replies) for name in ("eval_count", "eval_duration"))
        return {
            "prompt_tokens": sum(reply.prompt_eval_count for reply in replies),
            "tokens": tokens,
            "seconds": round(sum(reply.seconds for reply in replies), 3),
            "load_seconds": round(sum(reply.load_seconds for reply in replies), 3),
            "queue_seconds": round(sum(reply.queue_seconds for reply in replies), 3),
            "tokens_per_second": round(tokens / duration * 1e9, 1) if tokens and duration else None,
            "done_reason": replies[-1].done_reason,
        }

    def faults(self, reply: "Answer", *, prompt_cut: bool) -> Iterator[RejectedReplyError]:
        """Yield what is wrong with an answer that came."""
        where: dict[str, Any] = {"host": self.hook.settings.base_url, "model": reply.model}
        if prompt_cut:
            yield CutPromptError("the prompt was longer than the context, and the server dropped a part of it", **where)
        if reply.answer_cut:
            what = f"the answer was cut after {reply.eval_count} tokens"
            if _is_empty(reply):
                what += ", all of them spent on thinking: there is no answer"
                where["advice"] = "Raise options.num_predict, or let the model think less, or not at all (think)."
            yield CutAnswerError(what, **where)

    def read_answer(self, reply: "Answer", output: "Output | None") -> Any:
        """Return the answer as text or, with a format, as data."""
        if output is None:
            return reply.text
        if _is_empty(reply) and not reply.answer_cut:
            # Models that always think (gpt-oss) do so in generate, where the format already holds for the thoughts.
            raise RejectedReplyError(
                "the answer is empty, and the thinking is not",
                host=self.hook.settings.base_url,
                model=reply.model,
                advice="Use OllamaChatOperator, where a model thinks first and answers in the format then.",
            )
        try:
            return output.read(reply.text)
        except InvalidOutputError as error:
            error.host, error.model = self.hook.settings.base_url, reply.model
            # Half a JSON text is no news when the answer was cut, and asking again would cut it again.
            raise next(self.faults(reply, prompt_cut=False), error) from None


def _is_empty(reply: "Answer") -> bool:
    """Say whether the model has thought, and answered nothing."""
    return bool(reply.thinking) and not reply.text.strip() and not reply.tool_calls
