"""Operators that load models into the server's memory and unload them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ollama_provider.api.schemas import RunningModel
from ollama_provider.observability import describe_size
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.operators._server_models import in_memory, model_name, unload_and_wait

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.observability import Logger


class OllamaLoadModelOperator(OllamaOperator):
    """Load a model into the memory of every server of the connection, and keep it there for a while.

    If the model is loaded already, only its *keep_alive* is renewed. Use the *options* that later requests will have,
    because a request with another ``num_ctx``, ``num_batch``, ``num_gpu`` or ``num_thread`` loads the model again.
    Those of the connection are used as well.

    XCom gets ``model``, ``digest``, ``size`` (bytes in memory), ``size_vram`` (bytes of these on a GPU),
    ``context_length`` (None before 0.10), ``expires_at`` (ISO 8601) and ``loaded`` (whether it was not there before).
    If the connection has several servers, XCom gets that of each, by its base URL.

    Args:
        options: model options for loading. They are merged with the connection's, and win.
        keep_alive: how long the model stays loaded without a request: seconds, ``"8h"``, or -1 for no limit. None means
            the connection's setting, or else the server's (5 minutes). Each request that sets it replaces the value.
        auto_pull: pull the model if the server lacks it; None means the connection's setting.
        first_token_timeout: seconds until the model is loaded; None means the connection's setting.
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
        """Load the model on every server, and return its state in memory."""
        return self.on_servers(self._load)

    def _load(self, hook: "OllamaHook", log: "Logger") -> dict[str, Any]:
        name = model_name(hook, self.model)
        before = in_memory(hook, name)
        hook.load(name, options=self.options, keep_alive=self.keep_alive)
        now = in_memory(hook, name)
        if now is None:
            # Either keep_alive is 0, or another model has displaced it already.
            log.warning("Model %s was loaded, but is not in memory any more", name)
            return {"model": name, "loaded": True}
        loaded = before is None or (before.digest, before.context_length) != (now.digest, now.context_length)
        log.info("Model %s is in memory%s: %s", now.tag, "" if loaded else " already", _describe(now))
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
    """Unload a model from the memory of every server of the connection, and wait until the memory is free.

    Requests in progress are finished. A model that is not loaded is no error, so a second run changes nothing.

    XCom gets ``model`` and ``unloaded`` (whether anything changed). If the connection has several servers, it gets that
    of each, by its base URL.

    Args:
        unload_timeout: seconds to wait until the memory is free.

    Raises:
        AirflowException: the model is still loaded then, because it is answering requests or new ones keep coming.
    """

    hook_overrides = ("auto_pull",)
    #: Never pull a model in order to unload it.
    auto_pull = False

    def __init__(self, *, unload_timeout: float = 120, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unload_timeout = unload_timeout

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Unload the model on every server, and wait until its memory is free."""
        return self.on_servers(self._unload)

    def _unload(self, hook: "OllamaHook", log: "Logger") -> dict[str, Any]:
        name = model_name(hook, self.model)
        unloaded = unload_and_wait(hook, name, self.unload_timeout)
        log.info("Model %s %s", name, "was unloaded" if unloaded else "is not in memory, nothing has changed")
        return {"model": name, "unloaded": unloaded}


def _describe(entry: RunningModel) -> str:
    share = entry.size_vram / entry.size if entry.size else 0
    context = f", context {entry.context_length}" if entry.context_length else ""
    # The server represents "no limit" by a date some 300 years ahead.
    expires = entry.expires_at
    until = (
        "" if expires is None else ", without limit" if expires.year > 2200 else f", until {expires:%Y-%m-%d %H:%M %Z}"
    )
    return f"{describe_size(entry.size)}, {share:.0%} on a GPU{context}{until}"
