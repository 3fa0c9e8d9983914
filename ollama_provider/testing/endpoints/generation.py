"""Run an inference request: load the model, take a slot, produce tokens, send lines and metrics."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace

from ollama_provider.testing.answers.ordinary import ModelInput, ModelOutput, ordinary_answer
from ollama_provider.testing.answers.tokens import token_ids, tokenise
from ollama_provider.testing.endpoints.calls import Call, RefusalError, llama_server_error
from ollama_provider.testing.endpoints.requests import WrongTypeError, read_keep_alive, read_options, reload_settings
from ollama_provider.testing.exchange import Head, Line, Pause, Response, Step, Steps
from ollama_provider.testing.go.encoding import Json, dumps, timestamp
from ollama_provider.testing.scripting.script import Answer
from ollama_provider.testing.state.catalogue import Model
from ollama_provider.testing.state.scheduler import LoadError, QueueFullError, Runner
from ollama_provider.testing.state.server_state import ServerState

_IMAGE_TOKENS = 7
_TOOL_CALL_TOKENS = 2
_TOP_LOGPROB_TOKENS = (" the", " a", " of", " and", " to", " in", " is", " it", " that", " for")
_PLACEHOLDER = "\0"
"""Stands for the token in the encoded pattern of a line."""


@dataclass(slots=True)
class InferenceJob:
    """A validated request.

    Attributes:
        call: The request.
        model: The model.
        model_input: The input of the model.
        rendered: The prompt after the template.
        images: Number of images.
        history: The `context` of an earlier reply.
        think: None leaves the thinking in the text, as 0.9.0 to 0.12.4 did.
    """

    call: Call
    model: Model
    model_input: ModelInput
    rendered: str
    images: int = 0
    history: list[int] = field(default_factory=list)
    think: bool | str | None = False


@dataclass(slots=True)
class GeneratedTokens:
    """The output of the model as tokens, cut by `stop` and `num_predict`.

    Attributes:
        thinking: Tokens of the thinking.
        text: Tokens of the answer.
        done_reason: `stop` or `length`.
        tool_calls: Name and arguments of each call.
    """

    thinking: list[str]
    text: list[str]
    done_reason: str
    tool_calls: tuple[tuple[str, Mapping[str, Json]], ...]

    @property
    def count(self) -> int:
        """Number of all tokens."""
        return len(self.thinking) + len(self.text) + _TOOL_CALL_TOKENS * len(self.tool_calls)


def effective_options(call: Call, model: Model) -> dict[str, Json]:
    """Merge the options of the Modelfile with those of the request, which take precedence.

    Raises:
        RefusalError: An option has the wrong type.
    """
    try:
        return read_options({**model.parameters, **call.body.get("options", {})})
    except WrongTypeError as error:
        raise RefusalError(500, str(error)) from None


def acquire(
    state: ServerState, call: Call, model: Model, options: Mapping[str, Json]
) -> Generator[Step, None, tuple[Runner, float]]:
    """Take a slot of the model, after loading it if needed. Return the model, and the seconds of waiting for the slot.

    Raises:
        RefusalError: The queue is full or the model cannot be loaded.
    """
    seconds = state.load_seconds
    if call.plan.pace is not None and call.plan.pace.load is not None:
        seconds = call.plan.pace.load
        state.scheduler.unload(model)
    settings = reload_settings(options, state.num_ctx)
    settings["num_ctx"] = min(settings["num_ctx"], model.context_length)
    if state.since("0.30.0"):
        settings["shift"] = call.body.get("shift", True)
    try:
        return (
            yield from state.scheduler.acquire(model, settings, read_keep_alive(call.body), state.keep_alive, seconds)
        )
    except QueueFullError:
        raise RefusalError(503, "server busy, please try again.  maximum pending requests exceeded") from None
    except LoadError as error:
        raise RefusalError(500, str(error)) from None


def load(state: ServerState, call: Call, model: Model) -> Steps:
    """Answer a request without a prompt: load the model."""
    runner, _ = yield from acquire(state, call, model, effective_options(call, model))
    state.scheduler.release(runner)
    yield _done_without_text(state, call, "load")


def unload(state: ServerState, call: Call, model: Model) -> Step:
    """Answer a request without a prompt and with `keep_alive: 0`: unload the model."""
    state.scheduler.unload(model)
    return _done_without_text(state, call, "unload")


def _done_without_text(state: ServerState, call: Call, reason: str) -> Response:
    body = _envelope(call, timestamp(state.clock())) | _content_fields(call, "") | {"done": True}
    if state.since("0.1.35"):
        body["done_reason"] = reason
    return Response(200, dumps(body).encode())


def run_inference(state: ServerState, job: InferenceJob) -> Steps:
    """Run a validated request.

    Raises:
        RefusalError: The prompt is too long and must not be cut, or the model cannot be loaded.
    """
    call, options = job.call, effective_options(job.call, job.model)
    runner, queued = yield from acquire(state, call, job.model, options)
    try:
        if call.body.get("_debug_render_only"):
            yield _debug_info(state, job)
            return
        yield from _answer(state, job, options, runner, queued)
    finally:
        state.scheduler.release(runner)


def _answer(state: ServerState, job: InferenceJob, options: Mapping[str, Json], runner: Runner, queued: float) -> Steps:
    call, began = job.call, state.clock()
    prompt = tokenise(job.rendered)
    prompt_count = _prompt_count(state, job, len(prompt), runner.num_ctx)
    generated = _generate(state, job, options, prompt_count, runner.num_ctx)
    scripted = call.plan.answer or Answer()
    first, between = _token_delays(state, call)
    if first:
        yield Pause(first)
    evaluated = state.clock()

    def metrics() -> dict[str, Json]:
        now = state.clock()
        return {
            "total_duration": _nanoseconds(now - call.started),
            "load_duration": _nanoseconds(began - queued - call.started),
            "prompt_eval_count": prompt_count if scripted.prompt_eval_count is None else scripted.prompt_eval_count,
            "prompt_eval_duration": _nanoseconds(evaluated - began),
            "eval_count": generated.count if scripted.eval_count is None else scripted.eval_count,
            "eval_duration": _nanoseconds(now - evaluated),
        }

    context = {}
    if call.request.path == "/api/generate" and not call.body.get("raw"):
        context["context"] = [*job.history, *token_ids(prompt), *token_ids(generated.thinking + generated.text)]
    end = {"done": True} | ({"done_reason": generated.done_reason} if state.since("0.1.35") else {}) | context
    if call.streams:
        yield from _stream(state, call, generated, between, lambda: end | metrics())
        return
    if between:
        yield Pause(between * generated.count)
    content = _content_fields(
        call, "".join(generated.text), "".join(generated.thinking), _tool_call_objects(state, generated)
    )
    logprobs = _logprob_fields(state, call, generated.thinking + generated.text)
    yield Response(
        200, dumps(_envelope(call, timestamp(state.clock())) | content | end | logprobs | metrics()).encode()
    )


def _nanoseconds(seconds: float) -> int:
    return max(1, int(seconds * 1e9))


def _token_delays(state: ServerState, call: Call) -> tuple[float, float]:
    if call.plan.pace is not None:
        return call.plan.pace.first_token, call.plan.pace.between_tokens
    return 0.0, 1.0 / state.tokens_per_second if state.tokens_per_second else 0.0


def _debug_info(state: ServerState, job: InferenceJob) -> Response:
    content: dict[str, Json] = {"response": ""}
    if job.call.request.path == "/api/chat":
        content = {"message": {"role": "", "content": ""}}
    body = _envelope(job.call, timestamp(state.clock())) | content
    return Response(200, dumps(body | {"done": False, "_debug_info": {"rendered_template": job.rendered}}).encode())


def _prompt_count(state: ServerState, job: InferenceJob, tokens: int, num_ctx: int) -> int:
    if job.images and state.since("0.30.0") and "vision" not in job.model.capabilities:
        text = "Multimodal data provided, but model does not support multimodal requests."
        raise llama_server_error(400, text, "invalid_request_error")
    count = tokens + len(job.history) + job.images * _IMAGE_TOKENS
    if count <= num_ctx:
        return count
    body = job.call.body
    if state.since("0.30.0") and body.get("truncate") is False:
        text = f"request ({count} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
        raise llama_server_error(400, text, "exceed_context_size_error", n_prompt_tokens=count, n_ctx=num_ctx)
    if state.since("0.12.6") and body.get("truncate") is False:
        raise RefusalError(400, "the input length exceeds the context length", late=True)
    if not state.since("0.30.0"):
        return num_ctx
    if body.get("shift") is False:
        text = (
            "the prompt is longer than the context length currently available to the model; shorten the prompt, "
            "adjust the context length in settings, or use a model with a longer context length"
        )
        raise RefusalError(400, text, late=True)
    return num_ctx // 2 + 2


def _generate(
    state: ServerState, job: InferenceJob, options: Mapping[str, Json], prompt_count: int, num_ctx: int
) -> GeneratedTokens:
    output = _model_output(job)
    if job.think is None:
        output = ModelOutput(f"<think>\n{output.thinking}\n</think>\n\n{output.text}", "", output.tool_calls)
    elif not job.think and job.call.plan.answer is None:
        output = replace(output, thinking="")
    if job.think and job.model_input.format and job.call.request.path == "/api/generate":
        # The grammar applies from the first token on, and those are thinking: the answer comes out as thinking.
        output = ModelOutput("", output.text)
    text, stopped = output.text, False
    for stop in options.get("stop", ()):
        if stop and stop in text:
            text, stopped = text.partition(stop)[0], True
    thinking, words = tokenise(output.thinking), tokenise(text)
    limit = _limit(state, job.call.body, options, prompt_count, num_ctx)
    cut = len(thinking) + len(words) > limit
    reason = "length" if cut and not stopped else "stop"
    if job.call.plan.answer is not None and job.call.plan.answer.done_reason:
        reason = job.call.plan.answer.done_reason
    return GeneratedTokens(thinking[:limit], words[: max(0, limit - len(thinking))], reason, output.tool_calls)


def _model_output(job: InferenceJob) -> ModelOutput:
    answer = job.call.plan.answer
    if answer is None:
        return ordinary_answer(job.model_input)
    return ModelOutput(
        answer.text if isinstance(answer.text, str) else dumps(answer.text), answer.thinking, answer.tool_calls
    )


def _limit(
    state: ServerState, body: dict[str, Json], options: Mapping[str, Json], prompt_count: int, num_ctx: int
) -> int:
    limit = 10 * num_ctx
    # The runner never receives 0, so 0 means no limit.
    if (wanted := options.get("num_predict", -1)) > 0:
        limit = min(limit, wanted)
    if state.since("0.12.6") and body.get("shift") is False:
        limit = min(limit, num_ctx - prompt_count + 1)
    return int(limit)


def _stream(
    state: ServerState, call: Call, generated: GeneratedTokens, between: float, end: Callable[[], dict[str, Json]]
) -> Steps:
    """Stream the reply, one line for each token.

    Args:
        state: For version and clock.
        call: The request.
        generated: The tokens.
        between: Seconds before each token.
        end: Returns the fields of the last line. Called just before it is sent, since they contain durations.
    """
    yield Head()
    for content, tokens in (
        (_content_fields(call, "", _PLACEHOLDER), generated.thinking),
        (_content_fields(call, _PLACEHOLDER), generated.text),
    ):
        pattern = ""
        for token in tokens:
            if between:
                yield Pause(between)
            if between or not pattern:
                # Encoded once for all tokens with the same time, to be fast: benchmarks run against the stand-in.
                pattern = dumps(_envelope(call, timestamp(state.clock())) | content | {"done": False})
                before, _, after = pattern.rpartition(dumps(_PLACEHOLDER))
            logprobs = _logprob_fields(state, call, [token])
            extra = f",{dumps(logprobs)[1:]}" if logprobs else "}"
            yield Line(f"{before}{dumps(token)}{after[:-1]}{extra}\n".encode())
    if generated.tool_calls:
        calls = _content_fields(call, "", tool_calls=_tool_call_objects(state, generated))
        yield _line(_envelope(call, timestamp(state.clock())) | calls | {"done": False})
    yield _line(_envelope(call, timestamp(state.clock())) | _content_fields(call, "") | end())


def _line(value: dict[str, Json]) -> Line:
    return Line(dumps(value).encode() + b"\n")


def _envelope(call: Call, stamp: str) -> dict[str, Json]:
    """The first fields of every object. The model has the name that the request used."""
    return {"model": call.body["model"], "created_at": stamp}


def _content_fields(call: Call, text: str, thinking: str = "", tool_calls: list[Json] | None = None) -> dict[str, Json]:
    """`response` for generate, `message` for chat."""
    extra: dict[str, Json] = {"thinking": thinking} if thinking else {}
    if call.request.path == "/api/generate":
        return {"response": text} | extra
    if tool_calls:
        extra["tool_calls"] = tool_calls
    return {"message": {"role": "assistant", "content": text} | extra}


def _tool_call_objects(state: ServerState, generated: GeneratedTokens) -> list[Json]:
    """The tool calls as JSON objects."""
    calls = []
    for index, (name, arguments) in enumerate(generated.tool_calls):
        call = {"function": {"index": index, "name": name, "arguments": dict(arguments)}}
        calls.append(({"id": f"call_standin{index}"} if state.since("0.12.10") else {}) | call)
    return calls


def _logprob_fields(state: ServerState, call: Call, tokens: list[str]) -> dict[str, Json]:
    """`logprobs` if the request asks for them: the same value for every token."""
    if not call.body.get("logprobs") or not state.since("0.12.11"):
        return {}
    top = [
        _logprob(token, -1.0 - rank)
        for rank, token in enumerate(_TOP_LOGPROB_TOKENS[: call.body.get("top_logprobs", 0)])
    ]
    return {"logprobs": [_logprob(token, -0.5) | ({"top_logprobs": top} if top else {}) for token in tokens]}


def _logprob(token: str, value: float) -> dict[str, Json]:
    return {"token": token, "logprob": value, "bytes": list(token.encode())}
