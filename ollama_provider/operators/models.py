"""Bring models to the server."""

from typing import TYPE_CHECKING, Any

from ollama_provider.api.schemas import PullRequest
from ollama_provider.operators._base import OllamaOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class OllamaPullModelOperator(OllamaOperator):
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

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Pull the model if need be, and say what is there."""
        name = self.hook.request(PullRequest, model=self.model).model
        before = self.find_model(name)
        if before is None or self.update:
            self.hook.pull(name)
        now = self.find_model(name)
        pulled = (now and now.digest) != (before and before.digest)
        self.log.info("Model %s is there%s", name, "" if pulled else ", nothing has changed")
        return {
            "model": now.tag if now else name,
            "digest": now and now.digest,
            "size": now and now.size,
            "pulled": pulled,
        }
