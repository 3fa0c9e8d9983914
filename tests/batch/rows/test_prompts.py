"""From rows to prompts."""

import datetime as dt
import decimal

import pytest

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows.prompts import ChatTemplate, PromptTemplate, RenderError


def render(template, **columns):
    return PromptTemplate(template).render(columns)


def test_a_column_wins_over_a_method_of_its_name():
    """Columns may be called items, values, keys or get; where there is none, the method is there."""
    assert render("{{ row.items }} {{ row.values }} {{ row['keys'] }}", items="a", values="b", keys="c") == "a b c"
    assert render("{% for k, v in row.m.items() %}{{ k }}={{ v }}{% endfor %}", m={"x": 1}) == "x=1"


def test_other_types_are_printed_as_python_does():
    """Dates in ISO 8601, decimals as written, bytes that are text as text."""
    printed = render(
        "{{ row.day }} {{ row.price }} {{ row.raw }} {{ row.n }} {{ row.yes }} {{ row.day.year }}",
        day=dt.date(2026, 11, 22), price=decimal.Decimal("1.10"), raw="ü".encode(), n=7, yes=True,
    )  # fmt: skip

    assert printed == "2026-11-22 1.10 ü 7 True 2026"


@pytest.mark.parametrize("value", [None, float("nan"), decimal.Decimal("NaN")], ids=repr)
def test_a_null_fails_its_row(value):
    """The word "None" in a prompt would be answered as if it were meant; a template may allow for it."""
    with pytest.raises(RenderError, match="null"):
        render("{{ row.text }}", text=value)
    assert render('{{ row.text or "-" if row.text == row.text else "-" }}', text=value) == "-"
    assert render('{{ row.text | default("-", true) }}', text=None) == "-"


def test_bytes_that_are_no_text_fail_their_row():
    """They would become b'...'."""
    with pytest.raises(RenderError, match="UTF-8"):
        render("{{ row.raw }}", raw=b"\xff")


def test_a_missing_column_is_named_with_those_there_are():
    """Before any request, since the template tells which columns it needs."""
    prompts = PromptTemplate("{{ row.titel }} {{ row['text'] }} {{ row.lang | default('en') }}")

    with pytest.raises(InputError, match=r"uses 'titel', but the rows have only the columns 'text', 'title'"):
        prompts.check(["title", "text"])
    prompts.check(["titel", "text"])


def test_a_column_that_one_row_lacks_fails_that_row():
    """By name."""
    with pytest.raises(RenderError, match="column 'text' is missing"):
        render("{{ row.text }}", title="a")


@pytest.mark.parametrize("template", ["{{ row.text", "{% for %}", "{{ row.text | nosuchfilter }}"])
def test_a_template_with_an_error_is_refused(template):
    """The error has Jinja's text and the line."""
    with pytest.raises(InputError, match="line 1"):
        PromptTemplate(template)


def test_a_name_other_than_row_is_refused():
    """The likely mistake {{ text }} is refused before the first row."""
    with pytest.raises(InputError, match=r"row\.text"):
        PromptTemplate("{{ text }}")
    assert (
        PromptTemplate("{% set x = row.a %}{{ x }}{% for i in range(2) %}{{ i }}{% endfor %}").render({"a": 1}) == "101"
    )


def test_variables_are_the_same_for_all_rows():
    """A row cannot change them, and may have columns of the same names."""
    prompts = PromptTemplate("{% set day = day + '!' %}{{ day }} {{ row.day }} {{ tags | join('+') }}",
                             {"day": "Monday", "tags": ["a", "b"]})  # fmt: skip

    assert [prompts.render({"day": n}) for n in (1, 2)] == ["Monday! 1 a+b", "Monday! 2 a+b"]
    with pytest.raises(RenderError):
        PromptTemplate("{{ tags.append(row.text) }}", {"tags": []}).render({"text": "x"})


def test_a_name_that_is_no_variable_is_refused_with_those_that_are():
    """In a chat as well; nothing is left out silently."""
    told = r"uses 'dya', but knows only 'row', 'day', 'tone': write row\.dya .* variables"

    with pytest.raises(InputError, match=told):
        PromptTemplate("{{ dya }} {{ row.text }}", {"day": "Monday", "tone": "dry"})
    with pytest.raises(InputError, match=told):
        ChatTemplate([{"role": "user", "content": "{{ dya }}"}], {"day": "Monday", "tone": "dry"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ row.text.__class__.__mro__ }}",
        "{{ row.text.format.__globals__ }}",
        "{{ row.__init__.__globals__ }}",
        "{{ row.update({'text': 'x'}) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(template):
    """A template reaches the row's values and nothing behind them, and changes nothing."""
    row = {"text": "a"}

    with pytest.raises(RenderError):
        PromptTemplate(template).render(row)
    assert row == {"text": "a"}


@pytest.mark.parametrize(
    "template", ["{{ row.text.nope }}", "{{ 1 / row.zero }}", "{{ row.text + 1 }}", "{{ row.nope }}"]
)
def test_an_error_never_quotes_the_row(template):
    """Its text is logged and stored, the row is not."""
    with pytest.raises(RenderError) as raised:
        render(template, text="secret", zero=0)

    assert "secret" not in str(raised.value)


def test_one_row_leaves_nothing_to_the_next():
    """What a template sets for one row is gone for the next."""
    prompts = PromptTemplate("{% set x = row.n + 1 %}{% macro m() %}{{ x }}{% endmacro %}{{ x }}{{ m() }}")

    assert [prompts.render({"n": n}) for n in (1, 0, 2)] == ["22", "11", "33"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% set x %}{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}{% endset %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% for a in range(row.n) %}{{ row.long }}{% endfor %}",
        "{{ 'x' * row.huge }}",
        "{{ row.huge * 'x' }}",
        "{{ row.huge ** row.huge }}",
        "{{ row.long.center(row.huge) }}",
        "{{ row.list * row.huge }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_ends_and_its_prompt_is_bounded(template):
    """Whatever numbers a row holds: such a row fails, and the memory stays."""
    prompts = PromptTemplate(template)

    with pytest.raises(RenderError):
        prompts.render({"n": 90_000, "huge": 10**12, "long": "x" * 10_000, "list": [1]})


def test_ordinary_loops_are_not_disturbed():
    """Their own counters, filters and else branches work, for one row after the other."""
    prompts = PromptTemplate(
        "{% for x in row.xs if x %}{{ loop.index }}/{{ loop.length }}{{ x * 2 }}{{ ',' if not loop.last }}"
        "{% else %}none{% endfor %}{% for k, v in row.m | dictsort recursive %}{{ k }}{{ v ** 2 }}{% endfor %}"
    )

    for _ in range(3):
        assert prompts.render({"xs": [1, 0, "ab"], "m": {"a": 3}}) == "1/22,2/2ababa9"
        assert prompts.render({"xs": [], "m": {}}) == "none"
    with pytest.raises(RenderError):
        prompts.render({"xs": 7, "m": {}})
