"""What Airflow finds in this package, and how it shows the connection form."""

import importlib
import json
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.resources import files

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from ollama_provider.hooks import OllamaHook
from ollama_provider.provider_info import EXTRA_FIELDS, UI_FIELD_BEHAVIOUR, get_provider_info

try:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
except ImportError:
    HookMetaService = None  # 2.11 asks the ProvidersManager

#: Airflow builds the form from provider info since 3.2, before that from the hook's class methods.
FORM_FROM_INFO = tuple(map(int, airflow.__version__.split(".")[:2])) >= (3, 2)


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
    """`airflow providers get` is the first thing somebody does who wonders whether the package is there."""
    command = [sys.executable, "-m", "airflow", "providers", "get", "airflow-provider-ollama", "--full", "-o", "json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    (line,) = [line for line in shown.splitlines() if line.startswith("[{")]
    (provider,) = json.loads(line)
    assert "ollama_provider.hooks.OllamaHook" in str(provider)


@pytest.mark.skipif(not FORM_FROM_INFO, reason="before 3.2 the form comes from the hook's class methods")
def test_the_form_has_all_fields_with_label_and_type():
    """What the UI of 3.2 and later asks for: each field with its title, type and description, none of them required."""
    (meta,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "ollama"]

    assert list(meta.extra_fields) == list(EXTRA_FIELDS)
    for name, field in meta.extra_fields.items():
        assert field["schema"]["title"] == EXTRA_FIELDS[name]["label"]
        assert field["description"]
        optional = "null" in field["schema"]["type"] or "default" in field["schema"]
        assert optional, f"{name} would be marked as required"
    assert meta.standard_fields.host.placeholder == UI_FIELD_BEHAVIOUR["placeholders"]["host"]
    assert meta.standard_fields.password.title == UI_FIELD_BEHAVIOUR["relabeling"]["password"]


@pytest.mark.skipif(FORM_FROM_INFO, reason="since 3.2 the form comes from the provider information")
def test_the_older_form_has_the_same_fields():
    """Airflow 2.11 to 3.1 ask the hook; the fields are those of the provider information, in their order."""
    if HookMetaService is None:
        manager = ProvidersManager()
        widgets, behaviours = manager.connection_form_widgets, manager.field_behaviours
    else:
        _, widgets, behaviours = HookMetaService._get_hooks_with_mocked_fab()

    fields = [widget.field_name for name, widget in widgets.items() if name.startswith("extra__ollama__")]
    assert fields == list(EXTRA_FIELDS)
    assert behaviours["ollama"]["relabeling"] == UI_FIELD_BEHAVIOUR["relabeling"]


def test_placeholders_are_for_fields_that_exist():
    """A placeholder for a renamed field would be shown nowhere."""
    standard = {"host", "port", "schema", "login", "password", "extra"}

    assert UI_FIELD_BEHAVIOUR["placeholders"].keys() <= standard | EXTRA_FIELDS.keys()
