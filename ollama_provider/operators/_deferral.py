"""A task that waits for its answer in a worker, or hands the wait over to the triggerer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf

from ollama_provider.api.asking import Send
from ollama_provider.api.schemas import Request
from ollama_provider.handover import Inbox, discard, handover_path, pack, unpack
from ollama_provider.operators._base import OllamaOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Airflow ends the wait by itself so long after the deadline, in case no triggerer runs that would keep it.
_GRACE = timedelta(minutes=5)


class DeferrableOperator(OllamaOperator):
    """A task with one request, whose answer may take long.

    A subclass makes the request in `perform` and hands it to `carry_out`. What follows the answer stands in `finish`,
    which is the same for both ways to wait.

    Args:
        deferrable: wait in the triggerer, without a slot of a worker. By default ``[operators] default_deferrable``.
            The answer is asked for once more if the triggerer is restarted meanwhile. A deferral takes some seconds,
            so it is for answers that take longer.
    """

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable

    @property
    def may_cut(self) -> bool:
        """Whether a part of a prompt that is too long will do."""
        return False

    def carry_out(self, context: "Context", request: Request[Any], **remembered: Any) -> Any:
        """Wait for the answer, here or elsewhere, and `finish`.

        Args:
            context: of the task.
            request: what to ask.
            remembered: more arguments of `finish`, small JSON data.
        """
        if self.deferrable:
            self._hand_over(request, remembered)
        return self.finish(context, request, self.hook.send, **remembered)

    def finish(self, context: "Context", request: Request[Any], send: Send, **remembered: Any) -> Any:
        """Take the answer from *send* and return what goes to XCom."""
        raise NotImplementedError

    def _hand_over(self, request: Request[Any], remembered: dict[str, Any]) -> None:
        # Here, since DAG files, which do not defer, need not load it.
        from ollama_provider.triggers import OllamaRequestTrigger  # noqa: PLC0415

        folder, limit = handover_path(), self.execution_timeout
        parcel = pack(request, folder)
        overrides = {name: getattr(self, name) for name in self.hook_overrides}
        self.defer(
            trigger=OllamaRequestTrigger(
                conn_id=self.conn_id,
                overrides={name: value for name, value in overrides.items() if value is not None},
                deadline=time.time() + limit.total_seconds() if limit else None,
                parcel=parcel,
                may_cut=self.may_cut,
                folder=folder,
            ),
            method_name="execute_complete",
            kwargs={"parcel": parcel, **remembered},
            timeout=limit + _GRACE if limit else None,
        )

    def execute_complete(self, context: "Context", event: dict[str, Any], parcel: dict[str, str], **kwargs: Any) -> Any:
        """Go on with the answers that the trigger has got."""
        with self.at_work(), _received(event, parcel) as answers:
            if answers is None:
                raise AirflowTaskTimeout(
                    f"execution_timeout ({self.execution_timeout}) passed while the task was deferred; "
                    "its request was broken off"
                )
            return self.finish(context, unpack(parcel), answers.send, **kwargs)


@contextmanager
def _received(event: dict[str, Any], parcel: dict[str, str]) -> Iterator[Inbox | None]:
    """Give the answers of an event, None if there are none, and remove the files in the end."""
    try:
        if event["status"] == "timeout":
            yield None
        else:
            with Inbox(event["answers"]) as inbox:
                yield inbox
    finally:
        discard(parcel)
