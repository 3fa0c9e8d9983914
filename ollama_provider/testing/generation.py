"""From a question to the bytes of a reply: load, slot, tokens, lines, metrics."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

from ollama_provider.testing.answers import Question, Speech, say
from ollama_provider.testing.catalogue import Model
from ollama_provider.testing.fields import read_keep_alive
from ollama_provider.testing.go import Json, dumps, timestamp
from ollama_provider.testing.options import WrongTypeError, read_options, reloading
from ollama_provider.testing.replies import Spoken, content_of, envelope, logprobs_of, stream, tool_calls_of
from ollama_provider.testing.scheduler import LoadError, QueueFullError, Runner
from ollama_provider.testing.script import Answer
from ollama_provider.testing.state import Call, RefusalError, State, from_llama_server
from ollama_provider.testing.steps import Pause, Step, Steps, Whole
from ollama_provider.testing.tokens import token_ids, tokenise

_IMAGE_TOKENS = 7


@dataclass(slots=True)
class Work:
    """A validated request.

    Attributes:
        call: Where it comes from.
        model: What is asked.
        question: What it is asked.
        rendered: The prompt after the template.
        images: How many.
        history: The `context` of an earlier reply.
        think: None leaves the thoughts in the text, as 0.9.0 to 0.12.4 did.
    """

    call: Call
    model: Model
    question: Question
    rendered: str
    images: int = 0
    history: list[int] = field(default_factory=list)
    think: bool | str | None = False


def read_model_options(call: Call, model: Model) -> dict[str, Json]:
    """The options of the Modelfile and, over them, those of the request.

    Raises:
        RefusalError: One has the wrong type.
    """
    try:
        return read_options({**model.parameters, **call.body.get("options", {})})
    except WrongTypeError as error:
        raise RefusalError(500, str(error)) from None


def acquire(state: State, call: Call, model: Model, options: Mapping[str, Json]) -> Generator[Step, None, Runner]:
    """Load the model if it must be and take a slot.

    Raises:
        RefusalError: The queue is full or the model is broken.
    """
    seconds = state.load_seconds
    if call.plan.pace is not None and call.plan.pace.load is not None:
        seconds = call.plan.pace.load
        state.scheduler.unload(model)
    settings = reloading(options, state.num_ctx)
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


def load(state: State, call: Call, model: Model) -> Steps:
    """An empty request: load the model, say nothing."""
    runner = yield from acquire(state, call, model, read_model_options(call, model))
    state.scheduler.release(runner)
    yield _acknowledge(state, call, "load")


def unloaded(state: State, call: Call, model: Model) -> Step:
    """An empty request with keep_alive 0."""
    state.scheduler.unload(model)
    return _acknowledge(state, call, "unload")


def _acknowledge(state: State, call: Call, reason: str) -> Whole:
    body = envelope(call, timestamp(state.clock())) | content_of(call, "") | {"done": True}
    if state.since("0.1.35"):
        body["done_reason"] = reason
    return Whole(200, dumps(body).encode())


def infer(state: State, work: Work) -> Steps:
    """Answer the question.

    Raises:
        RefusalError: The prompt is too long and may not be cut, or the model cannot be loaded.
    """
    call, options = work.call, read_model_options(work.call, work.model)
    runner = yield from acquire(state, call, work.model, options)
    try:
        loaded = state.clock()
        if call.body.get("_debug_render_only"):
            yield _debug_info(state, work)
            return
        yield from _answer(state, work, options, runner, loaded)
    finally:
        state.scheduler.release(runner)


def _answer(state: State, work: Work, options: Mapping[str, Json], runner: Runner, loaded: float) -> Steps:
    call = work.call
    prompt = tokenise(work.rendered)
    prompt_count = _prompt_count(state, work, len(prompt), runner.num_ctx)
    spoken = _speak(state, work, options, prompt_count, runner.num_ctx)
    scripted = call.plan.answer or Answer()
    first, between = _pace(state, call)
    if first:
        yield Pause(first)
    evaluated = state.clock()

    def metrics() -> dict[str, Json]:
        now = state.clock()
        return {
            "total_duration": _nanoseconds(now - call.started),
            "load_duration": _nanoseconds(loaded - call.started),
            "prompt_eval_count": prompt_count if scripted.prompt_eval_count is None else scripted.prompt_eval_count,
            "prompt_eval_duration": _nanoseconds(evaluated - loaded),
            "eval_count": spoken.count if scripted.eval_count is None else scripted.eval_count,
            "eval_duration": _nanoseconds(now - evaluated),
        }

    context = {}
    if call.request.path == "/api/generate" and not call.body.get("raw"):
        context["context"] = [*work.history, *token_ids(prompt), *token_ids(spoken.thinking + spoken.text)]
    end = {"done": True} | ({"done_reason": spoken.done_reason} if state.since("0.1.35") else {}) | context
    if call.streams:
        yield from stream(state, call, spoken, between, lambda: end | metrics())
        return
    if between:
        yield Pause(between * spoken.count)
    content = content_of(call, "".join(spoken.text), "".join(spoken.thinking), tool_calls_of(state, spoken))
    logprobs = logprobs_of(state, call, spoken.thinking + spoken.text)
    yield Whole(200, dumps(envelope(call, timestamp(state.clock())) | content | end | logprobs | metrics()).encode())


def _nanoseconds(seconds: float) -> int:
    return max(1, int(seconds * 1e9))


def _pace(state: State, call: Call) -> tuple[float, float]:
    if call.plan.pace is not None:
        return call.plan.pace.first_token, call.plan.pace.between_tokens
    return 0.0, 1.0 / state.tokens_per_second if state.tokens_per_second else 0.0


def _debug_info(state: State, work: Work) -> Whole:
    content: dict[str, Json] = {"response": ""}
    if work.call.request.path == "/api/chat":
        content = {"message": {"role": "", "content": ""}}
    body = envelope(work.call, timestamp(state.clock())) | content
    return Whole(200, dumps(body | {"done": False, "_debug_info": {"rendered_template": work.rendered}}).encode())


def _prompt_count(state: State, work: Work, tokens: int, num_ctx: int) -> int:
    if work.images and state.since("0.30.0") and "vision" not in work.model.capabilities:
        text = "Multimodal data provided, but model does not support multimodal requests."
        raise from_llama_server(400, text, "invalid_request_error")
    count = tokens + len(work.history) + work.images * _IMAGE_TOKENS
    if count <= num_ctx:
        return count
    body = work.call.body
    if state.since("0.30.0") and body.get("truncate") is False:
        text = f"request ({count} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
        raise from_llama_server(400, text, "exceed_context_size_error", n_prompt_tokens=count, n_ctx=num_ctx)
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


def _speak(state: State, work: Work, options: Mapping[str, Json], prompt_count: int, num_ctx: int) -> Spoken:
    speech = _speech(work)
    if work.think is None:
        speech = Speech(f"<think>\n{speech.thinking}\n</think>\n\n{speech.text}", "", speech.tool_calls)
    elif not work.think and work.call.plan.answer is None:
        speech = replace(speech, thinking="")
    if work.think and work.question.format and work.call.request.path == "/api/generate":
        # The grammar holds from the first token, and the first tokens are thoughts.
        speech = Speech("", speech.text)
    text, stopped = speech.text, False
    for stop in options.get("stop", ()):
        if stop and stop in text:
            text, stopped = text.partition(stop)[0], True
    thinking, words = tokenise(speech.thinking), tokenise(text)
    limit = _limit(state, work.call.body, options, prompt_count, num_ctx)
    cut = len(thinking) + len(words) > limit
    reason = "length" if cut and not stopped else "stop"
    if work.call.plan.answer is not None and work.call.plan.answer.done_reason:
        reason = work.call.plan.answer.done_reason
    return Spoken(thinking[:limit], words[: max(0, limit - len(thinking))], reason, speech.tool_calls)


def _speech(work: Work) -> Speech:
    answer = work.call.plan.answer
    if answer is None:
        return say(work.question)
    return Speech(
        answer.text if isinstance(answer.text, str) else dumps(answer.text), answer.thinking, answer.tool_calls
    )


def _limit(state: State, body: dict[str, Json], options: Mapping[str, Json], prompt_count: int, num_ctx: int) -> int:
    limit = 10 * num_ctx
    # 0 is dropped on the way to the runner, so it is no limit.
    if (wanted := options.get("num_predict", -1)) > 0:
        limit = min(limit, wanted)
    if state.since("0.12.6") and body.get("shift") is False:
        limit = min(limit, num_ctx - prompt_count + 1)
    return int(limit)
