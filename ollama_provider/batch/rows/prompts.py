"""Templates that make the prompt of a row, or the messages of a chat: Jinja, rendered in a sandbox.

``{{ row.text }}`` is the column ``text``. A column named ``items`` or ``values`` wins over the method of that name. A
column that is missing, null or NaN fails its row, instead of leaving a gap in the prompt. A template that can do
without it says so: ``{{ row.title | default("untitled", true) }}``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ollama_provider.batch.errors import InputError

#: Maximum characters of a prompt, and maximum iterations of all loops of a template, calls of macros included.
_MAX_CHARACTERS, _MAX_STEPS = 1 << 26, 200_000
#: Name of the filter that counts the iterations of a loop.
_COUNTED = "counted"
_ROLES = ("system", "user", "assistant")


class RenderError(ValueError):
    """The template cannot be rendered with this row. The text never quotes values of the row."""


class EmptyTextError(RenderError):
    """The prompt is empty: a server would only load the model, or invent an answer."""


class _MissingValueError(TemplateError):
    """The template prints a value that is null, NaN or no text."""


class _LimitError(TemplateError):
    """The template needs more than a prompt may."""


def _finalize(value: Any) -> Any:
    """Return what the template prints for a value; Jinja calls this for each."""
    if value is None or value != value:  # noqa: PLR0124  # NaN is the one value that differs from itself
        raise _MissingValueError('it prints a value that is null; allow that with {{ … | default("", true) }}')
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _MissingValueError("it prints bytes that are not UTF-8 text") from None
    return value


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox with limits, so that no row can make a template run without end or fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=_Undefined, finalize=_finalize, autoescape=False)
        self.filters[_COUNTED] = self._counted
        #: Iterations and calls so far, of the prompt that is being rendered.
        self.steps = 0

    def compiled(self, tree: nodes.Template) -> Template:
        """Return the template, with a filter on each loop that counts its iterations."""
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return self.from_string(tree)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise _LimitError(f"its loops take more than {_MAX_STEPS:,} iterations")

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step()
        # An example is row.text.center(row.width).
        if any(isinstance(value, int) and abs(value) > _MAX_CHARACTERS for value in args):
            raise _LimitError("it calls a function with a number that is too large")
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(left, right, operator) > _MAX_CHARACTERS:
            raise _LimitError(f"the result of its {operator} is too large")
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _size(left: Any, right: Any, operator: str) -> int:
    """Return the approximate size of the result in characters or bits; 0 for what is never large."""
    if operator == "**":
        return left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            return len(one) * times
    return 0


class _Undefined(StrictUndefined):
    """A missing column. The error text names the column; Jinja's own text would show the row."""

    @property
    def _undefined_message(self) -> str:
        return f"the column {self._undefined_name!r} is missing"


class PromptTemplate:
    """Renders one template for many rows.

    Args:
        template: Jinja source; the row is ``row``.

    Raises:
        InputError: the template has a syntax error, or uses a name other than ``row``.
    """

    def __init__(self, template: str) -> None:
        self._environment = _Environment()
        try:
            tree = self._environment.parse(template)
            self._template = self._environment.compiled(self._environment.parse(template))
        except TemplateSyntaxError as error:
            raise InputError(f"The prompt's template has an error in line {error.lineno}: {error.message}") from None
        self.needed = _columns(tree)
        # One context for all rows: Template.render makes a new one each time, which takes four fifths of the time of a
        # simple template.
        self._names = dict(self._environment.globals)
        self._context = self._template.new_context(self._names, shared=True)
        unknown = sorted(find_undeclared_variables(tree) - {"row"} - set(self._environment.globals))
        if unknown:
            raise InputError(f"The prompt's template knows only 'row': write row.{unknown[0]} for that column.")

    def check(self, columns: Iterable[str]) -> None:
        """Compare the template with the columns that the rows have.

        Raises:
            InputError: the template prints a column that does not exist. The text names it and those that exist.
        """
        known = set(columns)
        missing = sorted(self.needed - known)
        if missing:
            names = ", ".join(map(repr, missing))
            raise InputError(
                f"The prompt's template uses {names}, but the rows have only the columns "
                f"{', '.join(map(repr, sorted(known)))}."
            )

    def render(self, columns: Mapping[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            RenderError: the row lacks a column or has null in it, or the template fails on a value.
        """
        context = self._context
        context.vars.clear()  # variables that the last row has set
        context.exported_vars.clear()
        self._names["row"] = columns
        self._environment.steps = 0
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.root_render_func(context):
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_CHARACTERS:
                    raise _LimitError(f"it makes more than {_MAX_CHARACTERS >> 20} million characters")
            return "".join(pieces)
        except TemplateError as error:
            raise RenderError(f"the prompt's template cannot be rendered: {error.message}") from None
        except Exception as error:  # a template runs methods of values, so any error can happen, and is the row's
            raise RenderError(f"the prompt's template cannot be rendered: {type(error).__name__}") from None


def _columns(tree: nodes.Template) -> set[str]:
    """Return the columns that every row must have.

    A column that is guarded anywhere in the template (``is defined``, ``default``) may be missing.
    """
    used = {_column(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem))}
    guarded = {
        _column(inner)
        for node in tree.find_all((nodes.Test, nodes.Filter))
        if node.name in {"defined", "undefined", "default", "d"}
        for inner in node.find_all((nodes.Getattr, nodes.Getitem))
    }
    return {name for name in used - guarded if name is not None}


def _column(node: nodes.Node) -> str | None:
    match node:
        case nodes.Getattr(node=nodes.Name(name="row"), attr=name):
            return name
        case nodes.Getitem(node=nodes.Name(name="row"), arg=nodes.Const(value=str(name))):
            return name
    return None


class ChatTemplate:
    """Renders the messages of a chat for many rows. It has the methods of `PromptTemplate`.

    Args:
        messages: each with ``role`` (``system``, ``user`` or ``assistant``) and ``content``, which is a template as in
            `PromptTemplate`.

    Raises:
        InputError: a message has another role or other fields, the last one is not the user's, or a template is wrong.
    """

    def __init__(self, messages: Sequence[Mapping[str, str]]) -> None:
        for number, message in enumerate(messages):
            if set(message) != {"role", "content"} or message["role"] not in _ROLES:
                raise InputError(
                    f"messages.{number}: a message has a 'role' ({', '.join(_ROLES)}) and a 'content', nothing else."
                )
        if not messages or messages[-1]["role"] != "user":
            raise InputError("messages: the last message must be the user's, so that the model answers it.")
        self._messages = [(message["role"], PromptTemplate(message["content"])) for message in messages]

    def check(self, columns: Iterable[str]) -> None:
        """Compare the templates with the columns that the rows have.

        Raises:
            InputError: a template prints a column that does not exist.
        """
        known = set(columns)
        for _, content in self._messages:
            content.check(known)

    def render(self, columns: Mapping[str, Any]) -> str:
        """Return the messages of a row, as JSON.

        Raises:
            RenderError: the row lacks a column or has null in it, or a template fails on a value.
            EmptyTextError: the last message is empty.
        """
        messages = [{"role": role, "content": content.render(columns)} for role, content in self._messages]
        if not messages[-1]["content"].strip():
            raise EmptyTextError("an empty prompt has no answer")
        return json.dumps(messages, ensure_ascii=False)
