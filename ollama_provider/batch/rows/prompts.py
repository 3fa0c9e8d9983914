"""From a row to its prompt: a Jinja template, rendered in a sandbox.

``{{ row.text }}`` is the column ``text``, whatever it is called: a column named ``items`` or ``values`` wins over the
method of that name. A column that is missing, null or NaN fails its row instead of becoming an empty place in the
prompt; a template that can do without it says so: ``{{ row.title | default("untitled", true) }}``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ollama_provider.batch.errors import InputError

#: Characters of a prompt at most, and rounds of all loops of a template with the calls of its macros.
_LONGEST, _MOST_STEPS = 1 << 26, 200_000
_COUNTED = "counted"


class RenderError(ValueError):
    """The template cannot be rendered with this row; the text never quotes the row's values."""


class EmptyTextError(RenderError):
    """There is nothing to ask: a server would only load the model, or make something up."""


class _MissingValueError(TemplateError):
    pass


class _LimitError(TemplateError):
    pass


def _print(value: Any) -> Any:
    if value is None or value != value:  # noqa: PLR0124  # NaN is the one value that differs from itself
        raise _MissingValueError('it prints a value that is null; allow that with {{ … | default("", true) }}')
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _MissingValueError("it prints bytes that are not UTF-8 text") from None
    return value


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which no row can make a template run for ever or fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=_Undefined, finalize=_print, autoescape=False)
        self.filters[_COUNTED] = self._counted
        #: Rounds of loops, and calls, of the prompt that is rendered.
        self.steps = 0

    def compiled(self, tree: nodes.Template) -> Template:
        """Return the template with its loops counted."""
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return self.from_string(tree)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise _LimitError(f"it takes more than {_MOST_STEPS:,} rounds of its loops")

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step()
        # Such as row.text.center(row.width).
        if any(isinstance(value, int) and abs(value) > _LONGEST for value in args):
            raise _LimitError("it calls a function with a number that is too large")
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(left, right, operator) > _LONGEST:
            raise _LimitError(f"what its {operator} gives is too large")
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _size(left: Any, right: Any, operator: str) -> int:
    """Return about how many characters or bits come of it; 0 for what is never large."""
    if operator == "**":
        return left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            return len(one) * times
    return 0


class _Undefined(StrictUndefined):
    """Jinja's own text would show the row."""

    @property
    def _undefined_message(self) -> str:
        return f"the column {self._undefined_name!r} is missing"


class PromptTemplate:
    """Renders one template for many rows.

    Args:
        template: Jinja; the row is ``row``.

    Raises:
        InputError: the template has a syntax error, or knows a name other than ``row``.
    """

    def __init__(self, template: str) -> None:
        self._environment = _Environment()
        try:
            tree = self._environment.parse(template)
            self._template = self._environment.compiled(self._environment.parse(template))
        except TemplateSyntaxError as error:
            raise InputError(f"The prompt's template has an error in line {error.lineno}: {error.message}") from None
        self.needed = _columns(tree)
        # Template.render makes a new context each time, which takes four fifths of the time of a simple template.
        self._names = dict(self._environment.globals)
        self._context = self._template.new_context(self._names, shared=True)
        unknown = sorted(find_undeclared_variables(tree) - {"row"} - set(self._environment.globals))
        if unknown:
            raise InputError(f"The prompt's template knows only 'row': write row.{unknown[0]} for that column.")

    def check(self, columns: Iterable[str]) -> None:
        """Compare the template with the columns that the rows have.

        Raises:
            InputError: the template prints a column that there is not; the text names it and those there are.
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
        context.vars.clear()  # what a {% set %} of the last row left
        context.exported_vars.clear()
        self._names["row"] = columns
        self._environment.steps = 0
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.root_render_func(context):
                pieces.append(piece)
                size += len(piece)
                if size > _LONGEST:
                    raise _LimitError(f"it makes more than {_LONGEST >> 20} million characters")
            return "".join(pieces)
        except TemplateError as error:
            raise RenderError(f"the prompt's template cannot be rendered: {error.message}") from None
        except Exception as error:  # a template runs code of its own: any error is the row's
            raise RenderError(f"the prompt's template cannot be rendered: {type(error).__name__}") from None


def _columns(tree: nodes.Template) -> set[str]:
    """Return the columns that the template cannot do without.

    A column that some place of the template guards (``is defined``, ``default``) may be missing.
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


# FROM batch.turns: From a row to the turns of a chat: a Jinja template for each, rendered in the same sandbox as a prom

_ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """Renders the messages of a chat for many rows, with the methods of `PromptTemplate`.

    Args:
        messages: turns with ``role`` and ``content``; ``content`` is a template as in `PromptTemplate`.

    Raises:
        InputError: a turn has another role or other fields, the last is no user's, or a template is wrong.
    """

    def __init__(self, messages: Sequence[Mapping[str, str]]) -> None:
        for number, message in enumerate(messages):
            if set(message) != {"role", "content"} or message["role"] not in _ROLES:
                raise InputError(
                    f"messages.{number}: a turn has a 'role' ({', '.join(_ROLES)}) and a 'content', nothing else."
                )
        if not messages or messages[-1]["role"] != "user":
            raise InputError("messages: the last turn must be the user's, for the model to answer it.")
        self._turns = [(message["role"], PromptTemplate(message["content"])) for message in messages]

    def check(self, columns: Iterable[str]) -> None:
        """See `PromptTemplate.check`."""
        known = set(columns)
        for _, prompts in self._turns:
            prompts.check(known)

    def render(self, columns: Mapping[str, Any]) -> str:
        """Return the turns of a row, as JSON.

        Raises:
            RenderError: see `PromptTemplate.render`.
            EmptyTextError: the last turn is empty.
        """
        turns = [{"role": role, "content": prompts.render(columns)} for role, prompts in self._turns]
        if not turns[-1]["content"].strip():
            raise EmptyTextError("an empty prompt has no answer")
        return json.dumps(turns, ensure_ascii=False)
