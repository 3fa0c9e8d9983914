"""The operator that pulls models to the servers."""

from typing import TYPE_CHECKING, Any

from ollama_provider.api.errors import OllamaError
from ollama_provider.operators._deferrable import DeferrableOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import PullRequest
    from ollama_provider.hooks import OllamaHook
    from ollama_provider.observability import Logger


class OllamaPullModelOperator(DeferrableOperator):
    """Pull a model to every server of the connection, with the progress of the download in the task's log.

    A model that the server has is left as it is, without a request to the registry. So a second run changes nothing,
    and a server without internet access is no problem then. XCom gets ``model``, ``digest``, ``size`` (bytes) and
    ``pulled`` (whether anything changed). If the connection has several servers, it gets that of each, by its base URL.

    Args:
        update: also check the registry if the server has the model, and download a newer version of it.
        pull_stall_timeout: seconds without progress after which the download fails; None means the connection's
            setting. The server keeps what was downloaded, and the next try continues from there.
    """

    hook_overrides = ("pull_stall_timeout",)

    def __init__(self, *, update: bool = False, pull_stall_timeout: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.update = update
        self.pull_stall_timeout = pull_stall_timeout

    def perform(self, context: "Context") -> Any:
        """Pull the model to every server that lacks it; to all, if it is to be updated."""
        from ollama_provider.api.schemas import PullRequest

        request = self.hook.request(PullRequest, model=self.model)
        if not self.deferrable:
            return self.on_servers(lambda hook, log: self._pull(hook, log, request))
        try:
            before = self.hook.on_servers(lambda hook: _digest(hook, request))
        except OllamaError as error:
            if len(self.hook.servers) == 1:
                raise
            # A server that does not answer must not keep the others from pulling.
            self.log.info("Not deferring: %s", error)
            return self.on_servers(lambda hook, log: self._pull(hook, log, request))
        pulling = [url for url, digest in before.items() if digest is None or self.update]
        if not pulling:
            return self.on_servers(lambda hook, log: _describe(hook, log, request, before[hook.settings.base_url]))
        if len(before) == 1:
            return self.send_and_finish(context, request, before=before[pulling[0]])
        return self.send_and_finish(context, request, servers=pulling, before=before, pulling=pulling)

    def _pull(self, hook: "OllamaHook", log: "Logger", request: "PullRequest") -> dict[str, Any]:
        before = _digest(hook, request)
        if before is None or self.update:
            hook.send(request)
        return _describe(hook, log, request, before)

    def finish(self, context: "Context", request: Any, send: "Send", **remembered: Any) -> Any:  # noqa: ARG002
        """Receive the answers, and return the state of the model."""
        before, pulling = remembered["before"], remembered.get("pulling")
        if pulling is None:  # there is one server
            send(request)
            return self.on_servers(lambda hook, log: _describe(hook, log, request, before))
        failed = {url: error for url in pulling if (error := _error_of(send, request))}

        def describe(hook: "OllamaHook", log: "Logger") -> dict[str, Any]:
            url = hook.settings.base_url
            if url in failed:
                raise failed[url]
            return _describe(hook, log, request, before.get(url))

        return self.on_servers(describe)


def _error_of(send: "Send", request: "PullRequest") -> OllamaError | None:
    try:
        send(request)
    except OllamaError as error:
        return error
    return None


def _digest(hook: "OllamaHook", request: "PullRequest") -> str | None:
    """Return the digest of the model on a server; None if the server lacks the model."""
    from ollama_provider.operators._server_models import find_model

    entry = find_model(hook, request.model)
    return entry.digest if entry else None


def _describe(hook: "OllamaHook", log: "Logger", request: "PullRequest", before: str | None) -> dict[str, Any]:
    """Return the state of the model, and whether its digest differs from *before*, the one before the pull."""
    from ollama_provider.operators._server_models import find_model

    now = find_model(hook, request.model)
    digest = now.digest if now else None
    pulled = digest != before
    log.info("Model %s is there%s", request.model, "" if pulled else ", nothing has changed")
    return {
        "model": now.tag if now else request.model,
        "digest": digest,
        "size": now.size if now else None,
        "pulled": pulled,
    }
