"""Base class of the operators that can wait for their answer in the worker or in the triggerer."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout, conf

from ollama_provider.operators._base import OllamaOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import Request

#: Airflow's own timeout of the deferral comes this much after the trigger's deadline. It counts if no triggerer runs.
_GRACE = timedelta(minutes=5)


class DeferrableOperator(OllamaOperator):
    """A task that sends one request, whose answer may take long.

    A subclass builds the request in `perform` and passes it to `send_and_finish`. It handles the answer in `finish`,
    which runs in the worker, whether the task has waited there or in the triggerer.

    Args:
        deferrable: wait in the triggerer, without occupying a worker slot. By default
            ``[operators] default_deferrable``. The request is sent again if the triggerer is restarted meanwhile. A
            deferral takes at least ten seconds, so it is useful for answers that take longer.
    """

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self._has_deferred = False

    def render_template_fields(self, context: "Context", jinja_env: Any = None) -> None:
        """Render the templates, but only once.

        ``dags test`` of Airflow 2 resumes a deferred task with the same operator object. Its fields are rendered
        already, and braces in them are data.
        """
        if not self._has_deferred:
            super().render_template_fields(context, jinja_env)

    @property
    def may_cut(self) -> bool:
        """Whether the server may cut a prompt that is longer than the context."""
        return False

    def payload_folder(self) -> str | None:
        """Return the directory for a request or an answer that is too large for Airflow's database."""
        from ollama_provider.payloads import handover_path

        return handover_path()

    def answer_limit(self) -> int | None:
        """Return the largest answer that `finish` accepts, in bytes of JSON; None for no limit."""
        return None

    def send_and_finish(
        self, context: "Context", request: "Request[Any]", *, servers: Sequence[str] | None = None, **remembered: Any
    ) -> Any:
        """Send the request, wait for its answer in the worker or in the triggerer, and call `finish`.

        Args:
            context: of the task.
            request: the request to send.
            servers: base URLs of the servers that the trigger sends it to, each of them, so that there are so many
                answers; None if one server of the connection is to answer.
            remembered: more arguments of `finish`. They must be small JSON data.
        """
        if self.deferrable:
            self._defer(request, servers, remembered)
        return self.finish(context, request, self.hook.send, **remembered)

    def finish(self, context: "Context", request: "Request[Any]", send: "Send", **remembered: Any) -> Any:
        """Return the value for XCom.

        Args:
            context: of the task.
            request: the request that was given to `send_and_finish`.
            send: returns the reply to a request, either from the server or from the trigger's payload.
            remembered: the further arguments that were given to `send_and_finish`.
        """
        raise NotImplementedError

    def _defer(self, request: "Request[Any]", servers: Sequence[str] | None, remembered: dict[str, Any]) -> None:
        from ollama_provider.payloads import write_request
        from ollama_provider.triggers import OllamaRequestTrigger

        self._has_deferred = True
        folder, limit = self.payload_folder(), self.execution_timeout
        overrides = {name: getattr(self, name) for name in self.hook_overrides}
        self.defer(
            trigger=OllamaRequestTrigger(
                conn_id=self.conn_id,
                overrides={name: value for name, value in overrides.items() if value is not None},
                deadline=time.time() + limit.total_seconds() if limit else None,
                parcel=write_request(request, folder),
                remembered=remembered,
                may_cut=self.may_cut,
                folder=folder,
                most=self.answer_limit(),
                servers=servers,
            ),
            method_name="execute_complete",
            timeout=limit + _GRACE if limit else None,
        )

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> Any:
        """Resume the task with the answers in the trigger's event."""
        from ollama_provider.payloads import AnswerReader, delete_payload, read_request

        try:
            if event["status"] == "timeout":
                raise AirflowTaskTimeout(
                    f"execution_timeout ({self.execution_timeout}) passed while the task was deferred; "
                    "its request was cancelled"
                )
            if event["status"] == "failed":
                raise AirflowException(event["text"])
            with self.open_hook(), AnswerReader(event["answers"]) as answers:
                return self.finish(context, read_request(event["parcel"]), answers.send, **event["remembered"])
        finally:
            delete_payload(event["parcel"])
