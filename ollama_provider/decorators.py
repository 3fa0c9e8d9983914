"""``@task.ollama_…``: a function returns the one argument of an operator that matters, the decorator has the others.

    @task.ollama_generate(model="llama3.2", output_type=Review)
    def review(text: str) -> str:
        return f"How many stars, and about what? {text}"

What the function returns may hold Jinja, as with Airflow's own decorators. Text from elsewhere may hold braces that are
none of yours: return ``literal(text)`` of ``airflow.sdk``, and it is sent as it is.
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
    OllamaChatOperator,
    OllamaEmbedOperator,
    OllamaGenerateOperator,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class _Decorated(DecoratedOperator):
    """An operator, one argument of which is what a function returns; to be put before the operator's class.

    A subclass names the argument, and the decorator as people write it.
    """

    argument: ClassVar[str]
    custom_operator_name: str
    # What the function has returned is what people want to see under Rendered Templates.
    overwrite_rtif_after_execution = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the operator's template fields to those of the function's arguments."""
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
        """Call the function, render what it returns, and do the operator's work."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        value = self.python_callable(*self.op_args, **kwargs)
        # Set before it is rendered, too: the operator may render this field in a way of its own.
        setattr(self, self.argument, value)
        setattr(self, self.argument, self._fill_in(value, context))
        return super().execute(context)

    def _fill_in(self, value: Any, context: "Context") -> Any:
        # This field alone: the others are rendered already, and data in the function's arguments is no template.
        try:
            return self.render_template(value, context)
        except TemplateError as error:
            raise AirflowFailException(
                f"{self.argument}: what {self.python_callable.__name__}() returned cannot be rendered as a template "
                f"({type(error).__name__}). If it holds braces that are not meant as one, return literal(...) of it"
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


class _Batch(_Decorated, OllamaBatchOperator):
    argument = "rows"
    custom_operator_name = "@task.ollama_batch"
    overwrite_rtif_after_execution = False

    def _fill_in(self, value: Any, context: "Context") -> Any:
        # A path or a query may hold Jinja. Rows are data, and not for Airflow's database either.
        return value if isinstance(value, list | tuple) else super()._fill_in(value, context)


def ollama_generate_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function an `OllamaGenerateOperator` whose prompt it returns: ``@task.ollama_generate``."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Generate, **kwargs)


def ollama_chat_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function an `OllamaChatOperator` whose messages it returns: ``@task.ollama_chat``."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Chat, **kwargs)


def ollama_embed_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function an `OllamaEmbedOperator` whose texts it returns: ``@task.ollama_embed``."""
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Embed, **kwargs)


def ollama_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function an `OllamaBatchOperator` whose rows it returns: ``@task.ollama_batch``.

    A list or an iterator of texts or dicts, a path or a glob, or `ollama_provider.sql.SqlRows`.
    """
    return task_decorator_factory(python_callable=python_callable, decorated_operator_class=_Batch, **kwargs)
