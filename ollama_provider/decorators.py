"""The decorators ``@task.ollama_…``: a function returns one argument of an operator, the decorator takes the others.

    @task.ollama_generate(model="llama3.2", output_type=Review)
    def review(text: str) -> str:
        return f"How many stars, and about what? {text}"

The returned value is rendered as a Jinja template, as with Airflow's own decorators. Text from elsewhere may contain
braces that are not meant as a template: return ``literal(text)`` of ``airflow.sdk``, and it is sent unchanged.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    AirflowFailException,
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)
from jinja2 import TemplateError

from ollama_provider.operators import (
    OllamaBatchOperator,
    OllamaBranchOperator,
    OllamaChatOperator,
    OllamaEmbedOperator,
    OllamaGenerateOperator,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class _Decorated(DecoratedOperator):
    """Mixin for an operator, one of whose arguments is the value that a function returns.

    A subclass names the argument (``argument``) and the decorator (``custom_operator_name``).
    """

    argument: ClassVar[str]
    custom_operator_name: str
    # Show the returned value under Rendered Templates.
    overwrite_rtif_after_execution = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Combine the template fields of the operator with those of the function's arguments."""
        super().__init_subclass__(**kwargs)
        operator: Any = cls.__mro__[cls.__mro__.index(DecoratedOperator) + 1]
        cls.template_fields = (*DecoratedOperator.template_fields, *operator.template_fields)
        cls.template_fields_renderers = {
            **DecoratedOperator.template_fields_renderers,
            **operator.template_fields_renderers,
        }

    def __init__(self, *, python_callable: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(python_callable=python_callable, **{self.argument: SET_DURING_EXECUTION}, **kwargs)

    def execute(self, context: "Context") -> Any:
        """Call the function, render the value that it returns, and execute the operator."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        value = self.python_callable(*self.op_args, **kwargs)
        # Set it before rendering too, because `render_template` of the operator looks at its fields.
        setattr(self, self.argument, value)
        setattr(self, self.argument, self._render_returned(value, context))
        return super().execute(context)

    def _render_returned(self, value: Any, context: "Context") -> Any:
        # Only this field: the others are rendered already, and their values are data, not templates.
        try:
            return self.render_template(value, context)
        except TemplateError as error:
            raise AirflowFailException(
                f"{self.argument}: what {self.python_callable.__name__}() returned cannot be rendered as a template "
                f"({type(error).__name__}). If its braces are not meant as a template, return literal(...) of it"
            ) from None


class _Generate(_Decorated, OllamaGenerateOperator):
    argument = "prompt"
    custom_operator_name = "@task.ollama_generate"


class _Chat(_Decorated, OllamaChatOperator):
    argument = "messages"
    custom_operator_name = "@task.ollama_chat"


class _Embed(_Decorated, OllamaEmbedOperator):
    argument = "texts"
    custom_operator_name = "@task.ollama_embed"


class _Branch(_Decorated, OllamaBranchOperator):
    argument = "prompt"
    custom_operator_name = "@task.ollama_branch"


class _Batch(_Decorated, OllamaBatchOperator):
    argument = "rows"
    custom_operator_name = "@task.ollama_batch"
    overwrite_rtif_after_execution = False

    def _render_returned(self, value: Any, context: "Context") -> Any:
        # A path or a query may be a template. Rows are data, and are not stored in Airflow's database either.
        return value if isinstance(value, list | tuple) else super()._render_returned(value, context)


def ollama_generate_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """``@task.ollama_generate``: an `OllamaGenerateOperator` whose *prompt* the function returns."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Generate, **kwargs)


def ollama_chat_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """``@task.ollama_chat``: an `OllamaChatOperator` whose *messages* the function returns."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Chat, **kwargs)


def ollama_embed_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """``@task.ollama_embed``: an `OllamaEmbedOperator` whose *texts* the function returns."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Embed, **kwargs)


def ollama_branch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """``@task.ollama_branch``: an `OllamaBranchOperator` whose *prompt* the function returns."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Branch, **kwargs)


def ollama_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """``@task.ollama_batch``: an `OllamaBatchOperator` whose *rows* the function returns.

    The rows are a list or an iterator of texts or dicts, a table of pandas or Arrow, a path or a glob, or an
    `ollama_provider.sql.SqlRows`.
    """
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Batch, **kwargs)
