"""`/api/generate` and `/api/chat`: validate the request and build the prompt."""

from ollama_provider.testing.answers import json_schema
from ollama_provider.testing.answers.ordinary import ModelInput
from ollama_provider.testing.answers.tokens import tokenise
from ollama_provider.testing.endpoints.calls import Call, RefusalError, llama_server_error
from ollama_provider.testing.endpoints.generation import InferenceJob, effective_options, load, run_inference, unload
from ollama_provider.testing.endpoints.requests import Message, read_keep_alive, read_messages, read_think
from ollama_provider.testing.exchange import Steps
from ollama_provider.testing.go import templates
from ollama_provider.testing.go.encoding import Json, check_base64, dumps, quoted
from ollama_provider.testing.state import model_names
from ollama_provider.testing.state.catalogue import Model
from ollama_provider.testing.state.server_state import ServerState


def generate(state: ServerState, call: Call) -> Steps:
    """POST /api/generate.

    Raises:
        RefusalError: The request is invalid or the model cannot do what it asks for.
    """
    body = call.body
    for image in body.get("images", ()):
        check_base64(image)
    keep_alive, given_think = read_keep_alive(body), _read_think(state, body)
    name, prompt = body.get("model", ""), body.get("prompt", "")
    _check_logprobs(body)
    model = _installed(state, name)
    if not prompt and keep_alive == 0 and state.since("0.3.11"):
        yield unload(state, call, model)
        return
    raw = body.get("raw", False)
    if raw and any(body.get(key) for key in ("template", "system", "context")):
        raise RefusalError(400, "raw mode does not support template, system, or context")
    _check_template(body.get("template", ""))
    _require(model, "completion", f'"{name}" does not support generate')
    if body.get("suffix"):
        _require(model, "insert", f"{model.parsed.full} does not support insert")
    think = _effective_think(state, model, name, given_think)
    if not prompt:
        yield from load(state, call, model)
        return
    system = body.get("system", model.system)
    model_input = ModelInput(name, prompt, system, _format(state, call))
    yield from run_inference(
        state,
        InferenceJob(
            call,
            model,
            model_input,
            _render_prompt(body, system),
            images=len(body.get("images", ())),
            history=body.get("context", []),
            think=think,
        ),
    )


def chat(state: ServerState, call: Call) -> Steps:
    """POST /api/chat.

    Raises:
        RefusalError: The request is invalid or the model cannot do what it asks for.
    """
    body = call.body
    messages, keep_alive, given_think = read_messages(body), read_keep_alive(body), _read_think(state, body)
    name = body.get("model", "")
    _check_logprobs(body)
    if model_names.parse(name) is None:
        raise RefusalError(400, "model is required")
    model = _installed(state, name)
    if not messages and keep_alive == 0 and state.since("0.3.11"):
        yield unload(state, call, model)
        return
    _require(model, "completion", f'"{name}" does not support chat')
    tools = body.get("tools", ()) if state.since("0.2.6") else ()
    if tools:
        _require(model, "tools", f"{model.parsed.full} does not support tools")
    think = _effective_think(state, model, name, given_think)
    if not messages:
        yield from load(state, call, model)
        return
    if model.system and messages[0].role != "system":
        messages.insert(0, Message("system", model.system))
    if body.get("truncate", True) or not state.since("0.12.6"):
        messages = _keep_newest(messages, effective_options(call, model).get("num_ctx", state.num_ctx))
    last = messages[-1]
    model_input = ModelInput(
        name,
        next((message.content for message in reversed(messages) if message.role == "user"), ""),
        next((message.content for message in messages if message.role == "system"), ""),
        _format(state, call),
        tools,
        last.content if last.role == "tool" else None,
    )
    rendered = _render(messages) + (dumps(tools) if tools else "")
    yield from run_inference(
        state, InferenceJob(call, model, model_input, rendered, sum(m.images for m in messages), think=think)
    )


