"""Base class of generate and chat: output formats, truncated prompts and answers, usage, and the value for XCom."""

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
from ollama_provider.api.images import capabilities_for
from ollama_provider.operators._deferrable import DeferrableOperator
from ollama_provider.operators._storage_paths import storage_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import ChatReply, ChatRequest, GenerateReply, GenerateRequest, Think
    from ollama_provider.api.structured_output import Output

    Answer = GenerateReply | ChatReply


class TextGenerationOperator(DeferrableOperator):
    """A task that asks a model for text.

    A subclass names its type of request and, in `request_fields`, the fields that only this type has.

    Args:
        options: model options (``{"temperature": 0, "num_ctx": 8192}``). They are merged with the connection's, key by
            key, and win. A misspelt name is refused.
        keep_alive: how long the model stays in memory afterwards: seconds, ``"5m"``, 0 to unload, -1 for no limit.
        think: reasoning on or off, or ``"low"``, ``"medium"``, ``"high"``, ``"max"``. Off by default. False is sent
            explicitly, because servers since 0.12.5 let models think by default. The reasoning is not part of the
            answer, even if the server returns it there between ``<think>`` and ``</think>``; ``output="reply"`` has it
            as ``thinking``. It counts towards ``num_predict``; if it uses up all of it, the task fails for lack of an
            answer.
        format: ``"json"`` or a JSON schema (a dict, or JSON text from a template). The answer is validated and goes to
            XCom as data.
        output_type: instead of *format*: a pydantic class, a dataclass, or ``list[...]`` of one. XCom gets plain data.
        output: ``"text"``: XCom gets the answer, as text or, with a format, as data. ``"reply"``: XCom gets the
            server's whole reply as a dict, with ``answer_cut`` and ``prompt_cut`` added and, with a format, the data as
            ``data``.
        on_truncation: what happens when the prompt was longer than the context, or the answer was cut at
            ``num_predict``: ``"warn"`` logs a warning and sets a flag, ``"fail"`` fails the task.
        stream_to: where to show the answer while it is generated: ``"log"`` (the task's log, every 5 seconds, which
            then contains the answer), or a file on any ``ObjectStoragePath``. Such a task waits in the worker. An
            interrupted answer is not requested again within the same try, because a part of it was shown already; use
            the task's retries.
        images_from: a folder or a bucket, on any ``ObjectStoragePath``, for images that are given as a path in a text.
            Without it such images are refused. With it they must lie in that folder, after ``..`` and links are
            resolved, because the text may come from a template or another task, and whoever writes it could otherwise
            make the worker read any file. Relative paths start in the folder. An ``ObjectStoragePath`` or
            ``pathlib.Path`` in the DAG is always read.
        auto_pull: pull the model if the server lacks it; None means the connection's setting.
        first_token_timeout: seconds for queue, loading and reading the prompt; None means the connection's setting.
        idle_timeout: seconds between two parts of the answer; None means the connection's setting.
        total_timeout: seconds for a whole attempt; None means the connection's setting.

    A second XCom value, ``usage``, holds server, model, digest, tokens, seconds, tokens per second and the two flags.
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

    def reads(self) -> list[Any]:
        """Return the folder that images are read from, if it is given."""
        return (
            [storage_path(self.images_from) if isinstance(self.images_from, str) else self.images_from]
            if self.images_from
            else []
        )

    def writes(self) -> list[tuple[Any, int | None]]:
        """Return the file that the answer is shown in, if there is one."""
        return [(storage_path(str(self.stream_to)), None)] if self.stream_to and self.stream_to != "log" else []

    @property
    def request_kind(self) -> "type[GenerateRequest] | type[ChatRequest]":
        """The type of the request."""
        raise NotImplementedError

    def request_fields(self) -> dict[str, Any]:
        """Return the fields that only this type of request has. Raise `InvalidRequestError` if they are empty."""
        raise NotImplementedError

    @property
    def may_cut(self) -> bool:
        """Whether the server may cut a prompt that is longer than the context."""
        return self.on_truncation == "warn"

    def capabilities(self, fields: dict[str, Any]) -> set[str]:
        """Return the capabilities that the model needs for a request with these fields."""
        thinking = {"thinking"} if self.think else set()
        return thinking | capabilities_for(self.images_of(fields))

    def images_of(self, fields: dict[str, Any]) -> Iterable[bytes]:
        """Return the images among the fields of `request_fields`."""
        raise NotImplementedError

    def perform(self, context: "Context") -> Any:
        """Check the arguments and the model, then send the request."""
        from ollama_provider.operators._server_models import require_capabilities

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
        require_capabilities(self.hook, request.model, self.capabilities(fields))
        trained = self.trained_length(request)
        return self.send_and_finish(context, request, **({} if trained is None else {"trained": trained}))

    def trained_length(self, request: "GenerateRequest | ChatRequest") -> int | None:
        """Return the context length that the model was trained for, if the request sets ``num_ctx``.

        The server does not use a larger context than that. Servers before 0.12.6 silently cut the prompt there.
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
        """Why the task must wait in the worker even if it is deferrable; None if it need not."""
        return "stream_to shows the answer while it is generated" if self.stream_to else None

    def send_and_finish(self, context: "Context", request: Any, **remembered: Any) -> Any:
        """Send the request, wait for its answer where that is possible, and call `finish`."""
        if self.deferrable and self.tied_to_worker:
            self.log.info("Not deferring: %s", self.tied_to_worker)
            return self.finish(context, request, self.hook.send, **remembered)
        return super().send_and_finish(context, request, **remembered)

    def finish(self, context: "Context", request: Any, send: "Send", trained: int | None = None, **_: Any) -> Any:
        """Receive the answer, and return the value for XCom."""
        from ollama_provider.operators._stream_to import open_display, send_with_display

        with ExitStack() as stack:
            if self.stream_to:
                send = send_with_display(self.hook, stack.enter_context(open_display(self.stream_to, self.log)))
            replies, prompt_cut = self.generate(request, send, trained)
        return self.deliver(context, replies, prompt_cut=prompt_cut, output=self.read_format())

    def generate(self, request: Any, send: "Send", trained: int | None) -> "tuple[Sequence[Answer], bool]":
        """Return the model's replies, of which the last is the answer, and whether the server cut a prompt.

        Args:
            request: the request to send.
            send: sends a request and returns its reply.
            trained: context length that the model was trained for, if known.
        """
        from ollama_provider.api.request_flow import inference_flow, run_flow

        reply, prompt_cut = run_flow(inference_flow(request, may_cut=self.may_cut, trained=trained), send)
        return [reply], prompt_cut

    @property
    def answer_format(self) -> Any:
        """What the answer must look like: a format or a type; None for plain text."""
        return self.output_type if self.format is None else self.format

    def read_format(self) -> "Output | None":
        """Return the format of the answer; None for plain text."""
        from ollama_provider.api.structured_output import Output

        one_of("output", self.answer_as, "text", "reply")
        one_of("on_truncation", self.on_truncation, "warn", "fail")
        if self.format is not None and self.output_type is not None:
            raise InvalidRequestError("use format or output_type, not both")
        wanted = self.answer_format
        return None if wanted is None else Output(wanted)

    def deliver(
        self, context: "Context", replies: "Sequence[Answer]", *, prompt_cut: bool, output: "Output | None"
    ) -> Any:
        """Log and push the usage, validate the answer, and return the value for XCom."""
        reply = replies[-1]
        cuts = {"answer_cut": reply.answer_cut, "prompt_cut": prompt_cut}
        numbers = self.numbers(replies)
        self.report(context, reply.model, numbers | cuts, servers=[each.server for each in replies])
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
        """Return the sums of tokens and seconds over all replies."""
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
        """Yield the errors of an answer that was truncated, or whose prompt was."""
        where: dict[str, Any] = {"host": reply.server, "model": reply.model}
        if prompt_cut:
            yield CutPromptError("the prompt was longer than the context, and the server dropped a part of it", **where)
        if reply.answer_cut:
            what = f"the answer was cut after {reply.eval_count} tokens"
            if _is_empty(reply):
                what += ", all of them used for thinking: there is no answer"
                where["advice"] = "Raise options.num_predict, or set think to a lower level or False."
            yield CutAnswerError(what, **where)

    def read_answer(self, reply: "Answer", output: "Output | None") -> Any:
        """Return the answer as text or, with a format, as data."""
        if output is None:
            return reply.text
        if _is_empty(reply) and not reply.answer_cut:
            # Models that always think (gpt-oss) also think in generate, where the format applies to their reasoning.
            raise RejectedReplyError(
                "the answer is empty; the model has produced only reasoning",
                host=reply.server,
                model=reply.model,
                advice="Use OllamaChatOperator. In a chat the format applies to the answer only.",
            )
        try:
            return output.read(reply.text)
        except InvalidOutputError as error:
            error.host, error.model = reply.server, reply.model
            # An answer that was cut is not valid JSON, and another try would be cut too, so report the truncation.
            raise next(self.faults(reply, prompt_cut=False), error) from None


def _is_empty(reply: "Answer") -> bool:
    """Return whether the model has produced reasoning but no answer."""
    return bool(reply.thinking) and not reply.text.strip() and not reply.tool_calls
