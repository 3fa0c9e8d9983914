"""Waits in the worker."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseSensorOperator

from ollama_provider.api.errors import OllamaError
from ollama_provider.hooks import OllamaHook
from ollama_provider.waiting import Condition, Never, NotYet, Verdict, judge_error

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: The next poke is the retry.
_PROBE = {"max_attempts": 1}


class OllamaHealthSensor(BaseSensorOperator):
    """Wait until an Ollama server answers, and has what is wanted.

    Each poke is one to three cheap requests without retries. What may pass (refused, timeout, 5xx, a model that is
    still being pulled) is waited for; what cannot (401, a certificate, a wrong path, not an Ollama) fails at once.

    Args:
        conn_id: connection of type *Ollama*.
        models: names that have to be on the server. ``name@sha256:…`` (12 hex digits or more) wants that very version.
            A cloud model counts as there.
        min_version: the oldest server version that will do, such as "0.6.4".
        loaded: names that have to be in the server's memory.
        kwargs: those of every sensor: poke_interval, timeout, mode ("poke" or "reschedule"), soft_fail, …

    Raises:
        AirflowFailException: waiting is useless; the text says why and what to do.
    """

    template_fields: Sequence[str] = ("conn_id", "models", "min_version", "loaded")
    ui_color = "#f0ede6"
    #: Open while the task runs.
    hook: OllamaHook | None = None

    def __init__(
        self,
        *,
        conn_id: str = OllamaHook.default_conn_name,
        models: str | Sequence[str] | None = None,
        min_version: str | None = None,
        loaded: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.models = models
        self.min_version = min_version
        self.loaded = loaded
        self._told: str | None = None

    def execute(self, context: "Context") -> Any:
        """Wait, with one connection for all pokes."""
        with OllamaHook(self.conn_id, **_PROBE) as self.hook:
            return super().execute(context)

    def poke(self, context: "Context") -> bool:  # noqa: ARG002  # Airflow's signature
        """Ask once."""
        match self._look():
            case Never(reason):
                raise AirflowFailException(reason)
            case NotYet(reason):
                self._tell(reason)
                return False
            case ready:
                self.log.info("Ready: %s", ready.summary)
                return True

    def on_kill(self) -> None:
        """Close the connection."""
        if self.hook:
            self.hook.close()

    def _look(self) -> Verdict:
        self.hook = self.hook or OllamaHook(self.conn_id, **_PROBE)
        try:
            condition = Condition(_names(self.models), self.min_version, _names(self.loaded))
            return condition.judge([self.hook.send(request) for request in condition.requests])
        except OllamaError as error:
            return judge_error(error)

    def _tell(self, reason: str) -> None:
        """Log what is missing when that changes: a night of pokes is not a night of the same line."""
        if reason != self._told:
            self.log.info("Not yet: %s", reason)
            self._told = reason


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
