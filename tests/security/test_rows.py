"""Hostile rows: out of the sandbox, without end, larger than the memory, into other folders, and through the log."""

import json
import logging
import subprocess
import sys

import pytest

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows.prompts import PromptTemplate, RenderError
from ollama_provider.testing import Fail, Model
from tests.batch.conftest import Batch

#: What a template would have to reach to leave the sandbox.
ESCAPES = [
    "{{ row.__class__.__base__.__subclasses__() }}",
    "{{ row['__class__'] }}",
    "{{ row|attr('__class__') }}",
    "{{ ''|attr('format')|attr('__globals__') }}",
    "{{ row.text|attr(row.dunder) }}",
    "{{ row.list|map(attribute='__class__')|list }}",
    "{{ row.list|map('attr', '__class__')|list }}",
    "{{ row.list|sort(attribute='__class__.__mro__') }}",
    "{{ row.list|join(attribute='__class__') }}",
    "{{ row.list|groupby('__class__')|list }}",
    "{{ row.list|selectattr('__class__')|list }}",
    "{{ '{0.__class__}'.format(row) }}",
    "{{ '{0.__class__.__mro__}'.format(row.text) }}",
    "{{ row.format.format(row) }}",
    "{{ row.format.format_map({'0': row, 'a': row}) }}",
    "{{ row.format | format(row) }}{{ row.text.format.__self__ }}",
    "{% set f = row.format.format %}{{ f(row) }}",
    "{{ row.format | attr('format') }}{{ (row.format | attr('format'))(row) }}",
    "{{ [row.format] | map('attr', 'format') | first }}{{ ([row.format.format] | first)(row) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__self__.__import__('os') }}",
    "{{ dict.__mro__ }}",
    "{{ dict.fromkeys.__self__ }}",
    "{{ loop }}{% for x in row.list %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in row.list %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% for x in row.list %}{{ loop.previtem.x.__class__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "{{ row.text.encode.__func__ }}{{ row.generator.gi_frame.f_builtins }}",
    "{{ row.list.append(1) }}",
    "{{ row.list.sort() }}",
    "{{ row.list.__setitem__(0, 1) }}",
    "{{ row.mapping.pop('a') }}",
    "{{ row.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends row.text %}",
    "{% from 'os' import system %}",
]
_ROW = {
    "text": "a",
    "dunder": "__class__",
    "format": "{0.__class__.__init__.__globals__}",
    "list": ["a", "b"],
    "mapping": {"a": 1},
}


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_leaves_the_sandbox(template):
    """Whatever a template reaches for, and whatever a row gives it to reach with."""
    row = json.loads(json.dumps(_ROW))

    try:
        told = PromptTemplate(template).render(row)
    except (RenderError, InputError) as refused:
        told = str(refused)

    for secret in ("<class", "<function", "<module", "builtins", "root:", "object at"):
        assert secret not in told
    assert row == _ROW


