"""The operator that lets a model choose what comes next."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BranchMixIn

from ollama_provider.api.arguments import is_null
from ollama_provider.api.errors import Blame, ClientClosedError, InvalidRequestError, OllamaError
from ollama_provider.operators.generate import OllamaGenerateOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import Send
    from ollama_provider.api.schemas import ChatRequest

#: Arguments of the base class that decide what the answer looks like, which this operator does itself.
_OWN = ("format", "output_type", "output")


class OllamaBranchOperator(OllamaGenerateOperator, BranchMixIn):
    """Let the model choose which of the tasks directly downstream is run; the others are skipped.

    All arguments of `OllamaGenerateOperator` but *format*, *output_type* and *output*, and these.

    The model is told the ids of the tasks, each with the first line of its ``doc_md``, in a system message after
    *system*. (The ``doc_md`` of a TaskFlow function is its docstring, unless it is mapped.) A JSON schema allows no
    other answer, and the answer is checked once more when it has come. XCom gets the id, or the list of them. The
    request is a chat, where *think* works together with a schema.

    Args:
        default: id of the task that is run if the model does not choose: it cannot be reached, its answer is cut or
            does not fit. The retries of the task are used first. A wrong setup (model, password, argument) fails the
            task nevertheless. None: the task fails.
        allow_multiple_branches: the model may choose several tasks, at least one.
    """

    # Airflow asks for it when a skipped task is cleared.
    inherits_from_skipmixin = True
    template_fields: Sequence[str] = (*OllamaGenerateOperator.template_fields, "default")

    def __init__(self, *, default: str | None = None, allow_multiple_branches: bool = False, **kwargs: Any) -> None:
        if wrong := [name for name in _OWN if name in kwargs]:
            raise InvalidRequestError(
                f"{', '.join(wrong)}: the answer of a branch is the id of a task that comes next; leave it out"
            )
        super().__init__(**kwargs)
        self.default = default
        self.allow_multiple_branches = allow_multiple_branches

    @property
    def request_kind(self) -> "type[ChatRequest]":
        """The type of the request: a chat."""
        from ollama_provider.api.schemas import ChatRequest

        return ChatRequest

    def choices(self) -> dict[str, str]:
        """Return the ids of the tasks to choose from, each with a line about it, which may be empty.

        Raises:
            InvalidRequestError: there are none, or the default is none of them.
        """
        tasks = [task for task in self.downstream_list if not task.is_teardown]
        found = {task.task_id: _first_line(task.doc_md) for task in sorted(tasks, key=lambda task: task.task_id)}
        if not found:
            raise InvalidRequestError(f"no task comes after {self.task_id!r}, so there is nothing to choose from")
        if not is_null(self.default) and self.default not in found:
            raise InvalidRequestError(
                f"default: {self.default!r} is not one of the tasks directly downstream: {', '.join(found)}"
            )
        return found

    @property
    def answer_format(self) -> dict[str, Any]:
        """The JSON schema of the answer, which names all tasks."""
        choice: dict[str, Any] = {"type": "string", "enum": list(self.choices())}
        if not self.allow_multiple_branches:
            return {"type": "object", "properties": {"task": choice}, "required": ["task"]}
        several = {"type": "array", "items": choice, "minItems": 1, "maxItems": len(choice["enum"])}
        return {"type": "object", "properties": {"tasks": several}, "required": ["tasks"]}

    def request_fields(self) -> dict[str, Any]:
        """Return the messages: the tasks to choose from, and the prompt with its images."""
        given = super().request_fields()
        task = 'Choose the task that comes next. Answer in JSON, {"task": "its name"}. These are the names:'
        tasks = 'Choose one or more of the tasks that come next. Answer in JSON, {"tasks": ["a name", …]}. The names:'
        choices = [f"- {name}: {about}" if about else f"- {name}" for name, about in self.choices().items()]
        told = "\n".join([tasks if self.allow_multiple_branches else task, *choices])
        system = told if given["system"] is None else f"{given['system']}\n\n{told}"
        user = {"role": "user", "content": given["prompt"], "images": given["images"]}
        return {"messages": [{"role": "system", "content": system}, user]}

    def images_of(self, fields: dict[str, Any]) -> Iterable[bytes]:
        """Return the images of the message."""
        return fields["messages"][1]["images"] or ()

    def perform(self, context: "Context") -> Any:
        """Ask the model; if that fails before its answer is waited for, follow the default."""
        try:
            return super().perform(context)
        except OllamaError as error:
            return self._follow(context, self._instead_of(error, context))

    def finish(self, context: "Context", request: Any, send: "Send", trained: int | None = None, **_: Any) -> Any:
        """Receive the answer, and skip the tasks that were not chosen."""
        try:
            answer = super().finish(context, request, send, trained)
            chosen = list(dict.fromkeys(answer["tasks"])) if self.allow_multiple_branches else answer["task"]
        except OllamaError as error:
            chosen = self._instead_of(error, context)
        return self._follow(context, chosen)

    def _instead_of(self, error: OllamaError, context: "Context") -> Any:
        """Return the default, or raise the error where there is none, or where the default would hide a mistake."""
        instance: Any = context["ti"]
        is_setup = error.blame is Blame.SETUP or isinstance(error, InvalidRequestError)
        is_killed = isinstance(error, ClientClosedError)
        has_tries_left = error.retryable and instance.try_number <= instance.max_tries
        if is_null(self.default) or is_setup or is_killed or has_tries_left:
            raise error
        self.log.warning("The model has not chosen, so the default is followed: %s", error)
        return [self.default] if self.allow_multiple_branches else self.default

    def _follow(self, context: "Context", chosen: Any) -> Any:
        if self.do_xcom_push:
            # Airflow 3 ends a task that skips others by an exception, and stores no return value then.
            context["ti"].xcom_push(key="return_value", value=chosen)
        return self.do_branch(context, chosen)


def _first_line(text: str | None) -> str:
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")
