"""What the server has, on its disk and in its memory, and what its models can do."""

from collections.abc import Iterable

from ollama_provider.api.errors import InvalidRequestError, ModelNotFoundError, UnsupportedError
from ollama_provider.api.model_names import ModelName
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.schemas import RunningModel, ShowReply, ShowRequest
from ollama_provider.hooks import OllamaHook

#: Models whose capabilities are asked for, when one is refused.
_ASKED = 50


def is_called(shown: str, name: ModelName) -> bool:
    """Say whether a name in the server's list is *name*."""
    try:
        return ModelName.parse(shown) == name
    except InvalidRequestError:
        # Another server may have names of another grammar.
        return False


def model_name(hook: OllamaHook, model: str | None) -> str:
    """Return a model's name, by default that of the connection's default model."""
    return hook.request(ShowRequest, model=model).model


def show_if_there(hook: OllamaHook, model: str) -> ShowReply | None:
    """Return what the server says about a model; None if it has no such model."""
    try:
        return hook.show(model)
    except ModelNotFoundError:
        return None


def show_or_pull(hook: OllamaHook, model: str) -> ShowReply:
    """Return what the server says about a model, which is pulled first if it is missing and may be pulled.

    Raises:
        PullNotAllowedError: it is missing and may not be pulled.
    """
    try:
        return hook.show(model)
    except ModelNotFoundError as missing:
        check_pull_allowed(model, hook.settings, missing)
    hook.pull(model)
    return hook.show(model)


def in_memory(hook: OllamaHook, model: str) -> RunningModel | None:
    """Return what the server says about a model in its memory; None if it is not there."""
    name = ModelName.parse(model)
    return next((entry for entry in hook.ps() if is_called(entry.tag, name)), None)


def require(hook: OllamaHook, model: str, wanted: Iterable[str]) -> None:
    """Refuse a model that cannot do what is wanted, before it is loaded.

    Servers before 0.6.4 do not say what a model can do; there it is left to find out.

    Args:
        hook: the server; it pulls a missing model first, if it may.
        model: the model.
        wanted: capabilities in Ollama's words: vision, audio, tools, thinking, insert, ….

    Raises:
        UnsupportedError: it lacks one of them; the text names models of the server that have them all.
    """
    needed = set(wanted)
    has = show_or_pull(hook, model).capabilities if needed else None
    if has is None or needed <= set(has):
        return
    able = _able(hook, needed)
    raise UnsupportedError(
        f"the model lacks {' and '.join(sorted(needed - set(has)))}; its capabilities are {', '.join(has) or 'none'}",
        host=hook.settings.base_url,
        model=model,
        advice=f"Models there that can: {', '.join(able)}." if able else "No model on this server can; pull one.",
    )


def _able(hook: OllamaHook, needed: set[str]) -> list[str]:
    able = []
    for entry in hook.list_models()[:_ASKED]:
        # The list itself says it since 0.30.
        shown = None if entry.capabilities is not None else show_if_there(hook, entry.tag)
        if needed <= set(entry.capabilities or (shown and shown.capabilities) or ()):
            able.append(entry.tag)
    return able
