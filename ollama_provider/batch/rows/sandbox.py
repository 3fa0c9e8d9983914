"""The sandbox in which templates are rendered: Jinja's own, with limits of time and size.

Jinja's sandbox keeps a template from what is behind the values of a row. It does not keep it from computing without
end, or from making a text that fills the memory, and with one number in a row a harmless template may do either
(``{{ row.text | center(row.width) }}``). So the time of a prompt and the size of what each operation makes are bounded.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import wraps
from time import thread_time
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, nodes, pass_environment
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

#: Most characters of a text, and most elements of a list.
MAX_CHARACTERS = 1 << 26
#: Most iterations of all loops of a template, with its calls and filters.
MAX_STEPS = 200_000
#: Most seconds of processor time for one prompt.
MAX_SECONDS = 10.0
#: Most characters that all operations for one prompt make.
_MAX_MADE = 1 << 29
#: Most bits of a whole number.
_MAX_BITS = 1 << 17
#: Most digits of a rounded number.
_MAX_PRECISION = 400
#: Steps between two looks at the clock.
_LOOK_EVERY = 64

_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d+|\*)?(?:\.(\d+|\*))?")
_NUMBERS = re.compile(r"\d+")
_WORDS = re.compile(r"\s+|\S+")
#: So many characters are copied in the time in which one is made otherwise.
_COPIED_LIKE_ONE = 64


class MissingValueError(TemplateError):
    """The template prints a value that is null, NaN or no text."""


class LimitError(TemplateError):
    """The template needs more than a prompt may."""


class Undefined(StrictUndefined):
    """A missing column. The error text names the column; Jinja's own text would show the row."""

    @property
    def _undefined_message(self) -> str:
        return f"the column {self._undefined_name!r} is missing"


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one template, which renders one prompt at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=Undefined, finalize=_finalize, autoescape=False)
        # It makes as much text as it is told to, and no prompt needs it.
        del self.globals["lipsum"]
        filters: dict[str, Any] = {**self.filters, "join": _join}
        tests: dict[str, Any] = self.tests
        self.filters = {name: self._limited(function, _FILTERS.get(name)) for name, function in filters.items()}
        self.tests = {name: self._limited(function, None) for name, function in tests.items()}
        # Of all pieces that are put together: blocks, macros, and the operator "~".
        self.concat = _concat  # type: ignore[method-assign]  # what belongs to the class in Jinja
        self._until = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin a prompt: its steps are counted from now on, and its time from the first step."""
        self._steps = 0
        self._made = 0

    def compiled(self, tree: nodes.Template) -> Template:
        """Return the template, with a filter on each loop that counts its iterations."""
        self.filters["counted"] = self._counted
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return self.from_string(_Joining().visit(tree))

    def _step(self) -> None:
        self._steps += 1
        if self._steps == 1:  # most prompts have no step, and to read this clock takes as long as to render them
            self._until = thread_time() + MAX_SECONDS
        if self._steps > MAX_STEPS:
            raise LimitError(f"its loops take more than {MAX_STEPS:,} iterations")
        if self._steps % _LOOK_EVERY == 0 and thread_time() > self._until:
            raise LimitError(f"it takes more than {MAX_SECONDS:g} s")

    def _count(self, result: Any) -> Any:
        """Count the characters of a result: a list of them may be kept until the prompt is done."""
        if isinstance(result, str):
            self._made += len(result)
            if self._made > _MAX_MADE:
                raise LimitError(f"its parts are more than {_MAX_MADE >> 20} million characters")
        return result

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def _limited(self, function: Callable[..., Any], size: Callable[..., int] | None) -> Callable[..., Any]:
        """Return a filter or test that counts as a step and is refused arguments that would make too much."""
        # Some filters are given a context or an environment before the value.
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._step()
            if kwargs or len(args) > first + 1:
                _refuse_large_numbers(args[first + 1 :], kwargs)
            if size is not None:
                _refuse(size(*args[first:], **kwargs), "the result of one of its filters")
            return self._count(function(*args, **kwargs))

        return limited

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or a method of a value."""
        self._step()
        _refuse_large_numbers(args, kwargs)
        if isinstance(text := getattr(function, "__self__", None), str):
            size = _METHODS.get(function.__name__)
            if size is not None:
                _refuse(size(text, *args, **kwargs), f"the result of its {function.__name__}()")
        return self._count(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute the result of an operator."""
        if operator == "%" and isinstance(left, str):
            _refuse(_percent_size(left, right), "the result of its %")
        elif _is_too_large(operator, left, right):
            raise LimitError(f"the result of its {operator} is too large")
        return self._count(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return the column of a row, or an attribute that is safe."""
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return ``str.format`` and ``str.format_map`` with limits; None for any other value."""
        text, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if not isinstance(text, str) or name not in {"format", "format_map"}:
            return None
        if name == "format":
            return lambda *args, **kwargs: _Formatter(self).vformat(text, args, kwargs)
        return lambda mapping: _Formatter(self).vformat(text, (), mapping)


class _Formatter(SandboxedFormatter):
    """Formats within the sandbox. The width of a field may come from a value, so it is known here only."""

    def __init__(self, environment: Sandbox) -> None:
        super().__init__(environment)
        self._size = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._size += sum(map(int, _NUMBERS.findall(format_spec)))
        _refuse(self._size, "the result of its format()")
        text = super().format_field(value, format_spec)
        self._size += len(text)
        _refuse(self._size, "the result of its format()")
        return text


class _Joining(NodeTransformer):
    """Puts a filter in place of the operator "~", of which an environment is not told."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  # Jinja's name
        parts = nodes.List([self.visit(part) for part in node.nodes], lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)


def _finalize(value: Any) -> Any:
    """Return what the template prints for a value; Jinja calls this for each."""
    if value is None or value != value:  # noqa: PLR0124  # NaN is the one value that differs from itself
        raise MissingValueError('it prints a value that is null; allow that with {{ … | default("", true) }}')
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise MissingValueError("it prints bytes that are not UTF-8 text") from None
    return value


def _refuse(size: int, what: str) -> None:
    if size > MAX_CHARACTERS:
        raise LimitError(f"{what} is too large")


def _refuse_large_numbers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_CHARACTERS for value in (*args, *kwargs.values())):
        raise LimitError("it calls a function with a number that is too large")


