"""Base class of the operators: the connection, `on_kill`, and the conversion of our errors to Airflow's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    BaseOperator,
)

from ollama_provider.api.arguments import read_list
from ollama_provider.api.errors import OllamaError
from ollama_provider.batch import BatchError

# The modules that talk to a server are imported when the task runs, because DAG files are parsed much more often.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.observability import Logger

T = TypeVar("T")

_USAGE_UNITS = {
    "texts": "texts",
    "prompt_tokens": "prompt tokens",
    "tokens": "tokens generated",
    "seconds": "s",
    "tokens_per_second": "tokens/s",
}


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Convert our errors to Airflow's. One that a retry cannot fix becomes `AirflowFailException`."""
    try:
        yield
    except (OllamaError, BatchError) as error:
        kind = AirflowException if error.retryable else AirflowFailException
        # Without httpx's traceback, which would bury the text in the log.
        raise kind(str(error)) from None
    except AirflowNotFoundException as error:
        raise AirflowFailException(str(error)) from None


def describe(usage: dict[str, Any]) -> str:
    """Return the usage of an answer as one line for the log."""
    counts = [f"{usage[key]} {what}" for key, what in _USAGE_UNITS.items() if usage.get(key) is not None]
    return f"Model {usage['model']} at {usage['server']}: {', '.join(counts)}"


class OllamaOperator(BaseOperator):
    """A task that sends requests to an Ollama server.

    A subclass does its work in `perform`. It lists in `hook_overrides` those of its arguments that replace settings of
    the connection.

    Args:
        conn_id: connection of type *Ollama*.
        model: name of the model; None means the connection's default model.

    Raises:
        AirflowFailException: the request or the setup is wrong; the task fails without retries.
        AirflowException: a retry may help.
    """

    template_fields: Sequence[str] = ("conn_id", "model")
    # Suffixes with which no sentence ends: "Summarise README.md" is a prompt, not a file.
    template_ext: Sequence[str] = (".prompt", ".jinja2")
    ui_color = "#f0ede6"
    hook_overrides: ClassVar[Sequence[str]] = ()
    #: Template fields that may be lists. If a template has turned a list into text, it is converted back.
    list_fields: ClassVar[Sequence[str]] = ()

    def __init__(self, *, conn_id: str = "ollama_default", model: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.model = model
        #: What is known of the work of this try, for its lineage: model, digest, server, numbers. None before it began.
        self.work: dict[str, Any] | None = None

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a template. In the fields of `list_fields`, the text of a list is converted back to the list."""
        rendered = super().render_template(content, *args, **kwargs)
        if not (isinstance(content, str) and isinstance(rendered, str)) or rendered == content:
            # Only text that a template has produced is converted. Other text is meant literally.
            return rendered
        fields = {name for name in self.template_fields if getattr(self, name, None) is content}
        items = read_list(rendered) if fields and fields <= set(self.list_fields) else None
        return rendered if items is None else items

    @cached_property
    def hook(self) -> "OllamaHook":
        """The hook of the current try."""
        from ollama_provider.hooks import OllamaHook

        return OllamaHook(self.conn_id, **{name: getattr(self, name) for name in self.hook_overrides})

    def execute(self, context: "Context") -> Any:
        """Run `perform`, with errors converted to Airflow's, and close the connection at the end."""
        with self.open_hook():
            return self.perform(context)

    @contextmanager
    def open_hook(self) -> Iterator[None]:
        """Context manager: converts errors to Airflow's, and closes the hook at the end."""
        self.work = {}
        try:
            with airflow_errors(), self.hook:
                yield
        finally:
            # A closed hook cannot be reused, so another try in the same process creates a new one.
            hook = self.__dict__.pop("hook", None)
            settings = None if hook is None else hook.__dict__.get("settings")
            if settings is not None:  # the connection was read
                self.work = {"model": self.model or settings.model, "server": ", ".join(settings.urls)} | self.work

    def perform(self, context: "Context") -> Any:
        """Do the work of the task, and return the value for XCom."""
        raise NotImplementedError

    def on_kill(self) -> None:
        """Close the connection. That ends the read that waits for the model, and stops the model's work."""
        if "hook" in self.__dict__:
            self.hook.close()

    def on_servers(self, work: "Callable[[OllamaHook, Logger], T]") -> "T | dict[str, T]":
        """Do the work of the task on every server of the connection at the same time.

        Args:
            work: called with the hook of a server, and a logger that names it if there are several.

        Returns:
            What *work* has returned; if there are several servers, that of each by its base URL.

        Raises:
            OllamaError: some servers failed, which did not stop the others; the text names each of them.
        """
        from ollama_provider.observability import ServerLogger

        if len(self.hook.servers) == 1:
            done = work(self.hook, self.log)
            self._note_model([done])
            return done
        done_by = self.hook.on_servers(lambda hook: work(hook, ServerLogger(self.log, hook.settings.base_url)))
        self._note_model(list(done_by.values()))
        return done_by

    def _note_model(self, states: Sequence[Any]) -> None:
        """Keep which model it was, for the lineage, where all servers say the same of it."""
        for name in ("model", "digest"):
            first, *others = (state.get(name) if isinstance(state, dict) else None for state in states)
            if self.work is not None and first is not None and all(other == first for other in others):
                self.work[name] = first

    def report(
        self, context: "Context", model: str, numbers: dict[str, Any], *, servers: Iterable[str]
    ) -> dict[str, Any]:
        """Log the usage of an answer, push it to the XCom key ``usage``, and return it.

        Args:
            context: of the task.
            model: name of the model in the request. The server's spelling of it and its digest are looked up.
            servers: base URL of the server of each reply; the last one is asked for the digest.
            numbers: ``prompt_tokens``, ``seconds``, ``tokens_per_second`` (None if unknown), ``tokens`` for generated
                text, and others.
        """
        from ollama_provider.operators._server_models import find_model

        # Without a reply, as for no texts, or without its server, as from an earlier version: the first server.
        answered = list(dict.fromkeys(filter(None, servers))) or [self.hook.settings.base_url]
        try:
            entry = find_model(self.hook.at(answered[-1]), model)
        except OllamaError as error:
            # The answer has arrived, and must not be lost because the digest is unknown.
            self.log.warning("The digest of the model is unknown: %s", error)
            entry = None
        usage = {
            "server": ", ".join(answered),
            "model": entry.tag if entry else model,
            "digest": entry.digest if entry else None,
            **numbers,
        }
        self.work = usage
        self.log.info("%s", describe(usage))
        context["ti"].xcom_push(key="usage", value=usage)
        return usage

    def reads(self) -> list[Any]:
        """Return what the task reads, for its lineage: paths and globs on any storage, and `SqlRows`."""
        return []

    def writes(self) -> list[tuple[Any, int | None]]:
        """Return what the task writes, for its lineage: paths and `SqlTable`, each with its number of rows if known."""
        return []

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:  # noqa: ARG002  # Airflow's signature
        """Return the lineage of the task. Airflow's OpenLineage provider calls this, where it is installed."""
        from ollama_provider.lineage import lineage_of

        return lineage_of(self)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """Return what is known of the lineage of a task that has failed."""
        return self.get_openlineage_facets_on_complete(task_instance)
