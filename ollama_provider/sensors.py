"""The health sensor. It waits in the worker, or defers to the triggerer."""

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

from ollama_provider.api.arguments import is_null, read_list, read_text
from ollama_provider.api.errors import ClientClosedError, OllamaError

# The modules that talk to a server are imported when the task runs, because DAG files are parsed much more often.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.waiting import Verdict

#: Settings of a poke. It has no retries of its own, since the next poke is the retry.
_NO_RETRIES: dict[str, Any] = {"max_attempts": 1}
#: Least seconds between two pokes that ask what is in the servers' memory. Servers up to 0.24 at least can crash if
#: they are asked that while they load or unload a model.
_LOADED_POKE_INTERVAL = 2.0
#: Airflow's own timeout of the deferral comes this much after the sensor's. It counts if no triggerer runs.
_GRACE = timedelta(minutes=5)


class OllamaHealthSensor(BaseSensorOperator):
    """Wait until an Ollama server answers, and has the models and the version that are needed.

    Each poke sends one to three cheap requests to each server of the connection, without retries. The sensor waits
    through temporary failures (connection refused, timeout, 5xx, a model that is still being pulled). It fails at once
    on permanent ones (401, an untrusted certificate, a wrong path, a server that is not Ollama), if so many servers
    have them that waiting is useless.

    Args:
        conn_id: connection of type *Ollama*.
        models: a model or a list of models that must be on the server. ``name@sha256:…`` (12 hex digits or more)
            requires exactly that version. A cloud model counts as present.
        min_version: the oldest acceptable server version, such as "0.6.4".
        loaded: a model or a list of models that must be in the server's memory. With it, *poke_interval* is 2 s at
            least, because servers up to 0.24 at least can crash if they are asked often while they load a model.
        servers: how many servers of the connection must have all that: ``"any"`` (one of them), ``"all"``, or a number.
        deferrable: poke once in the worker, then wait in the triggerer, without occupying a worker slot. *mode* and
            *exponential_backoff* have no effect then. By default ``[operators] default_deferrable``.
        kwargs: arguments of every sensor: poke_interval, timeout, mode ("poke" or "reschedule"), soft_fail, …

    Raises:
        AirflowFailException: waiting is useless; the text says why and what to do.
        AirflowSensorTimeout: *timeout* has passed.
    """

    template_fields: Sequence[str] = ("conn_id", "models", "min_version", "loaded", "servers")
    ui_color = "#f0ede6"
    #: Set while the task runs.
    hook: "OllamaHook | None" = None

    def __init__(
        self,
        *,
        conn_id: str = "ollama_default",
        models: str | Sequence[str] | None = None,
        min_version: str | None = None,
        loaded: str | Sequence[str] | None = None,
        servers: str | int = "any",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.models = models
        self.min_version = min_version
        self.loaded = loaded
        if loaded is not None:
            self.poke_interval: float = max(self.poke_interval, _LOADED_POKE_INTERVAL)
        self.servers = servers
        self.deferrable = deferrable
        self._logged: str | None = None
        self._trigger_verdict: Verdict | None = None

    def execute(self, context: "Context") -> Any:
        """Wait, with one hook for all pokes."""
        from ollama_provider.hooks import OllamaHook

        with OllamaHook(self.conn_id, **_NO_RETRIES) as self.hook:
            return super().execute(context)

    def poke(self, context: "Context") -> bool:  # noqa: ARG002  # Airflow's signature
        """Check the servers once, or take the verdict of the trigger; defer if that is asked for and not done yet."""
        from ollama_provider.waiting import Never, NotYet

        match self._trigger_verdict or self._check():
            case Never(reason):
                raise AirflowFailException(reason)
            case NotYet(reason):
                if self._trigger_verdict:
                    raise AirflowSensorTimeout(f"not ready within {self.timeout:g} s: {reason}")
                self._log_changed(reason)
                if self.deferrable:
                    self._defer()
                return False
            case ready:
                self.log.info("Ready: %s", ready.summary)
                return True

    def execute_complete(self, context: "Context", event: dict[str, str]) -> Any:
        """Resume with the trigger's verdict, as if a poke had returned it, so that soft_fail and the like apply."""
        from ollama_provider.waiting import Never, NotYet, Ready

        match event["status"]:
            case "ready":
                self._trigger_verdict = Ready(event["text"])
            case "never":
                self._trigger_verdict = Never(event["text"])
            case "failed":
                raise AirflowException(event["text"])
            case _:
                self._trigger_verdict = NotYet(event["text"])
        return super().execute(context)

    def _defer(self) -> None:
        from ollama_provider.triggers import OllamaHealthTrigger

        models, min_version, loaded, servers = self._read_arguments()
        self.defer(
            trigger=OllamaHealthTrigger(
                conn_id=self.conn_id,
                overrides=_NO_RETRIES,
                deadline=time.time() + self.timeout,
                models=models,
                min_version=min_version,
                loaded=loaded,
                servers=servers,
                poll_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _GRACE,
        )

    def _read_arguments(self) -> tuple[tuple[str, ...], str | None, tuple[str, ...], str | int]:
        """Return *models*, *min_version*, *loaded* and *servers*, read from what their templates rendered to."""
        min_version = None if is_null(self.min_version) else read_text("min_version", self.min_version)
        servers = self.servers.strip() if isinstance(self.servers, str) else self.servers
        if isinstance(servers, str) and servers.isdecimal():
            servers = int(servers)
        return _names("models", self.models), min_version, _names("loaded", self.loaded), servers

    def on_kill(self) -> None:
        """Close the connection, which ends the poke."""
        if self.hook:
            self.hook.close()

    def _check(self) -> "Verdict":
        from ollama_provider.hooks import OllamaHook
        from ollama_provider.waiting import Condition, evaluate_error

        def check(hook: "OllamaHook") -> "Verdict":
            try:
                return condition.evaluate([hook.send(request) for request in condition.requests])
            except ClientClosedError:
                raise
            except OllamaError as error:
                return evaluate_error(error)

        self.hook = self.hook or OllamaHook(self.conn_id, **_NO_RETRIES)
        try:
            condition = Condition(*self._read_arguments())
            return condition.evaluate_servers(self.hook.on_servers(check))
        except ClientClosedError as error:
            # `on_kill` has closed the client, so no further poke could succeed.
            raise AirflowException(str(error)) from None
        except OllamaError as error:
            return evaluate_error(error)

    def _log_changed(self, reason: str) -> None:
        """Log what is missing, but only when that has changed since the last poke."""
        if reason != self._logged:
            self.log.info("Not yet: %s", reason)
            self._logged = reason


def _names(name: str, value: Any) -> tuple[str, ...]:
    if is_null(value):
        return ()
    if isinstance(value, str) and (rendered := read_list(value)) is not None:
        value = rendered  # a template made a text of the list
    names = value if isinstance(value, list | tuple | set) else (value,)
    return tuple(read_text(name, each) for each in names)
