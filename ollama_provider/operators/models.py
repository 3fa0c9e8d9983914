"""The operator that pulls models to the server."""

from typing import TYPE_CHECKING, Any

from ollama_provider.operators._deferrable import DeferrableOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send


class OllamaPullModelOperator(DeferrableOperator):
    """Pull a model to the server, with the progress of the download in the task's log.

    A model that the server has is left as it is, without a request to the registry. So a second run changes nothing,
    and a server without internet access is no problem then. XCom gets ``model``, ``digest``, ``size`` (bytes) and
    ``pulled`` (whether anything changed).

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

    def perform(self, context: "Context") -> dict[str, Any]:
        """Pull the model if the server lacks it or it is to be updated."""
        from ollama_provider.api.schemas import PullRequest

        request = self.hook.request(PullRequest, model=self.model)
        before = self.find_model(request.model)
        digest = before.digest if before else None
        if before is not None and not self.update:
            return self.describe(request.model, digest)
        result: dict[str, Any] = self.send_and_finish(context, request, before=digest)
        return result

    def finish(self, context: "Context", request: Any, send: "Send", **remembered: Any) -> dict[str, Any]:  # noqa: ARG002
        """Wait for the download, and return the state of the model."""
        send(request)
        return self.describe(request.model, remembered["before"])

    def describe(self, name: str, before: str | None) -> dict[str, Any]:
        """Return the state of the model, and whether its digest differs from *before*, the one before the pull."""
        now = self.find_model(name)
        digest = now.digest if now else None
        pulled = digest != before
        self.log.info("Model %s is there%s", name, "" if pulled else ", nothing has changed")
        return {
            "model": now.tag if now else name,
            "digest": digest,
            "size": now.size if now else None,
            "pulled": pulled,
        }
