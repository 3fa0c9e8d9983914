"""What all operators share: the connection, a way to stop, and the one place where errors become Airflow's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    BaseOperator,
)

from ollama_provider.api.arguments import read_list
from ollama_provider.api.errors import OllamaError
from ollama_provider.batch import BatchError

# What talks to a server is loaded when a task runs: DAG files are parsed all day, and tasks run now and then.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.schemas import LocalModel
    from ollama_provider.hooks import OllamaHook

_COUNTS = {
    "texts": "texts",
    "prompt_tokens": "prompt tokens",
    "tokens": "tokens generated",
    "seconds": "s",
    "tokens_per_second": "tokens/s",
}


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn our errors into Airflow's: one that trying again cannot mend fails the task without its retries."""
    try:
        yield
    except (OllamaError, BatchError) as error:
        kind = AirflowException if error.retryable else AirflowFailException
        # The text says it all; httpx's traceback below it would hide that.
        raise kind(str(error)) from None
    except AirflowNotFoundException as error:
        raise AirflowFailException(str(error)) from None


def describe(usage: dict[str, Any]) -> str:
    """Return the numbers of an answer as one line."""
    counts = [f"{usage[key]} {what}" for key, what in _COUNTS.items() if usage.get(key) is not None]
    return f"Model {usage['model']} at {usage['server']}: {', '.join(counts)}"


class OllamaOperator(BaseOperator):
    """A task that talks to an Ollama server.

    A subclass does its work in `perform`, and names in `hook_overrides` those of its arguments that are laid over the
    connection's settings.

    Args:
        conn_id: connection of type *Ollama*.
        model: name of the model; None is the connection's default model.

    Raises:
        AirflowFailException: the request or the setup is wrong, so the task's retries are not used.
        AirflowException: trying again may help.
    """

    template_fields: Sequence[str] = ("conn_id", "model")
    # Suffixes that no sentence ends in: "Summarise README.md" is a prompt, not a file.
    template_ext: Sequence[str] = (".prompt", ".jinja2")
    ui_color = "#f0ede6"
    hook_overrides: ClassVar[Sequence[str]] = ()
    #: Template fields in which the text that a template has made of a list is read as that list.
    list_fields: ClassVar[Sequence[str]] = ()

    def __init__(self, *, conn_id: str = "ollama_default", model: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.model = model

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a template; the text of a list becomes that list again, in the fields that `list_fields` names."""
        rendered = super().render_template(content, *args, **kwargs)
        if not (isinstance(content, str) and isinstance(rendered, str)) or rendered == content:
            # A text that no template made is meant as it is, whatever it looks like.
            return rendered
        fields = {name for name in self.template_fields if getattr(self, name, None) is content}
        found = read_list(rendered) if fields and fields <= set(self.list_fields) else None
        return rendered if found is None else found

    @cached_property
    def hook(self) -> "OllamaHook":
        """The hook of this try."""
        from ollama_provider.hooks import OllamaHook

        return OllamaHook(self.conn_id, **{name: getattr(self, name) for name in self.hook_overrides})

    def execute(self, context: "Context") -> Any:
        """Run the task: `perform`, with Airflow's errors, and with the connection closed in the end."""
        with self.at_work():
            return self.perform(context)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Raise Airflow's errors inside, and close the connection in the end."""
        try:
            with airflow_errors(), self.hook:
                yield
        finally:
            # It is closed for good; another try in the same process gets another one.
            self.__dict__.pop("hook", None)

    def perform(self, context: "Context") -> Any:
        """Do the work and return what goes to XCom."""
        raise NotImplementedError

    def on_kill(self) -> None:
        """Close the connection: the read that waits for the model ends, and so does the model's work."""
        if "hook" in self.__dict__:
            self.hook.close()

    def find_model(self, name: str) -> "LocalModel | None":
        """Return what the server says about a model on its disk; None if it has no such model."""
        from ollama_provider.api.model_names import same_model

        return next((entry for entry in self.hook.list_models() if same_model(entry.tag, name)), None)

    def report(self, context: "Context", model: str, numbers: dict[str, Any]) -> dict[str, Any]:
        """Log what an answer cost, push it to the XCom key ``usage``, and return it.

        Args:
            context: of the task.
            model: the model as it was asked for; the server's own spelling and the digest are looked up.
            numbers: ``prompt_tokens``, ``seconds``, ``tokens_per_second`` (None if unknown), for generated text
                ``tokens``, and what else there is.
        """
        try:
            entry = self.find_model(model)
        except OllamaError as error:
            # The answer is there and must not be lost for want of a digest.
            self.log.warning("The digest of the model is unknown: %s", error)
            entry = None
        usage = {
            "server": self.hook.settings.base_url,
            "model": entry.tag if entry else model,
            "digest": entry.digest if entry else None,
            **numbers,
        }
        self.log.info("%s", describe(usage))
        context["ti"].xcom_push(key="usage", value=usage)
        return usage
