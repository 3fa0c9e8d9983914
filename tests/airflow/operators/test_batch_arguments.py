"""The arguments of OllamaBatchOperator: beside those of the engine, and as DAG files, forms and templates give them."""

import dataclasses
import inspect
from datetime import date, time, timedelta

import pytest
from airflow.providers.common.compat.sdk import DAG

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch import BatchSpec, Limits, read_argument
from ollama_provider.operators import OllamaBatchOperator

#: The connection has defaults of its own for these.
OF_THE_CONNECTION = {"model", "options"}


def test_defaults_are_those_of_the_engine() -> None:
    """They are written out in the operator, which a DAG file loads without the engine."""
    arguments = inspect.signature(OllamaBatchOperator.__init__).parameters
    fields = [field for kind in (BatchSpec, Limits) for field in dataclasses.fields(kind)]
    engine = {field.name: field.default for field in fields if field.name in arguments.keys() - OF_THE_CONNECTION}
    required = {name for name, default in engine.items() if default is dataclasses.MISSING}

    assert required == {"rows"}
    assert {name: arguments[name].default for name in engine.keys() - required} == {
        name: default for name, default in engine.items() if name not in required
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "failed"},
        {"task": "rewrite"},
        {"concurrency": 0},
        {"concurrency": "many"},
        {"pack": 1.5},
        {"max_attempts": 0},
        {"max_failed_rows": -1},
        {"max_failed_ratio": 5},
        {"max_outage": float("nan")},
        {"results": "csv"},
        {"on_digest_change": "ask"},
        {"allow_cut": "yes"},
        {"think": "deep"},
        {"stop_at": 1350},
        {"stop_at": date(2026, 11, 26)},
        {"stop_at": "6am"},
        {"timezone": "Europe/Berln"},
        {"id_column": 0.1},
    ],
    ids=str,
)
def test_what_is_wrong_however_it_is_rendered_is_refused_when_the_file_is_parsed(wrong):
    """By the name of the argument: nobody waits for the night to hear of it."""
    (name,) = wrong

    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=rf"^{name}: "):
        OllamaBatchOperator(task_id="t", rows="x.jsonl", output_path="out", **wrong)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("mode", " failed_only", "failed_only"),
        ("concurrency", "4", 4),
        ("concurrency", 4.0, 4),
        ("concurrency", "auto", "auto"),
        ("max_attempts", "5", 5),
        ("max_failed_ratio", "0.05", 0.05),
        ("max_failed_rows", "None", None),
        ("requests_per_minute", "30", 30.0),
        ("allow_cut", "True", True),
        ("unload_after", "false", False),
        ("think", "False", False),
        ("think", "high", "high"),
        ("id_column", 2026, "2026"),
        ("id_column", "None", None),
        ("fallback_model", None, None),
        ("timezone", "+02:00", "+02:00"),
        ("stop_at", time(6), time(6)),
        ("stop_at", "PT6H", timedelta(hours=6)),
        ("stop_at", "None", None),
        (
            "messages",
            '[{"role": "user", "content": "{{ row.text }}"}]',
            [{"role": "user", "content": "{{ row.text }}"}],
        ),
        ("messages", [{"role": "user", "content": 42}], [{"role": "user", "content": "42"}]),
    ],
)
def test_what_has_one_meaning_is_read(name, given, read):
    """As a template renders it, with native objects or without, and as a form sends it."""
    assert read_argument(name, given) == read


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("id_column", 0.1, "a text is needed, not float.*render_template_as_native_obj"),
        ("images", True, "a text is needed, not bool"),
        ("prompt", ["a"], "a text is needed, not list"),
        ("messages", "Say it.", "a list of turns"),
        ("messages", "[1, 2]", "a list of turns"),
        ("messages", {"role": "user"}, "a list of turns"),
        ("messages", [{"role": "user", "content": 0.5}], "a text is needed, not float"),
        ("concurrency", True, "neither 'auto' nor a number"),
        ("concurrency", None, "neither 'auto' nor a number"),
        ("max_outage", "1e999", "is not a number"),
        ("max_outage", "-1", "is not a number"),
        ("mode", 1, "is not one of"),
    ],
)
def test_what_has_none_or_two_is_refused(name, given, told):
    """A float may have been the text 0.10, and what was shown as a list is no list."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}.*{told}"):
        read_argument(name, given)


def test_templates_and_outputs_are_read_when_they_are_known():
    """And not when the file is parsed."""
    with DAG("any", schedule=None):
        above = OllamaBatchOperator(task_id="above", rows="x.jsonl", output_path="out")
        OllamaBatchOperator(
            task_id="t",
            rows=above.output,
            output_path="out",
            mode="{{ params.mode }}",
            concurrency="{% if True %}4{% endif %}",
            stop_at=above.output["stop_at"],
        )