#: Each with a value that a row may hold, and each harmless with another one.
BOMBS = [
    "{% for a in range(90000) %}{% for b in row.list %}{% endfor %}{% endfor %}",
    "{% for a in row.list recursive %}{{ loop(row.list) }}{% endfor %}",
    "{% for a in range(90000) %}{{ 'x' in row.long }}{{ 'y' in row.long }}{{ row.long.count('z') }}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ row.text | center(row.huge) }}",
    "{{ row.text | center(row.many) | center(row.many) | indent(row.many) }}",
    "{{ row.lines | indent(row.many) }}",
    "{{ row.lines | indent(row.long) }}",
    "{{ row.long | replace('', row.long) }}",
    "{{ row.long.replace('x', row.long) }}",
    "{{ row.long | join(row.long) }}",
    "{{ row.long.join(row.list) }}",
    "{{ row.list | map('replace', 'a', row.long) | join(row.long) }}",
    "{{ row.list | batch(row.many, 'x') | list }}",
    "{{ row.list | slice(row.many) | list }}",
    "{{ row.list | slice(slices=row.many) | list }}",
    "{{ 1.5 | round(row.many, 'ceil') }}",
    "{{ 1.5 | round(precision=row.many, method='floor') }}",
    "{{ row.mapping | tojson(indent=row.many) }}",
    "{{ row.long | wordwrap(1) }}",
    "{{ row.long | wordwrap(width=2, break_long_words=true) }}",
    "{{ '%*d' | format(row.huge, 1) }}",
    "{{ row.percent | format(1) }}",
    "{{ row.percent % 1 }}",
    "{{ ('%s' * 90000) % (row.long,) }}{{ ('%(a)s' * 90000) % {'a': row.long} }}",
    "{{ row.width.format(1) }}",
    "{{ row.width.format_map({'0': 1}) }}",
    "{{ '{:{}}'.format(1, row.huge) }}",
    "{{ '{0:{1[n]}}'.format(1, {'n': row.huge}) }}",
    "{{ ('{0}' * 90000).format(row.long) }}",
    "{{ row.tabs.expandtabs(row.many) }}",
    "{{ row.long.center(row.huge) }}",
    "{{ row.long.ljust(row.huge) }}",
    "{{ row.long * row.many }}",
    "{{ row.list * row.huge }}",
    "{{ row.many ** row.many }}",
    "{% set n = namespace(x=row.many) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=row.text) %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=row.text) %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=row.list) %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=row.text) %}{% for i in range(90) %}{% set n.x = [n.x, n.x]|join %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = '%s%s' % (n.x, n.x) %}{% endfor %}{{ n.x }}",
    "{% set x %}{% for a in range(90000) %}{{ row.long }}{% endfor %}{% endset %}{{ x | length }}",
    "{% macro f() %}{% for a in range(90000) %}{{ row.long }}{% endfor %}{% endmacro %}{{ f() | length }}",
    "{% filter upper %}{% for a in range(90000) %}{{ row.long }}{% endfor %}{% endfilter %}",
    "{{ range(row.huge) | list }}",
    "{{ row.long | list | map('replace', 'x', row.long) | list | length }}",
    "{{ row.long | list | select('in', row.long) | list | length }}",
]
_RENDER = """
import json, resource, sys

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows import sandbox
from ollama_provider.batch.rows.prompts import PromptTemplate, RenderError

sandbox.MAX_SECONDS = 0.5
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
row = {
    "text": "x", "long": "x" * 400_000, "lines": "a\\n" * 10_000, "tabs": "\\t" * 10_000, "huge": 10**12,
    "many": 60_000_000, "list": ["a"] * 1000, "mapping": {"a": [1] * 10}, "percent": "%999999999d",
    "width": "{0:999999999}",
}
for template in json.load(sys.stdin):
    try:
        told = f"{len(PromptTemplate(template).render(row))} characters"
    except RenderError as error:
        told = str(error)
    print(json.dumps(told), flush=True)
"""


