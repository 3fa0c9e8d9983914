"""Log lines and Airflow metrics of the calls to Ollama. They never contain a prompt or an answer.

The metrics, their types and tags are listed in ``docs/reference/metrics.md``.
"""

import re
from datetime import timedelta
from functools import cache
from typing import Any, Protocol

from airflow.providers.common.compat import sdk

from ollama_provider.api.events import AttemptFailed, CallEnded, Event, PullMoved, ServerFailed


class Logger(Protocol):
    """The methods of a logger that are used here. Airflow's may be the standard library's or structlog's."""

    def debug(self, msg: str, *args: Any) -> None: ...  # noqa: D102
    def info(self, msg: str, *args: Any) -> None: ...  # noqa: D102
    def warning(self, msg: str, *args: Any) -> None: ...  # noqa: D102


class ServerLogger:
    """A logger that puts the server before each line, for work on several servers at the same time.

    Args:
        log: the logger.
        url: base URL of the server.
    """

    def __init__(self, log: Logger, url: str) -> None:
        self._log = log
        self._url = url

    def debug(self, msg: str, *args: Any) -> None:  # noqa: D102
        self._log.debug(f"%s: {msg}", self._url, *args)

    def info(self, msg: str, *args: Any) -> None:  # noqa: D102
        self._log.info(f"%s: {msg}", self._url, *args)

    def warning(self, msg: str, *args: Any) -> None:  # noqa: D102
        self._log.warning(f"%s: {msg}", self._url, *args)


class TaskObserver:
    """Listener that logs a client's events to the task's log and counts them in metrics.

    Args:
        log: the task's logger.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log

    def __call__(self, event: Event) -> None:
        """Log and count one event."""
        match event:
            case AttemptFailed():
                self._attempt_failed(event)
            case ServerFailed():
                self._server_failed(event)
            case CallEnded():
                self._call_ended(event)
            case PullMoved():
                self._log.info("%s", describe_pull(event))

    def _attempt_failed(self, event: AttemptFailed) -> None:
        self._log.warning(
            "%s: attempt %d failed, retrying in %.1f s: %s",
            event.path,
            event.attempt,
            event.wait,
            event.error,
        )
        sdk.Stats.incr("ollama.retries", tags={**_tags(event), "error": type(event.error).__name__})

    def _server_failed(self, event: ServerFailed) -> None:
        self._log.warning("%s: going on with %s: %s", event.path, event.next_host, event.error)
        sdk.Stats.incr("ollama.retries", tags={**_tags(event), "error": type(event.error).__name__})

    def _call_ended(self, event: CallEnded) -> None:
        outcome = event.error.__name__ if event.error else "success"
        self._log.debug("%s: %s after %.2f s (model %s)", event.path, outcome, event.seconds, event.model)
        # `sdk` loads its attributes on first access, and that of Stats reads Airflow's configuration.
        tags = _tags(event)
        sdk.Stats.incr("ollama.requests", tags={**tags, "outcome": outcome})
        sdk.Stats.timing("ollama.request_duration", timedelta(seconds=event.seconds), tags=tags)
        if event.metrics:
            sdk.Stats.incr("ollama.prompt_tokens", event.metrics.prompt_eval_count, tags=tags)
            sdk.Stats.incr("ollama.answer_tokens", event.metrics.eval_count, tags=tags)


def describe_pull(event: PullMoved) -> str:
    """Return the progress of a pull as one line: percent, size, speed, remaining time."""
    facts = [event.status]
    if event.percent is not None:
        facts.append(f"{event.percent:.0f} % of {describe_size(event.total)}")
    if event.rate is not None:
        facts.append(f"{describe_size(event.rate)}/s")
    if event.eta is not None:
        facts.append(f"{timedelta(seconds=round(event.eta))} left")
    return f"{event.model}: {', '.join(facts)}"


def describe_size(count: float) -> str:
    """Return a number of bytes as a text: "2.0 GB", "5.1 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _tags(event: AttemptFailed | ServerFailed | CallEnded) -> dict[str, str]:
    url = event.server if isinstance(event, CallEnded) else event.error.host
    return {
        "endpoint": event.path.removeprefix("/api/"),
        "model": tag_value(event.model or ""),
        "server": server_tag(url or ""),
    }


def server_tag(url: str) -> str:
    """Return the address of a server as the value of a tag: host, port and base path, as in ``gpu1:11434``.

    Args:
        url: base URL, which holds no credentials; empty if no server was involved.
    """
    return tag_value(url.partition("://")[2])


def tag_value(text: str) -> str:
    """Return a text as the value of a tag.

    With StatsD and tags in InfluxDB's style Airflow drops a metric whose tags have a colon, and logs a traceback for
    each; there it becomes an underscore, and so does what else Airflow does not take.
    """
    return re.sub(r"[^\w./-]", "_", text, flags=re.ASCII) if _in_influxdb_style() else text


@cache
def _in_influxdb_style() -> bool:
    return bool(sdk.conf.getboolean("metrics", "statsd_influxdb_enabled", fallback=False))
