"""Functions that ask the server about its models: on disk, in memory, their capabilities; pull and unload them."""

import math
import time
from collections.abc import Iterable

from ollama_provider.api.errors import ModelNotFoundError, OllamaError, OverloadedError, UnsupportedError
from ollama_provider.api.model_names import ModelName, listed_name_matches, same_model
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.routing import error_of_all, goes_on_after
from ollama_provider.api.schemas import LocalModel, RunningModel, ShowReply, ShowRequest
from ollama_provider.hooks import OllamaHook

#: Most models that are checked for a capability, to suggest one in an error.
_MAX_SUGGESTIONS = 50
#: Seconds between two checks whether a model is still in memory, and before the first one. Servers up to 0.24 at least
#: can crash if they are asked what is in their memory while they load or unload a model.
UNLOAD_POLL_INTERVAL = 2.0


def model_name(hook: OllamaHook, model: str | None) -> str:
    """Return *model*, or the connection's default model if it is None."""
    return hook.request(ShowRequest, model=model).model


def find_model(hook: OllamaHook, name: str) -> LocalModel | None:
    """Return the entry of a model in the server's list; None if the server does not have it."""
    return next((entry for entry in hook.list_models() if same_model(entry.tag, name)), None)


def show_if_there(hook: OllamaHook, model: str) -> ShowReply | None:
    """Return the details of a model; None if the server does not have it."""
    try:
        return hook.show(model)
    except ModelNotFoundError:
        return None


def show_or_pull(hook: OllamaHook, model: str) -> ShowReply:
    """Return the details of a model. Pull it first, if the server lacks it; if all do, to the first one that can.

    Raises:
        PullNotAllowedError: the model is missing and may not be pulled.
    """
    try:
        return hook.show(model)
    except ModelNotFoundError as missing:
        check_pull_allowed(model, hook.settings, missing)
    failures: list[tuple[str, OllamaError]] = []
    for server in hook.servers:
        try:
            server.pull(model)
        except OllamaError as error:
            if not goes_on_after(error):
                raise
            failures.append((server.settings.base_url, error))
        else:
            return server.show(model)
    raise error_of_all(failures, model, may_pull=False)


def in_memory(hook: OllamaHook, model: str) -> RunningModel | None:
    """Return the state of a model in the server's memory; None if it is not loaded."""
    name = ModelName.parse(model)
    return next((entry for entry in hook.ps() if listed_name_matches(entry.tag, name)), None)


class Loaded:
    """The models in the server's memory, as they were `UNLOAD_POLL_INTERVAL` seconds ago at most.

    Args:
        hook: hook of the server.
    """

    def __init__(self, hook: OllamaHook) -> None:
        self._hook = hook
        self._models: list[RunningModel] = []
        self._asked = -math.inf

    def has(self, model: str) -> bool:
        """Return whether a model is in memory."""
        if (now := time.monotonic()) >= self._asked + UNLOAD_POLL_INTERVAL:
            self._models, self._asked = self._hook.ps(), now
        name = ModelName.parse(model)
        return any(listed_name_matches(entry.tag, name) for entry in self._models)


def unload_and_wait(hook: OllamaHook, model: str, timeout: float) -> bool:
    """Unload a model and wait until its memory is free. Return False if it was not in memory.

    Raises:
        OverloadedError: the model is still in memory after *timeout* seconds.
    """
    # Check first, because the server answers 404 when it is asked to unload a model that it does not have.
    if in_memory(hook, model) is None:
        return False
    deadline = time.monotonic() + timeout
    # The server answers at once, but frees the memory only when all requests to the model have been answered.
    hook.unload(model)
    time.sleep(UNLOAD_POLL_INTERVAL)
    while in_memory(hook, model) is not None:
        if time.monotonic() > deadline:
            raise OverloadedError(
                f"the model is still in memory after {timeout:g} s: it is answering requests, or new ones keep coming",
                host=hook.settings.base_url,
                model=model,
                advice="Stop the tasks that use it, or raise unload_timeout.",
            )
        time.sleep(UNLOAD_POLL_INTERVAL)
    return True


def require_capabilities(hook: OllamaHook, model: str, wanted: Iterable[str]) -> None:
    """Raise an error if a model lacks a capability, before the model is loaded.

    Servers before 0.6.4 do not report capabilities, so nothing is checked there.

    Args:
        hook: hook of the server. A missing model is pulled first, if that is allowed.
        model: name of the model.
        wanted: capabilities as Ollama names them: vision, audio, tools, thinking, insert, ….

    Raises:
        UnsupportedError: the model lacks one of them. The text names models on the server that have all.
    """
    needed = set(wanted)
    if not needed:
        return
    shown = show_or_pull(hook, model)
    has = shown.capabilities
    if has is None or needed <= set(has):
        return
    able = _models_with(hook.at(shown.server), needed)
    raise UnsupportedError(
        f"the model lacks {' and '.join(sorted(needed - set(has)))}; its capabilities are {', '.join(has) or 'none'}",
        host=shown.server,
        model=model,
        advice=f"Suitable models on this server: {', '.join(able)}."
        if able
        else "No model on this server is suitable; pull one.",
    )


def _models_with(hook: OllamaHook, needed: set[str]) -> list[str]:
    able = []
    for entry in hook.list_models()[:_MAX_SUGGESTIONS]:
        # Since 0.30 the list itself contains the capabilities.
        shown = None if entry.capabilities is not None else show_if_there(hook, entry.tag)
        if needed <= set(entry.capabilities or (shown and shown.capabilities) or ()):
            able.append(entry.tag)
    return able
