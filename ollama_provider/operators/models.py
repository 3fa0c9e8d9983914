"""Bring models to the server."""

from typing import TYPE_CHECKING, Any

from ollama_provider.operators._deferrable import DeferrableOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send


class OllamaPullModelOperator(DeferrableOperator):
    """See to it that the server has a model, with the progress of the download in the task's log.

    A model that is there is left as it is, without asking the registry: a second run changes nothing, and a server
    without internet is content. XCom gets ``model``, ``digest``, ``size`` (bytes) and ``pulled`` (whether anything
    changed).

    Args:
        update: ask the registry also when the model is there, and download what is newer under the same name.
        pull_stall_timeout: seconds without a byte more; None is the connection's setting. What was downloaded before
            stays on the server, and the next try goes on there.
    """

    hook_overrides = ("pull_stall_timeout",)

    def __init__(self, *, update: bool = False, pull_stall_timeout: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.update = update
        self.pull_stall_timeout = pull_stall_timeout

    def perform(self, context: "Context") -> dict[str, Any]:
        """Pull the model if need be, and say what is there."""
        from ollama_provider.api.schemas import PullRequest

        request = self.hook.request(PullRequest, model=self.model)
        before = self.find_model(request.model)
        digest = before.digest if before else None
        if before is not None and not self.update:
            return self.describe(request.model, digest)
        result: dict[str, Any] = self.send_and_finish(context, request, before=digest)
        return result

    def finish(self, context: "Context", request: Any, send: "Send", **remembered: Any) -> dict[str, Any]:  # noqa: ARG002
        """Wait for the download, and say what is there."""
        send(request)
        return self.describe(request.model, remembered["before"])

    def describe(self, name: str, before: str | None) -> dict[str, Any]:
        """Say what is there, and whether that is new; *before* is the digest that was there first."""
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
