"""Operators that copy and delete models on the server's disk."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ollama_provider.api.errors import ModelNotFoundError
from ollama_provider.api.model_names import ModelName
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.operators._server_models import find_model, model_name, unload_and_wait

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.observability import Logger


class OllamaCopyModelOperator(OllamaOperator):
    """Give a model a second name, on every server of the connection.

    It takes no disk space, because both names share the files.

    If another model had that name, the name is moved. A second run changes nothing, unless *model* has changed.

    XCom gets ``model`` (the new name), ``digest``, ``size`` (bytes) and ``copied`` (whether anything changed). If the
    connection has several servers, it gets that of each, by its base URL.

    Args:
        model: name of the model; None means the connection's default model. It is never pulled.
        destination: the second name.
    """

    template_fields: Sequence[str] = (*OllamaOperator.template_fields, "destination")

    def __init__(self, *, destination: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.destination = destination

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Copy the model on every server, unless the destination is the same model already."""
        return self.on_servers(self._copy)

    def _copy(self, hook: "OllamaHook", log: "Logger") -> dict[str, Any]:
        name = model_name(hook, self.model)
        source, before = find_model(hook, name), find_model(hook, self.destination)
        if source is None:
            raise ModelNotFoundError(
                "there is no such model to copy", host=hook.settings.base_url, model=name, advice="Pull it first."
            )
        copied = before is None or before.digest != source.digest
        if copied:
            hook.copy(name, self.destination)
            log.info("Model %s was copied to %s", name, self.destination)
        else:
            log.info("Model %s is already a copy of %s, nothing has changed", self.destination, name)
        now = find_model(hook, self.destination)
        return {
            "model": now.tag if now else self.destination,
            "digest": source.digest,
            "size": source.size,
            "copied": copied,
        }


class OllamaDeleteModelOperator(OllamaOperator):
    """Delete a model on every server of the connection: its name, and the files that no other name needs.

    A loaded model is unloaded first, because the server would keep it in memory otherwise. Requests in progress are
    finished. If that takes longer than *unload_timeout*, the task fails and nothing is deleted. A missing model is no
    error, so a second run changes nothing.

    XCom gets ``model`` and ``deleted`` (whether anything changed). If the connection has several servers, it gets that
    of each, by its base URL.

    Args:
        model: name of the model; there is no default.
        unload_timeout: seconds to wait until a loaded model is unloaded.
    """

    hook_overrides = ("auto_pull",)
    #: Never pull a model in order to delete it.
    auto_pull = False

    def __init__(self, *, model: str, unload_timeout: float = 120, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.unload_timeout = unload_timeout

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Delete the model on every server that has it."""
        return self.on_servers(self._delete)

    def _delete(self, hook: "OllamaHook", log: "Logger") -> dict[str, Any]:
        name = str(ModelName.parse(self.model or ""))
        entry = find_model(hook, name)
        if entry is None:
            log.info("There is no model %s, nothing has changed", name)
            return {"model": name, "deleted": False}
        if unload_and_wait(hook, entry.tag, self.unload_timeout):
            log.info("Model %s was in memory, and was unloaded", entry.tag)
        hook.delete(entry.tag)
        log.info("Model %s was deleted", entry.tag)
        return {"model": entry.tag, "deleted": True}
