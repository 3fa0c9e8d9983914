"""What Airflow finds in this package, and how it shows the connection form."""

import importlib
import json
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from ollama_provider.hooks import OllamaHook
from ollama_provider.provider_info import EXTRA_FIELDS, UI_FIELD_BEHAVIOUR, get_provider_info

AIRFLOW = tuple(map(int, airflow.__version__.split(".")[:2]))

# In processes of their own: Airflow 3.1 replaces the modules of wtforms for good, and all versions remember the form.
FORM_OF_3 = """
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    (meta,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "ollama"]
    result = {
        name: {"value": field["value"], "description": field["description"], **field["schema"]}
        for name, field in meta.extra_fields.items()
    }
"""
FORM_OF_2 = """
    from airflow.providers_manager import ProvidersManager
    from wtforms import Form

    widgets = ProvidersManager().connection_form_widgets
    fields = {info.field_name: info.field for key, info in widgets.items() if key.startswith("extra__ollama__")}
    OllamaForm = type("OllamaForm", (Form,), fields)
    form = OllamaForm()
    result = {
        field.name: {"title": str(field.label.text), "description": str(field.description), "type": ["null"]}
        for field in form
    }
"""


@pytest.fixture
def fresh_python():
    """Return a function that runs code in a new Python, and returns what it calls *result*."""

    def run(code: str):
        script = textwrap.dedent(code) + "\nimport json; print('result:', json.dumps(result))"
        shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        (line,) = [line for line in shown.splitlines() if line.startswith("result: ")]
        return json.loads(line.removeprefix("result: "))

    return run


def test_airflow_finds_the_provider_by_its_entry_point():
    """Installing the package is all a user has to do."""
    (entry,) = [entry for entry in entry_points(group="apache_airflow_provider") if entry.value.startswith("ollama_")]

    assert entry.load() is get_provider_info


def test_the_information_keeps_to_airflows_schema():
    """Airflow skips a provider whose information does not fit."""
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())

    jsonschema.validate(get_provider_info(), schema)


def test_stored_names_are_these():
    """Airflow stores the type in every connection, and people import by these paths: a change breaks both."""
    info = get_provider_info()

    assert info["package-name"] == "airflow-provider-ollama"
    (connection,) = info["connection-types"]
    assert connection["connection-type"] == "ollama"
    assert connection["hook-class-name"] == "ollama_provider.hooks.OllamaHook"
    assert connection["hook-name"] == OllamaHook.hook_name == "Ollama"


@pytest.mark.parametrize("kind", ["hooks", "operators", "sensors"])
def test_listed_modules_exist(kind):
    """Every module that is listed can be imported."""
    modules = [module for entry in get_provider_info()[kind] for module in entry["python-modules"]]

    assert modules == [f"ollama_provider.{kind}"]
    for module in modules:
        importlib.import_module(module)


def test_every_integration_that_is_named_is_described():
    """Airflow's documentation joins the lists by this name."""
    info = get_provider_info()
    named = {entry["integration-name"] for kind in ("hooks", "operators", "sensors") for entry in info[kind]}

    assert named == {entry["integration-name"] for entry in info["integrations"]}


def test_the_providers_manager_knows_the_hook():
    """The connection type leads to the class, with the argument that takes the connection."""
    hook = ProvidersManager().hooks["ollama"]

    assert hook.hook_class_name == "ollama_provider.hooks.OllamaHook"
    assert (hook.hook_name, hook.connection_type, hook.connection_id_attribute_name) == ("Ollama", "ollama", "conn_id")
    assert hook.connection_testable


def test_the_command_line_shows_the_provider(airflow_db):
    """Users check with `airflow providers get` whether the package is installed."""
    command = [sys.executable, "-m", "airflow", "providers", "get", "airflow-provider-ollama", "--full", "-o", "json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    (line,) = [line for line in shown.splitlines() if line.startswith("[{")]
    (provider,) = json.loads(line)
    assert "ollama_provider.hooks.OllamaHook" in str(provider)


def test_the_form_has_all_fields(fresh_python):
    """What Airflow sends to its UI: every field in its order, with title and help, none marked as required."""
    fields = fresh_python(FORM_OF_2 if AIRFLOW[0] == 2 else FORM_OF_3)

    assert list(fields) == list(EXTRA_FIELDS)
    for name, field in fields.items():
        assert field["title"] == EXTRA_FIELDS[name]["label"]
        assert field["description"] == EXTRA_FIELDS[name]["description"]
        assert "null" in field["type"], name


@pytest.mark.skipif(AIRFLOW[0] == 2, reason="the form of Airflow 2 has text fields only, with checks of their own")
def test_the_form_has_the_right_types(fresh_python):
    """A switch is a switch, and shows what holds; a number is a number. JSON is text before 3.2."""
    fields = fresh_python(FORM_OF_3)
    kinds = {
        name: (set(field["type"]) if isinstance(field["type"], list) else {field["type"]}) - {"null"}
        for name, field in fields.items()
    }

    assert {name for name, kind in kinds.items() if kind == {"boolean"}} == {"auto_pull"}
    assert fields["auto_pull"]["value"] is True
    assert {name for name, kind in kinds.items() if kind <= {"number", "integer"}} == {
        "first_token_timeout",
        "idle_timeout",
        "total_timeout",
        "max_attempts",
    }
    json_kind = {"object"} if AIRFLOW >= (3, 2) else {"string"}
    assert kinds["options"] == kinds["headers"] == json_kind


def test_the_older_class_methods_need_no_flask_before_they_are_called():
    """Airflow 3 has neither Flask nor wtforms; importing the hook must not look for them."""
    assert OllamaHook.get_ui_field_behaviour().keys() == {"hidden_fields", "relabeling", "placeholders"}


@pytest.mark.skipif(AIRFLOW[0] == 2, reason="Airflow 2 asks the package itself when it shows the page")
def test_the_page_of_providers_links_to_the_documentation_of_the_package():
    """Airflow takes the link from the package's URLs, and nothing that the provider's metadata says."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    provider = ProvidersManager().providers["airflow-provider-ollama"].data

    assert provider["documentation-url"] == project.get("urls", {}).get("Documentation")
    assert "documentation-url" not in get_provider_info()


def test_placeholders_are_for_standard_fields():
    """Airflow 3 shows placeholders for the standard fields only."""
    assert UI_FIELD_BEHAVIOUR["placeholders"].keys() <= {"host", "port", "schema", "login", "password"}
