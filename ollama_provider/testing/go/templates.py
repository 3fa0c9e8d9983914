"""Check the syntax of prompt templates as Go's `text/template` does, with its error texts.

As when Ollama creates a model, only the syntax is checked: balanced braces and blocks, known functions and variables.
Nothing is rendered.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

FUNCTIONS = frozenset(
    """
    and break call continue currentDate eq ge gt html index js json le len lt ne not or print printf println slice
    toTypeScriptType urlquery yesterdayDate
    """.split()  # noqa: SIM905 - shorter than a list
) - {"break", "continue"}
"""The functions of Go's templates and of Ollama 0.24."""

_KEYWORDS = frozenset({"block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"})
_CONSTANTS = frozenset({"bool", "dot", "nil", "number", "string"})
_OPERANDS = frozenset({"bool", "char", "dot", "field", "identifier", "nil", "number", "raw", "string", "variable", "("})
_SPACES = " \t\r\n"
_WORD = re.compile(r"\w*")
_QUOTED = {
    '"': (re.compile(r'"(\\[^\n]|[^"\\\n])*"'), "string", "quoted string"),
    "`": (re.compile(r"`[^`]*`"), "raw", "raw quoted string"),
    "'": (re.compile(r"'(\\[^\n]|[^'\\\n])*'"), "char", "character constant"),
}
_NUMBER = re.compile(
    r"[+-]?(0[xX][\da-fA-F_]*(\.[\da-fA-F_]*)?([pP][+-]?[\d_]*)?|[\d_]*(\.[\d_]*)?([eE][+-]?[\d_]*)?)i?"
)


