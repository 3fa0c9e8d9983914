"""Which prompt templates parse. The error texts were compared with those of Go's package for 40,000 templates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_provider.testing.go.templates import TemplateError, check

CHAT = """{{- range $i, $message := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>{{ else if .ToolCalls }}{{ range .ToolCalls }}{{ json .Function.Arguments }}{{ end }}
{{- end }}{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant{{ end }}{{ end }}"""


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no action",
        "}} alone",
        CHAT,
        "{{/* a comment */}}{{- /* and\nanother */ -}}",
        "{{ with $x := .A }}{{ $x.B }}{{ else with .C }}{{ . }}{{ end }}",
        '{{ define "a" }}{{ . }}{{ end }}{{ template "a" .B }}{{ block `b` . }}{{ end }}',
        "{{ range .A }}{{ if . }}{{ break }}{{ else }}{{ continue }}{{ end }}{{ end }}",
        "{{ printf \"%s\" 'x' | print 0x1f 1_000 -1.5e3 true nil }}",
        "{{ currentDate }}{{ yesterdayDate }}{{ toTypeScriptType .A }}",
        "{{ (index .A 0).B }}",
    ],
)
def test_templates_that_parse(template: str) -> None:
    """A valid template raises no error."""
    check(template)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ .Prompt", ":1: unclosed action"),
        ("{{\n.Prompt", ":2: unclosed action started at :1"),
        ("{{ .A }", ':1: unexpected "}" in operand'),
        ("{{ if .A }}x", ":1: unexpected EOF"),
        ("{{ range .A }}{{ if .B }}{{ end }}", ":1: unexpected EOF"),
        ("{{ end }}", ":1: unexpected {{end}}"),
        ("{{ else }}", ":1: unexpected {{else}}"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", ":1: expected end; found {{else}}"),
        ("a\n{{ if .A }}\nb\n{{ foo }}{{ end }}", ':4: function "foo" not defined'),
        ("{{ . A }}", ':1: function "A" not defined'),
        ("{{ .A }}{{ $x }}", ':1: undefined variable "$x"'),
        ("{{ range $x := .A }}{{ end }}{{ $x }}", ':1: undefined variable "$x"'),
        ("{{ }}", ":1: missing value for command"),
        ("{{ if }}{{ end }}", ":1: missing value for if"),
        ("{{ .A | 3 }}", ":1: non executable command in pipeline stage 2"),
        ("{{ .A..B }}", ":1: unexpected <.> in operand"),
        ("{{ (.A }}", ":1: unclosed left paren"),
        ("{{ .A) }}", ":1: unexpected right paren"),
        ("{{/* c }}", ":1: unclosed comment"),
        ("{{/* c */ x }}", ":1: comment ends before closing delimiter"),
        ('{{ "a }}', ":1: unterminated quoted string"),
        ("{{ break }}", ":1: {{break}} outside {{range}}"),
        ("{{ template }}", ':1: unexpected "}}" in template clause'),
        ("{{ .A-1 }}", ":1: bad character U+002D '-'"),
        ("{{ 1a }}", ':1: bad number syntax: "1a"'),
        ("{{ 1.a }}", ':1: bad number syntax: "1.a"'),
        ("{{ : }}", ":1: expected :="),
        ("{{ \x01 }}", ":1: unrecognized character in action: U+0001"),
        ("{{ nil.A }}", ':1: unexpected . after term "nil"'),
        ("{{ range $a, 3 := .A }}{{ end }}", ":1: range can only initialize variables"),
        ("{{ 0x }}", ':1: illegal number syntax: "0x"'),
        ("{{ template .A }}", ':1: unexpected ".A" in template clause'),
        ("{{ range $a, $b, $c := .A }}{{ end }}", ":1: too many declarations in range"),
    ],
)
def test_templates_that_do_not_parse(template: str, error: str) -> None:
    """The error has Go's line number and text."""
    with pytest.raises(TemplateError) as caught:
        check(template)

    assert str(caught.value) == f"template: {error}"


PIECES = ["{{", "}}", "{{- ", " -}}", " ", ".A", "$x", "(", ")", "if", "end", '"', "/*", "1", "|"]


@given(st.lists(st.sampled_from(PIECES)))
@settings(deadline=None)
def test_any_text_is_judged(parts: list[str]) -> None:
    """Any text either parses or raises an error with a line number."""
    error = "template: :1: "
    try:
        check("".join(parts))
    except TemplateError as found:
        error = str(found)

    assert error.startswith("template: :1: ")
