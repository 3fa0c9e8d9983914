"""Templates that make the prompt of a row, or the messages of a chat: Jinja, rendered in a sandbox.

``{{ row.text }}`` is the column ``text``. Beside ``row`` a template knows the variables of the batch, which are the
same for all rows (``{{ day }}``). A column named ``items`` or ``values`` wins over the method of that name. A column
that is missing, null or NaN fails its row, instead of leaving a gap in the prompt. A template that can do without it
says so: ``{{ row.title | default("untitled", true) }}``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows.sandbox import MAX_CHARACTERS, LimitError, Sandbox

_ROLES = ("system", "user", "assistant")


class RenderError(ValueError):
    """The template cannot be rendered with this row. The text never quotes values of the row."""


class EmptyTextError(RenderError):
    """The prompt is empty: a server would only load the model, or invent an answer."""


class PromptTemplate:
    """Renders one template for many rows.

    Args:
        template: Jinja source; the row is ``row``.
        variables: values that are the same for all rows, by their names.

    Raises:
        InputError: the template has a syntax error, or uses a name that is neither ``row`` nor a variable.
    """

    def __init__(self, template: str, variables: Mapping[str, Any] | None = None) -> None:
        self._environment = Sandbox()
        try:
            tree = self._environment.parse(template)
            self._template = self._environment.compiled(self._environment.parse(template))
        except TemplateSyntaxError as error:
            raise InputError(f"The prompt's template has an error in line {error.lineno}: {error.message}") from None
        self.needed = _columns(tree)
        # One context for all rows: Template.render makes a new one each time, which takes four fifths of the time of a
        # simple template.
        self._names = {**self._environment.globals, **(variables or {})}
        self._context = self._template.new_context(self._names, shared=True)
        unknown = sorted(find_undeclared_variables(tree) - {"row", *self._names})
        if unknown:
            known = ", ".join(map(repr, ["row", *(variables or {})]))
            raise InputError(
                f"The prompt's template uses {unknown[0]!r}, but knows only {known}: write row.{unknown[0]} for a "
                "column of that name, or define it in variables."
            )

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
        self._environment.begin()
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.root_render_func(context):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_CHARACTERS:
                    raise LimitError(f"it makes more than {MAX_CHARACTERS >> 20} million characters")
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
        variables: as in `PromptTemplate`.

    Raises:
        InputError: a message has another role or other fields, the last one is not the user's, or a template is wrong.
    """

    def __init__(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None) -> None:
        for number, message in enumerate(messages):
            if set(message) != {"role", "content"} or message["role"] not in _ROLES:
                raise InputError(
                    f"messages.{number}: a message has a 'role' ({', '.join(_ROLES)}) and a 'content', nothing else."
                )
        if not messages or messages[-1]["role"] != "user":
            raise InputError("messages: the last message must be the user's, so that the model answers it.")
        self._messages = [(message["role"], PromptTemplate(message["content"], variables)) for message in messages]

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
