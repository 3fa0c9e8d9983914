"""Waits in the worker, or hands the wait over to the triggerer."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    conf,
)

from ollama_provider.api.arguments import is_null, read_text
from ollama_provider.api.errors import ClientClosedError, OllamaError

# What talks to a server is loaded when a task runs: DAG files are parsed all day, and tasks run now and then.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.waiting import Verdict

#: The next poke is the retry.
_PROBE = {"max_attempts": 1}
#: Airflow ends the wait by itself so long after the timeout, in case no triggerer runs that would keep it.
_GRACE = timedelta(minutes=5)


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
        deferrable: ask once, and then wait in the triggerer, without a slot of a worker; *mode* does not matter then,
            and nor does *exponential_backoff*. By default ``[operators] default_deferrable``.
        kwargs: those of every sensor: poke_interval, timeout, mode ("poke" or "reschedule"), soft_fail, …

    Raises:
        AirflowFailException: waiting is useless; the text says why and what to do.
        AirflowSensorTimeout: *timeout* has passed.
    """

    template_fields: Sequence[str] = ("conn_id", "models", "min_version", "loaded")
    ui_color = "#f0ede6"
    #: Open while the task runs.
    hook: "OllamaHook | None" = None

    def __init__(
        self,
        *,
        conn_id: str = "ollama_default",
        models: str | Sequence[str] | None = None,
        min_version: str | None = None,
        loaded: str | Sequence[str] | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.models = models
        self.min_version = min_version
        self.loaded = loaded
        self.deferrable = deferrable
        self._told: str | None = None
        self._found: Verdict | None = None

    def execute(self, context: "Context") -> Any:
        """Wait, with one connection for all pokes."""
        from ollama_provider.hooks import OllamaHook

        with OllamaHook(self.conn_id, **_PROBE) as self.hook:
            return super().execute(context)

    def poke(self, context: "Context") -> bool:  # noqa: ARG002  # Airflow's signature
        """Ask once; hand over what is not yet there, if that is wanted."""
        from ollama_provider.waiting import Never, NotYet

        match self._found or self._look():
            case Never(reason):
                raise AirflowFailException(reason)
            case NotYet(reason):
                if self._found:
                    raise AirflowSensorTimeout(f"not ready within {self.timeout:g} s: {reason}")
                self._tell(reason)
                if self.deferrable:
                    self._hand_over()
                return False
            case ready:
                self.log.info("Ready: %s", ready.summary)
                return True

    def execute_complete(self, context: "Context", event: dict[str, str]) -> Any:
        """Go on with what the trigger has found, as if a poke had found it: soft_fail and its kin hold as ever."""
        from ollama_provider.waiting import Never, NotYet, Ready

        match event["status"]:
            case "ready":
                self._found = Ready(event["text"])
            case "never":
                self._found = Never(event["text"])
            case "failed":
                raise AirflowException(event["text"])
            case _:
                self._found = NotYet(event["text"])
        return super().execute(context)

    def _hand_over(self) -> None:
        from ollama_provider.triggers import OllamaHealthTrigger

        models, min_version, loaded = self._wanted()
        self.defer(
            trigger=OllamaHealthTrigger(
                conn_id=self.conn_id,
                overrides=_PROBE,
                deadline=time.time() + self.timeout,
                models=models,
                min_version=min_version,
                loaded=loaded,
                poll_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _GRACE,
        )

    def _wanted(self) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
        """Return models, oldest version and models in memory, out of their templates."""
        oldest = None if is_null(self.min_version) else read_text("min_version", self.min_version)
        return _names("models", self.models), oldest, _names("loaded", self.loaded)

    def on_kill(self) -> None:
        """Close the connection, which ends the wait."""
        if self.hook:
            self.hook.close()

    def _look(self) -> "Verdict":
        from ollama_provider.hooks import OllamaHook
        from ollama_provider.waiting import Condition, judge_error

        self.hook = self.hook or OllamaHook(self.conn_id, **_PROBE)
        try:
            condition = Condition(*self._wanted())
            return condition.judge([self.hook.send(request) for request in condition.requests])
        except ClientClosedError as error:
            # The task was killed: no poke could find anything any more.
            raise AirflowException(str(error)) from None
        except OllamaError as error:
            return judge_error(error)

    def _tell(self, reason: str) -> None:
        """Log what is missing when that changes: a night of pokes is not a night of the same line."""
        if reason != self._told:
            self.log.info("Not yet: %s", reason)
            self._told = reason


def _names(name: str, value: Any) -> tuple[str, ...]:
    if is_null(value):
        return ()
    names = value if isinstance(value, list | tuple | set) else (value,)
    return tuple(read_text(name, each) for each in names)
