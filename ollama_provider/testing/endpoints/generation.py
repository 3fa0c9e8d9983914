"""From a question to the bytes of a reply: load, slot, tokens, lines, metrics."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace

from ollama_provider.testing.answers.ordinary import Question, Speech, say
from ollama_provider.testing.answers.tokens import token_ids, tokenise
from ollama_provider.testing.endpoints.calls import Call, RefusalError, from_llama_server
from ollama_provider.testing.endpoints.requests import WrongTypeError, read_keep_alive, read_options, reloading
from ollama_provider.testing.exchange import Head, Line, Pause, Step, Steps, Whole
from ollama_provider.testing.go.encoding import Json, dumps, timestamp
from ollama_provider.testing.scripting.script import Answer
from ollama_provider.testing.state.catalogue import Model
from ollama_provider.testing.state.scheduler import LoadError, QueueFullError, Runner
from ollama_provider.testing.state.server_state import State

_IMAGE_TOKENS = 7
_TOOL_CALL_TOKENS = 2
_TOP = (" the", " a", " of", " and", " to", " in", " is", " it", " that", " for")
_PLACE = "\0"
"""Where a token goes in the pattern of a line."""


@dataclass(slots=True)
class Spoken:
    """What is said, cut where the options cut it.

    Attributes:
        thinking: Tokens of the thoughts.
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
        """Tokens in all."""
        return len(self.thinking) + len(self.text) + _TOOL_CALL_TOKENS * len(self.tool_calls)


def stream(state: State, call: Call, spoken: Spoken, between: float, end: Callable[[], dict[str, Json]]) -> Steps:
    """The lines of a reply, one a token.

    Args:
        state: For version and clock.
        call: The request.
        spoken: What is said.
        between: Seconds before each token.
        end: What the last line adds, called when it is sent.
    """
    yield Head()
    for content, tokens in (
        (content_of(call, "", _PLACE), spoken.thinking),
        (content_of(call, _PLACE), spoken.text),
    ):
        pattern = ""
        for token in tokens:
            if between:
                yield Pause(between)
            if between or not pattern:
                # Encoded once for all tokens of a moment: the stand-in is the peer of benchmarks.
                pattern = dumps(envelope(call, timestamp(state.clock())) | content | {"done": False})
                before, _, after = pattern.rpartition(dumps(_PLACE))
            logprobs = logprobs_of(state, call, [token])
            extra = f",{dumps(logprobs)[1:]}" if logprobs else "}"
            yield Line(f"{before}{dumps(token)}{after[:-1]}{extra}\n".encode())
    if spoken.tool_calls:
        calls = content_of(call, "", tool_calls=tool_calls_of(state, spoken))
        yield _line(envelope(call, timestamp(state.clock())) | calls | {"done": False})
    yield _line(envelope(call, timestamp(state.clock())) | content_of(call, "") | end())


def _line(value: dict[str, Json]) -> Line:
    return Line(dumps(value).encode() + b"\n")


def envelope(call: Call, stamp: str) -> dict[str, Json]:
    """How every object begins; the model is named as the request named it."""
    return {"model": call.body["model"], "created_at": stamp}


def content_of(call: Call, text: str, thinking: str = "", tool_calls: list[Json] | None = None) -> dict[str, Json]:
    """`response` or `message`, whichever the endpoint has."""
    extra: dict[str, Json] = {"thinking": thinking} if thinking else {}
    if call.request.path == "/api/generate":
        return {"response": text} | extra
    if tool_calls:
        extra["tool_calls"] = tool_calls
    return {"message": {"role": "assistant", "content": text} | extra}


def tool_calls_of(state: State, spoken: Spoken) -> list[Json]:
    """The calls as the wire has them."""
    calls = []
    for index, (name, arguments) in enumerate(spoken.tool_calls):
        call = {"function": {"index": index, "name": name, "arguments": dict(arguments)}}
        calls.append(({"id": f"call_standin{index}"} if state.since("0.12.10") else {}) | call)
    return calls


def logprobs_of(state: State, call: Call, tokens: list[str]) -> dict[str, Json]:
    """`logprobs`, if the request wants them: the same number for every token."""
    if not call.body.get("logprobs") or not state.since("0.12.11"):
        return {}
    top = [_logprob(token, -1.0 - rank) for rank, token in enumerate(_TOP[: call.body.get("top_logprobs", 0)])]
    return {"logprobs": [_logprob(token, -0.5) | ({"top_logprobs": top} if top else {}) for token in tokens]}


def _logprob(token: str, value: float) -> dict[str, Json]:
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


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