def _installed(state: ServerState, text: str) -> Model:
    if text and model_names.parse(text) is None:
        raise RefusalError(400, "invalid model name")
    tag = text.lower().rpartition(":")[2]
    if state.since("0.18.0") and (tag == "cloud" or tag.endswith("-cloud")):
        raise RefusalError(403, "ollama cloud is disabled: remote model is unavailable")
    if (model := state.find(text)) is not None:
        return model
    if state.since("0.3.11"):
        raise RefusalError(404, f"model '{text}' not found")
    if state.since("0.2.2"):
        raise RefusalError(404, f'model "{text}" not found, try pulling it first')
    raise RefusalError(404, f"model '{text}' not found, try pulling it first")


def _require(model: Model, capability: str, text: str) -> None:
    if capability not in model.capabilities:
        raise RefusalError(400, text)


def _check_logprobs(body: dict[str, Json]) -> None:
    if not 0 <= body.get("top_logprobs", 0) <= 20:
        raise RefusalError(400, "top_logprobs must be between 0 and 20")


def _check_template(template: str) -> None:
    try:
        templates.check(template)
    except templates.TemplateError as wrong:
        raise RefusalError(500, str(wrong)) from None


def _read_think(state: ServerState, body: dict[str, Json]) -> bool | str | None:
    if not state.since("0.9.0"):
        return False
    return read_think(body, ("high", "medium", "low", "max") if state.since("0.22.0") else ("high", "medium", "low"))


def _effective_think(state: ServerState, model: Model, name: str, think: bool | str | None) -> bool | str | None:
    """Refuse thinking where the model cannot think. None: the version neither thinks by default nor was told to."""
    if "thinking" not in model.capabilities:
        if think:
            raise RefusalError(400, f'"{name}" does not support thinking')
        return False
    if isinstance(think, str) and not state.since("0.17.7") and model.family != "gptoss":
        raise RefusalError(400, f'think value "{think}" is not supported for this model')
    if not state.since("0.9.0"):
        return False
    return True if think is None and state.since("0.12.5") else think


def _format(state: ServerState, call: Call) -> Json:
    wanted = call.body.get("format")
    if wanted in (None, ""):
        return None
    if not state.since("0.5.0"):
        if wanted != "json":
            raise RefusalError(400, 'format must be "json"')
    elif isinstance(wanted, dict):
        try:
            json_schema.instance(wanted, "")
        except json_schema.InvalidSchemaError as wrong:
            if not state.since("0.30.0"):
                raise RefusalError(500, "invalid JSON schema in format", late=True) from None
            failed = f"JSON schema conversion failed:\nJSON schema error at #: {wrong}"
            text = f"Field 'json_schema': \"json_schema\": {failed}"
            raise llama_server_error(400, text, "invalid_request_error") from None
    elif wanted != "json":
        text = f'invalid format: {quoted(dumps(wanted))}; expected "json" or a valid JSON Schema object'
        raise RefusalError(500, text, late=True)
    return wanted


def _render_prompt(body: dict[str, Json], system: str) -> str:
    prompt = body["prompt"]
    if body.get("raw"):
        return str(prompt)
    if template := body.get("template"):
        return str(template.replace("{{ .Prompt }}", prompt).replace("{{ .System }}", system))
    messages = [Message("system", system)] if system else []
    return _render([*messages, Message("user", prompt + body.get("suffix", ""))])


def _render(messages: list[Message]) -> str:
    parts = (f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages)
    return "".join(parts) + "<|im_start|>assistant\n"


def _keep_newest(messages: list[Message], num_ctx: int) -> list[Message]:
    """Drop the oldest messages until the rest fits; system messages and the last message stay."""
    sizes = [len(tokenise(_render([message]))) for message in messages]
    kept = list(range(len(messages)))
    while sum(sizes[position] for position in kept) > num_ctx:
        oldest = next((position for position in kept[:-1] if messages[position].role != "system"), None)
        if oldest is None:
            break
        kept.remove(oldest)
    return [messages[position] for position in kept]
