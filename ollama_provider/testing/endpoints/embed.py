"""`/api/embed`, and the legacy endpoint `/api/embeddings`."""

import math

from ollama_provider.testing.answers.tokens import tokenise
from ollama_provider.testing.answers.vectors import normalise, text_vector
from ollama_provider.testing.endpoints.calls import Call, RefusalError
from ollama_provider.testing.endpoints.generation import acquire, effective_options
from ollama_provider.testing.exchange import Pause, Response, Steps
from ollama_provider.testing.go.encoding import Json, dumps
from ollama_provider.testing.state import model_names
from ollama_provider.testing.state.catalogue import Model
from ollama_provider.testing.state.server_state import ServerState

_SPECIAL_TOKENS = 2
_LEGACY_NORM = 4.9
"""Norm of the legacy endpoint's vectors for nomic-embed-text, measured on 0.32.9. Only `/api/embed` normalises."""


def embed(state: ServerState, call: Call) -> Steps:
    """POST /api/embed.

    Raises:
        RefusalError: The input is no text or too long, or the model is missing or cannot embed.
    """
    body = call.body
    texts = _read_input(body.get("input"))
    model = _installed(state, body.get("model", ""))
    runner, queued = yield from acquire(state, call, model, effective_options(call, model))
    try:
        loaded = state.clock() - queued
        reply: dict[str, Json] = {"model": body["model"], "embeddings": []}
        if texts:
            counts = [_count(text, runner.num_ctx, truncate=body.get("truncate", True)) for text in texts]
            _check_embeds(state, model, 501 if state.since("0.13.3") else 500)
            if call.plan.pace is not None and call.plan.pace.first_token:
                yield Pause(call.plan.pace.first_token)
            reply["embeddings"] = _vectors(state, call, model, texts)
            now = state.clock()
            reply["total_duration"] = max(1, int((now - call.started) * 1e9))
            reply["load_duration"] = max(1, int((loaded - call.started) * 1e9))
            if state.since("0.3.1"):
                reply["prompt_eval_count"] = sum(counts)
        yield Response(200, dumps(reply).encode())
    finally:
        state.scheduler.release(runner)


def embeddings(state: ServerState, call: Call) -> Steps:
    """POST /api/embeddings: takes one text, does not truncate it, and does not always normalise the vector.

    Raises:
        RefusalError: The model is missing or cannot embed, or the text is too long.
    """
    body = call.body
    if model_names.parse(body.get("model", "")) is None:
        raise RefusalError(400, "model is required")
    model = _installed(state, body["model"])
    prompt = body.get("prompt", "")
    runner, _ = yield from acquire(state, call, model, effective_options(call, model))
    try:
        found: list[Json] = []
        if prompt:
            _check_embeds(state, model, 500)
            if len(tokenise(prompt)) + _SPECIAL_TOKENS > runner.num_ctx:
                raise RefusalError(500, "the input length exceeds the context length")
            length = _LEGACY_NORM if model.family == "nomic-bert" else 1.0
            found = [value if value is None else value * length for value in _vectors(state, call, model, [prompt])[0]]
        yield Response(200, dumps({"embedding": found}).encode())
    finally:
        state.scheduler.release(runner)


def _read_input(given: Json) -> list[str]:
    if given is None or given == "":
        return []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RefusalError(400, "invalid input type")
    return texts


def _installed(state: ServerState, text: str) -> Model:
    if (model := state.find(text)) is not None:
        return model
    if not text:
        raise RefusalError(404, "model '' not found")
    raise RefusalError(
        404,
        f'model "{text}" not found, try pulling it first'
        if state.since("0.2.2")
        else f"model '{text}' not found, try pulling it first",
    )


def _check_embeds(state: ServerState, model: Model, status: int) -> None:
    if "embedding" in model.capabilities or (model.llama_runner and not state.since("0.30.0")):
        return
    if state.since("0.30.0"):
        raise RefusalError(status, "This server does not support embeddings. Start it with `--embeddings`")
    raise RefusalError(status, "this model does not support embeddings")


def _count(text: str, num_ctx: int, *, truncate: bool) -> int:
    count = len(tokenise(text)) + _SPECIAL_TOKENS
    if count > num_ctx and not truncate:
        raise RefusalError(400, "the input length exceeds the context length")
    return min(count, num_ctx)


def _vectors(state: ServerState, call: Call, model: Model, texts: list[str]) -> list[Json]:
    answer = call.plan.answer
    if answer is not None and answer.vectors is not None:
        if any(value is not None and not math.isfinite(value) for row in answer.vectors for value in row):
            if state.since("0.14.0"):
                raise RefusalError(400, "embedding contains NaN or Inf values")
            raise RefusalError(500, "failed to encode response: json: unsupported value: NaN")
        return list(answer.vectors)
    found = [text_vector(text, model.embedding_length) for text in texts]
    width = call.body.get("dimensions", 0)
    if 0 < width < model.embedding_length and state.since("0.11.11"):
        found = [normalise(values[:width]) for values in found]
    return found
