"""A task that waits for its answer in a worker, or hands the wait over to the triggerer."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout, conf

from ollama_provider.operators._base import OllamaOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import Request

#: Airflow ends the wait by itself so long after the deadline, in case no triggerer runs that would keep it.
_GRACE = timedelta(minutes=5)


class DeferrableOperator(OllamaOperator):
    """A task with one request, whose answer may take long.

    A subclass makes the request in `perform` and hands it to `carry_out`. What follows the answer stands in `finish`,
    which is the same for both ways to wait.

    Args:
        deferrable: wait in the triggerer, without a slot of a worker. By default ``[operators] default_deferrable``.
            The answer is asked for once more if the triggerer is restarted meanwhile. A deferral takes ten
            seconds at the least, so it is for answers that take longer.
    """

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self._handed_over = False

    def render_template_fields(self, context: "Context", jinja_env: Any = None) -> None:
        """Render the templates, once: Airflow 2's ``dags test`` goes on with the object that has deferred.

        What is rendered is data, and braces in it are no template.
        """
        if not self._handed_over:
            super().render_template_fields(context, jinja_env)

    @property
    def may_cut(self) -> bool:
        """Whether a part of a prompt that is too long will do."""
        return False

    def handover_folder(self) -> str | None:
        """Return where a request or an answer may go that is too large for Airflow's database."""
        from ollama_provider.payloads import handover_path

        return handover_path()

    def most(self) -> int | None:
        """Return how many bytes of an answer are taken in the end; None is no bound."""
        return None

    def carry_out(self, context: "Context", request: "Request[Any]", **remembered: Any) -> Any:
        """Wait for the answer, here or elsewhere, and `finish`.

        Args:
            context: of the task.
            request: what to ask.
            remembered: more arguments of `finish`, small JSON data.
        """
        if self.deferrable:
            self._hand_over(request, remembered)
        return self.finish(context, request, self.hook.send, **remembered)

    def finish(self, context: "Context", request: "Request[Any]", send: "Send", **remembered: Any) -> Any:
        """Take the answer from *send* and return what goes to XCom."""
        raise NotImplementedError

    def _hand_over(self, request: "Request[Any]", remembered: dict[str, Any]) -> None:
        from ollama_provider.payloads import write_request
        from ollama_provider.triggers import OllamaRequestTrigger

        self._handed_over = True
        folder, limit = self.handover_folder(), self.execution_timeout
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
                most=self.most(),
            ),
            method_name="execute_complete",
            timeout=limit + _GRACE if limit else None,
        )

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> Any:
        """Go on with the answers that the trigger has got."""
        from ollama_provider.payloads import AnswerReader, delete_payload, read_request

        try:
            if event["status"] == "timeout":
                raise AirflowTaskTimeout(
                    f"execution_timeout ({self.execution_timeout}) passed while the task was deferred; "
                    "its request was broken off"
                )
            if event["status"] == "failed":
                raise AirflowException(event["text"])
            with self.at_work(), AnswerReader(event["answers"]) as answers:
                return self.finish(context, read_request(event["parcel"]), answers.send, **event["remembered"])
        finally:
            delete_payload(event["parcel"])