class TemplateError(ValueError):
    """The template cannot be parsed. The text is Go's."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


@lru_cache(maxsize=256)
def check(template: str) -> None:
    """Parse *template*.

    Raises:
        TemplateError: It cannot be parsed.
    """
    _Parser(template).parse()


def _tokens(source: str) -> Iterator[_Token]:  # noqa: C901, PLR0912 - one lexer, as Go's
    position, line = 0, 1
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        if start >= 0 and source[start + 2 : start + 3] == "-" and source[start + 3 : start + 4] in {*_SPACES}:
            shown = text.rstrip(_SPACES)
        else:
            shown = text
        if shown:
            yield _Token("text", shown, line)
        line += text.count("\n")
        if start < 0:
            yield _Token("EOF", "", line)
            return
        position = start + 2
        if source[position : position + 1] == "-" and source[position + 1 : position + 2] in {*_SPACES}:
            position += 2
        if source.startswith("/*", position):
            end = source.find("*/", position + 2)
            if end < 0:
                yield _Token("error", "unclosed comment", line)
                return
            closed = _closing(source, end + 2)
            if not closed:
                yield _Token("error", "comment ends before closing delimiter", line)
                return
            line += source[position : end + 2].count("\n")
            position, line = _after(source, closed, line)
            continue
        yield _Token("{{", "{{", line)
        depth = 0
        while True:
            if closed := _closing(source, position):
                if depth:
                    yield _Token("error", "unclosed left paren", line)
                    return
                yield _Token("}}", "}}", line)
                position, line = _after(source, closed, line)
                break
            if position >= len(source):
                yield _Token("error", "unclosed action", line)
                return
            token, position = _inside(source, position, line)
            line += token.text.count("\n") if token.kind in {"space", "raw"} else 0
            depth += {"(": 1, ")": -1}.get(token.kind, 0)
            if depth < 0:
                token = _Token("error", "unexpected right paren", line)
            yield token
            if token.kind == "error":
                return


def _closing(source: str, position: int) -> int:
    """The end of a right delimiter at *position*, 0 if there is none, negative if it trims the spaces after it."""
    if source[position : position + 1] in {*_SPACES} and source.startswith("-}}", position + 1):
        return -(position + 4)
    return position + 2 if source.startswith("}}", position) else 0


def _after(source: str, closed: int, line: int) -> tuple[int, int]:
    if closed > 0:
        return closed, line
    rest = source[-closed:]
    trimmed = len(rest) - len(rest.lstrip(_SPACES))
    return trimmed - closed, line + rest[:trimmed].count("\n")


def _inside(source: str, position: int, line: int) -> tuple[_Token, int]:  # noqa: C901, PLR0911 - one return a kind
    first = source[position]
    if first in _SPACES:
        end = position
        while end < len(source) and source[end] in _SPACES and not (end > position and _closing(source, end)):
            end += 1
        return _Token("space", source[position:end], line), end
    if first in _QUOTED:
        pattern, kind, name = _QUOTED[first]
        if (found := pattern.match(source, position)) is None:
            return _Token("error", f"unterminated {name}", line), position
        return _Token(kind, found[0], line), found.end()
    if first == ":":
        if source[position + 1 : position + 2] != "=":
            return _Token("error", "expected :=", line), position
        return _Token(":=", ":=", line), position + 2
    if first in "=|()":
        return _Token(first, first, line), position + 1
    following = source[position + 1 : position + 2]
    if first == "$" or (first == "." and not following.isdigit() and following):
        end = _WORD.match(source, position + 1).end()  # type: ignore[union-attr]
        kind = "variable" if first == "$" else "field" if end > position + 1 else "dot"
        return _word(source, position, end, kind, line)
    if first in "+-." or first.isdigit():
        end = _NUMBER.match(source, position).end()  # type: ignore[union-attr]
        if _WORD.match(source, end)[0]:  # type: ignore[index]
            return _Token("error", f"bad number syntax: {json.dumps(source[position : end + 1])}", line), end
        return _Token("number", source[position:end], line), end
    if (end := _WORD.match(source, position).end()) > position:  # type: ignore[union-attr]
        word = source[position:end]
        kind = word if word in _KEYWORDS else "bool" if word in {"true", "false"} else "identifier"
        return _word(source, position, end, kind, line)
    if first.isascii() and first.isprintable():
        return _Token("character", first, line), position + 1
    return _Token("error", f"unrecognized character in action: {_code(first)}", line), position


def _word(source: str, position: int, end: int, kind: str, line: int) -> tuple[_Token, int]:
    if end < len(source) and source[end] not in " \t\r\n.,|:)(" and not source.startswith("}}", end):
        return _Token("error", f"bad character {_code(source[end])}", line), end
    return _Token(kind, source[position:end], line), end


def _code(character: str) -> str:
    return f"U+{ord(character):04X} '{character}'" if character.isprintable() else f"U+{ord(character):04X}"


class _Parser:
    """A recursive descent parser that follows Go's. A node is just the name of its kind."""

    def __init__(self, source: str) -> None:
        self._tokens = _tokens(source)
        self._ahead: list[_Token] = []
        self._last = _Token("EOF", "", 1)
        self._variables = ["$"]
        self._loops = 0
        self._action_line = 0

    def parse(self) -> None:
        while self._peek().kind != "EOF":
            if self._peek().kind == "{{":
                opening = self._next()
                following = self._next_word()
                if following.kind == "define":
                    self._definition()
                    continue
                self._back(opening, following)
            if (end := self._text_or_action()) is not None:
                self._fail(f"unexpected {end}")

    # Tokens

    def _next(self) -> _Token:
        token = self._ahead.pop(0) if self._ahead else next(self._tokens)
        self._last = token
        return token

    def _peek(self) -> _Token:
        if not self._ahead:
            self._ahead.append(next(self._tokens))
        self._last = self._ahead[0]
        return self._ahead[0]

    def _next_word(self) -> _Token:
        while (token := self._next()).kind == "space":
            pass
        return token

    def _peek_word(self) -> _Token:
        token = self._next_word()
        self._back(token)
        return token

    def _back(self, *tokens: _Token) -> None:
        self._ahead[:0] = tokens

    def _fail(self, text: str) -> None:
        raise TemplateError(f"template: :{self._last.line}: {text}")

    def _unexpected(self, token: _Token, context: str) -> None:
        if token.kind != "error":
            self._fail(f"unexpected {_shown(token)} in {context}")
        started = ""
        if self._action_line not in {0, token.line}:
            started = f"{'' if token.text.endswith(' action') else ' in action'} started at :{self._action_line}"
        self._fail(token.text + started)

    def _expect(self, kinds: set[str], context: str) -> _Token:
        token = self._next_word()
        if token.kind not in kinds:
            self._unexpected(token, context)
        return token

    # Blocks

    def _definition(self) -> None:
        self._expect({"string", "raw"}, "define clause")
        self._expect({"}}"}, "define clause")
        self._nested_template("define clause")

    def _nested_template(self, context: str) -> None:
        """Parse a nested template, which has its own variables and loops."""
        outer, self._variables, loops, self._loops = self._variables, ["$"], self._loops, 0
        if (end := self._list()) != "{{end}}":
            self._fail(f"unexpected {end} in {context}")
        self._variables, self._loops = outer, loops

    def _list(self) -> str:
        while self._peek_word().kind != "EOF":
            if (end := self._text_or_action()) is not None:
                return end
        self._fail("unexpected EOF")
        return ""

    def _text_or_action(self) -> str | None:
        """Parse one text or action; return `{{end}}` or `{{else}}` if it was one of these, else None."""
        token = self._next_word()
        if token.kind == "{{":
            self._action_line = token.line
            end = self._action()
            self._action_line = 0
            return end
        if token.kind != "text":
            self._unexpected(token, "input")
        return None

    def _action(self) -> str | None:
        token = self._next_word()
        match token.kind:
            case "block":
                self._name(self._next_word(), "block clause")
                self._pipeline("block clause", "}}")
                self._nested_template("block clause")
            case "break" | "continue" as word:
                if (following := self._next_word()).kind != "}}":
                    self._unexpected(following, f"{{{{{word}}}}}")
                if not self._loops:
                    self._fail(f"{{{{{word}}}}} outside {{{{range}}}}")
            case "else":
                if self._peek_word().kind not in {"if", "with"}:
                    self._expect({"}}"}, "else")
                return "{{else}}"
            case "end":
                self._expect({"}}"}, "end")
                return "{{end}}"
            case "if" | "range" | "with" as word:
                self._control(word)
            case "template":
                self._name(self._next_word(), "template clause")
                if (following := self._next_word()).kind != "}}":
                    self._back(following)
                    self._pipeline("template clause", "}}")
            case _:
                self._back(token)
                self._pipeline("command", "}}")
        return None

    def _name(self, token: _Token, context: str) -> None:
        if token.kind not in {"string", "raw"}:
            self._unexpected(token, context)

    def _control(self, context: str) -> None:
        known = len(self._variables)
        self._pipeline(context, "}}")
        self._loops += context == "range"
        end = self._list()
        self._loops -= context == "range"
        if end == "{{else}}":
            if context in {"if", "with"} and self._peek().kind == context:
                self._next()
                self._control(context)
            elif (end := self._list()) != "{{end}}":
                self._fail(f"expected end; found {end}")
        del self._variables[known:]

    # Values

    def _pipeline(self, context: str, end: str) -> None:
        self._declarations(context)
        stages: list[str] = []
        while (token := self._next_word()).kind != end:
            if token.kind not in _OPERANDS:
                self._unexpected(token, context)
            self._back(token)
            stages.append(self._command())
        if not stages:
            self._fail(f"missing value for {context}")
        for number, stage in enumerate(stages[1:], 2):
            if stage in _CONSTANTS:
                self._fail(f"non executable command in pipeline stage {number}")

    def _declarations(self, context: str) -> None:
        declared = 0
        while (variable := self._peek_word()).kind == "variable":
            self._next()
            after = self._peek()
            following = self._peek_word()
            if following.kind in {"=", ":="}:
                self._next_word()
                self._variables.append(variable.text)
                return
            if following.text != ",":
                self._back(*((variable, after) if after.kind == "space" else (variable,)))
                return
            self._next_word()
            self._variables.append(variable.text)
            declared += 1
            if context != "range" or declared > 1:
                self._fail(f"too many declarations in {context}")
            if self._peek_word().kind not in {"variable", "}}", ")"}:
                self._fail("range can only initialize variables")

    def _command(self) -> str:
        """Parse a command; return the kind of its first operand."""
        kinds: list[str] = []
        while True:
            self._peek_word()
            if (kind := self._operand()) is not None:
                kinds.append(kind)
            token = self._next()
            if token.kind == "space":
                continue
            if token.kind in {"}}", ")"}:
                self._back(token)
            elif token.kind != "|":
                self._unexpected(token, "operand")
            break
        if not kinds:
            self._fail("empty command")
        return kinds[0]

    def _operand(self) -> str | None:
        token = self._next_word()
        kind = self._term(token)
        if kind is None:
            self._back(token)
            return None
        if self._peek().kind == "field":
            while self._peek().kind == "field":
                self._next()
            if kind in _CONSTANTS:
                self._fail(f"unexpected . after term {json.dumps(token.text)}")
            if kind not in {"field", "variable"}:
                kind = "chain"
        return kind

    def _term(self, token: _Token) -> str | None:
        match token.kind:
            case "identifier":
                if token.text not in FUNCTIONS:
                    self._fail(f"function {json.dumps(token.text, ensure_ascii=False)} not defined")
            case "variable":
                if token.text not in self._variables:
                    self._fail(f"undefined variable {json.dumps(token.text, ensure_ascii=False)}")
            case "char":
                return "number"
            case "number" if not _is_number(token.text):
                self._fail(f"illegal number syntax: {json.dumps(token.text)}")
            case "raw":
                return "string"
            case "(":
                self._pipeline("parenthesized pipeline", ")")
                return "pipe"
            case "bool" | "dot" | "field" | "nil" | "number" | "string":
                pass
            case _:
                return None
        return token.kind


def _is_number(text: str) -> bool:
    for read in (float, lambda text: int(text, 0)):
        try:
            read(text.removesuffix("i"))
        except ValueError:
            continue
        return True
    return False


def _shown(token: _Token) -> str:
    if token.kind == "EOF":
        return "EOF"
    if token.kind in _KEYWORDS or token.kind == "dot":
        return f"<{token.text}>"
    text = json.dumps(token.text[:10], ensure_ascii=False)
    return f"{text}..." if len(token.text) > 10 else text