def _concat(pieces: Iterable[str]) -> str:
    found, size = [], 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > MAX_CHARACTERS:
            raise LimitError(f"it makes more than {MAX_CHARACTERS >> 20} million characters")
    return "".join(found)


def _pieces(values: Iterable[Any], between: str) -> Iterator[str]:
    for number, value in enumerate(values):
        yield f"{between}{value}" if number else str(value)


@pass_environment
def _join(environment: Sandbox, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's filter, with a limit: the pieces may come out of another filter, one at a time."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return _concat(_pieces(value, str(d)))


def _is_too_large(operator: str, left: Any, right: Any) -> bool:
    """Return whether the result of ``+``, ``*`` or ``**`` has too many characters, elements or bits."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return operator != "+" and bits > _MAX_BITS
    if operator == "+":
        return isinstance(left, Sized) and isinstance(right, Sized) and len(left) + len(right) > MAX_CHARACTERS
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            return len(one) * times > MAX_CHARACTERS
    return False


def _percent_size(text: str, values: Any) -> int:
    """Return a bound for the length of a text that is made with ``%``."""
    inside = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple) else (values,)
    longest = max((len(value) for value in inside if isinstance(value, Sized)), default=0)
    stars = sum(abs(value) for value in inside if isinstance(value, int)) if "*" in text else 0
    fields = _PERCENT.findall(text)
    return len(text) + stars + sum(longest + sum(int(part) for part in field if part.isdigit()) for field in fields)


def _format_size(value: Any, *args: Any, **kwargs: Any) -> int:
    return _percent_size(str(value), kwargs or args)


def _indent_size(s: str, width: int | str = 4, *_: Any, **__: Any) -> int:
    return len(s) + (s.count("\n") + 1) * (len(width) if isinstance(width, str) else width)


def _replace_size(s: Any, old: str, new: str, *_: Any, **__: Any) -> int:
    text = str(s)
    return len(text) + text.count(str(old)) * len(str(new))


def _round_size(value: Any, precision: int = 0, *_: Any, **__: Any) -> int:  # noqa: ARG001  # as the filter
    return 0 if abs(precision) <= _MAX_PRECISION else MAX_CHARACTERS + 1


def _batch_size(value: Any, linecount: int, *_: Any, **__: Any) -> int:  # noqa: ARG001  # as the filter
    return 0 if linecount <= MAX_STEPS else MAX_CHARACTERS + 1


def _slice_size(value: Any, slices: int, *_: Any, **__: Any) -> int:
    return _batch_size(value, slices)


def _wrap_size(s: str, width: int = 79, *_: Any, **__: Any) -> int:
    # A word is copied once for each piece that is broken off, so a long one takes time rather than space.
    squares: int = sum(len(word) ** 2 for word in _WORDS.findall(str(s)))
    return squares // max(1, width) // _COPIED_LIKE_ONE


def _json_size(value: Any, indent: int | None = None) -> int:  # noqa: ARG001  # as the filter
    return 0 if (indent or 0) <= _MAX_PRECISION else MAX_CHARACTERS + 1


def _join_size(text: str, values: Iterable[Any]) -> int:
    # Of an iterator nobody knows; the filter of that name joins one.
    known = isinstance(values, list | tuple | dict | str)
    return sum(len(value) + len(text) for value in values) if known else MAX_CHARACTERS + 1


def _tabs_size(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * tabsize


#: How large the result of a filter may be, by its arguments; only of those that make more than they are given.
_FILTERS: dict[str, Callable[..., int]] = {
    "format": _format_size,
    "indent": _indent_size,
    "replace": _replace_size,
    "round": _round_size,
    "wordwrap": _wrap_size,
    "batch": _batch_size,
    "slice": _slice_size,
    "tojson": _json_size,
}
#: The same of the methods of texts.
_METHODS: dict[str, Callable[..., int]] = {
    "replace": _replace_size,
    "join": _join_size,
    "expandtabs": _tabs_size,
}
