"""What is in the server's memory."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ollama_provider.api.errors import OverloadedError
from ollama_provider.api.schemas import RunningModel
from ollama_provider.hooks import OllamaHook
from ollama_provider.observability import describe_size
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.operators._server_models import in_memory, model_name

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Seconds between two looks at what is in memory.
_LOOK_EVERY = 0.25


class OllamaLoadModelOperator(OllamaOperator):
    """See to it that a model is in the server's memory, and stays there for a while.

    A model that is there already is only told how long to stay. Give it the *options* that later requests will have,
    those of the connection included: another ``num_ctx``, ``num_batch``, ``num_gpu`` or ``num_thread`` loads it again.

    XCom gets ``model``, ``digest``, ``size`` (bytes in memory), ``size_vram`` (bytes of these on a GPU),
    ``context_length`` (None before 0.10), ``expires_at`` (ISO 8601) and ``loaded`` (whether it was not there before).

    Args:
        options: options to load it with, laid over the connection's.
        keep_alive: how long it stays when nobody asks it anything: seconds, ``"8h"``, -1 for ever. None is the
            connection's setting, then the server's (5 minutes). The last request to say so wins.
        auto_pull: pull the model if the server lacks it; None is the connection's setting.
        first_token_timeout: seconds until it is loaded; None is the connection's setting.
    """

    template_fields: Sequence[str] = (*OllamaOperator.template_fields, "options", "keep_alive")
    template_fields_renderers: ClassVar[dict[str, str]] = {"options": "json"}
    hook_overrides = ("auto_pull", "first_token_timeout")

    def __init__(
        self,
        *,
        options: dict[str, Any] | None = None,
        keep_alive: float | str | None = None,
        auto_pull: bool | None = None,
        first_token_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.keep_alive = keep_alive
        self.auto_pull = auto_pull
        self.first_token_timeout = first_token_timeout

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Load the model, and say what is in memory."""
        name = model_name(self.hook, self.model)
        before = in_memory(self.hook, name)
        self.hook.load(name, options=self.options, keep_alive=self.keep_alive)
        now = in_memory(self.hook, name)
        if now is None:
            # keep_alive=0, or another model took its place at once.
            self.log.warning("Model %s was loaded, and is gone from memory already", name)
            return {"model": name, "loaded": True}
        loaded = before is None or (before.digest, before.context_length) != (now.digest, now.context_length)
        self.log.info("Model %s is in memory%s: %s", now.tag, "" if loaded else " already", _describe(now))
        return {
            "model": now.tag,
            "digest": now.digest,
            "size": now.size,
            "size_vram": now.size_vram,
            "context_length": now.context_length,
            "expires_at": now.expires_at and now.expires_at.isoformat(),
            "loaded": loaded,
        }


class OllamaUnloadModelOperator(OllamaOperator):
    """See to it that a model is not in the server's memory, and wait until the memory is free.

    It finishes what it is asked at the moment. A model that is not in memory is no error: a second run changes nothing.

    XCom gets ``model`` and ``unloaded`` (whether anything changed).

    Args:
        unload_timeout: seconds that it may take.

    Raises:
        AirflowException: it is still there then; requests are being answered, or new ones keep coming.
    """

    hook_overrides = ("auto_pull",)
    #: Nothing is pulled to be unloaded.
    auto_pull = False

    def __init__(self, *, unload_timeout: float = 120, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unload_timeout = unload_timeout

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Unload the model, and wait."""
        name = model_name(self.hook, self.model)
        unloaded = unload_and_wait(self.hook, name, self.unload_timeout)
        self.log.info("Model %s %s", name, "was unloaded" if unloaded else "is not in memory, nothing has changed")
        return {"model": name, "unloaded": unloaded}


def unload_and_wait(hook: OllamaHook, model: str, timeout: float) -> bool:
    """Take a model out of memory and wait until it is gone; return whether it was there.

    Raises:
        OverloadedError: it is still there after *timeout* seconds.
    """
    # Asked first, since the server answers 404 to the unloading of a model that it does not have.
    if in_memory(hook, model) is None:
        return False
    deadline = time.monotonic() + timeout
    # The server answers at once, and frees the memory when the model has nothing more to do.
    hook.unload(model)
    while in_memory(hook, model) is not None:
        if time.monotonic() > deadline:
            raise OverloadedError(
                f"the model is still in memory after {timeout:g} s: it has work to do, or gets more all the time",
                host=hook.settings.base_url,
                model=model,
                advice="Stop what uses it, or raise unload_timeout.",
            )
        time.sleep(_LOOK_EVERY)
    return True


def _describe(entry: RunningModel) -> str:
    share = entry.size_vram / entry.size if entry.size else 0
    context = f", context {entry.context_length}" if entry.context_length else ""
    # The server writes "for ever" as a date some 300 years ahead.
    expires = entry.expires_at
    until = "" if expires is None else ", for ever" if expires.year > 2200 else f", until {expires:%Y-%m-%d %H:%M %Z}"
    return f"{describe_size(entry.size)}, {share:.0%} on a GPU{context}{until}"