def test_no_row_computes_without_end_or_fills_the_memory():
    """In a process with 2 GiB, each of them is refused before it has taken them."""
    ran = subprocess.run(
        [sys.executable, "-c", _RENDER],
        input=json.dumps(BOMBS), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    told = dict(zip(BOMBS, map(json.loads, ran.stdout.splitlines()), strict=False))
    assert ran.returncode == 0, (ran.stderr[-500:], BOMBS[len(told)])
    assert len(told) == len(BOMBS)
    for template, text in told.items():
        assert text.startswith("the prompt's template cannot be rendered: "), (template, text)
        assert "MemoryError" not in text, template


def test_what_templates_do_all_day_is_not_disturbed():
    """Filters, methods and operators, by position and by name."""
    template = (
        "{{ row.text | upper | center(9) | trim }} {{ row.text.replace('a', 'bb') }} {{ row.list | join(', ') }} "
        "{{ row.list | map('upper') | join }} {{ row.people | join('+', attribute='name') }} "
        "{{ '%05.1f %s' | format(2.25, row.text) }} {{ '%(a)s' % {'a': 1} }} {{ '{:>4}{b}'.format(1, b=2) }} "
        "{{ 7 % 4 }} {{ 2 ** 10 }} {{ 6 * 7 }} {{ 'ab' * 2 }} {{ row.text + 'b' }} {{ row.text ~ 1 ~ row.list[0] }} "
        "{{ [1] + [2] }} {{ 2.345 | round(1) }} {{ 'a b c' | wordwrap(3) | indent(2, true) }} "
        "{{ row.list | batch(2, '-') | list }} {{ {'a': 1} | tojson(indent=1) }} {{ 'a\t' .expandtabs(2) }} "
        "{{ '-'.join(row.list) }} {{ (10 ** 12 + 1) // 2 }} {{ row.list | select('equalto', 'b') | list }}"
    )

    row = {"text": "a", "list": ["b", "c"], "people": [{"name": "x"}, {"name": "y"}]}
    assert PromptTemplate(template).render(row) == (
        "A bb b, c BC x+y 002.2 a 1    12 3 1024 42 abab ab a1b [1, 2] 2.3   a b\n  c "
        '[[\'b\', \'c\']] {\n "a": 1\n} a  b-c 500000000000 [\'b\']'
    )  # fmt: skip


#: Ids and texts that mean something to a path, a terminal, or a reader of lines.
ODD = [
    "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb\r\nERROR forged line", "\x1b[2J\x1b[31mred", "\u202egnp.exe",
    "{{ 7 * 7 }}", "$(id)", "'; DROP TABLE x; --", "x" * 2_000_000, "", " ", "=cmd|' /C calc'!A0",
]  # fmt: skip


def test_ids_are_data(ollama, tmp_path, caplog):
    """They are carried through as JSON, and neither files nor log lines are named after them."""
    caplog.set_level(logging.DEBUG, logger="ollama_provider")
    batch = Batch(ollama, tmp_path / "out")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": odd, "text": odd}) + "\n" for odd in ODD))

    summary = batch.run(str(rows), prompt="Of {{ row.text }}.", id_column="id")

    assert summary.rows == len(ODD)
    assert [row["id"] for row in batch.results] == ODD
    raw = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert raw.count(b"\n") == len(ODD)
    assert not set(raw) & {0, 13, 27}
    assert "\x1b" not in caplog.text
    assert "forged" not in caplog.text
    names = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not [name for name in names if "passwd" in name or "red" in name]


def test_ids_of_failed_rows_are_text_in_the_log(ollama, tmp_path, caplog):
    """Each on one line, cut, and without what a terminal obeys."""
    caplog.set_level(logging.DEBUG, logger="ollama_provider")
    ollama.stand_in.script(Fail("no", status=400), where=lambda body: bool(body.get("prompt")), always=True)
    for number, odd in enumerate(ODD):
        Batch(ollama, tmp_path / str(number)).run([{"id": odd, "text": "a"}], id_column="id")

    tables = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Failed rows: 1\n")]
    assert len(tables) == len(ODD)
    for table in tables:
        assert table.count("\n") == 2
        assert table.replace("\n", "").isprintable()
        assert len(table) < 400
    assert "a␀b" in caplog.text


@pytest.mark.ollama(models=[Model("eyes", ("completion", "vision"))])
def test_no_row_reads_another_file(ollama, tmp_path):
    """By its path, a link, or an address; the rest of the night goes on."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "link.png").symlink_to("/etc/passwd")
    (folder / "self.png").symlink_to("/proc/self/environ")
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "other.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    paths = [
        "../images-2/other.png", "link.png", "self.png", "/etc/passwd", "/proc/self/environ", "/dev/zero", "good.png\0",
        "file:///etc/passwd", "http://127.0.0.1:1/a.png", "..%2fimages-2%2fother.png", "\x1b[2J.png", "x" * 100_000,
        "../../../../../../../../etc/passwd", "good.png/../../images-2/other.png", "//etc/passwd", "~/.ssh/id_rsa", ".",
    ]  # fmt: skip
    batch = Batch(ollama, tmp_path / "out")

    summary = batch.run(
        [{"path": path} for path in ["good.png", *paths, "good.png"]],
        model="eyes", prompt="What?", images="{{ row.path }}", images_from=folder,
    )  # fmt: skip

    assert (summary.ok, summary.failed) == (2, len(paths))
    sent = [image for seen in ollama.stand_in.requests for image in (seen.json or {}).get("images") or ()]
    assert {len(image) for image in sent} == {12}
    for row in batch.failed:
        assert row["error"]["class"] == "ImageError"
        assert row["error"]["text"].isprintable()
        assert len(row["error"]["text"]) < 1000
