"""What Airflow finds of the page."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import airflow
import pytest

from ollama_provider.ui.plugin import OllamaPlugin

LOADED = """
import json
from airflow import plugins_manager

plugins_manager.ensure_plugins_loaded()
(plugin,) = [each for each in plugins_manager.get_plugin_info() if each["name"] == "ollama"]
print("found:", json.dumps([len(plugin.get("fastapi_apps", [])), plugin.get("external_views", [])]))
"""


def found() -> list:
    """What Airflow has loaded in a process of its own: the number of apps, and the menu entries."""
    shown = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("found: ")]
    return json.loads(line.removeprefix("found: "))


def test_airflow_finds_the_plugin_by_its_entry_point() -> None:
    """Installing the package is all a user has to do."""
    (entry,) = [entry for entry in entry_points(group="airflow.plugins") if entry.value.startswith("ollama_")]

    assert entry.load() is OllamaPlugin


@pytest.mark.parametrize("lazy", ["True", "False"])
def test_airflow_loads_it(monkeypatch: pytest.MonkeyPatch, lazy: str) -> None:
    """There is an app and a menu entry from Airflow 3.1 on; Airflow 2 finds nothing in it, and does not complain."""
    monkeypatch.setenv("AIRFLOW__CORE__LAZY_LOAD_PLUGINS", lazy)

    apps, views = found()

    if airflow.__version__.startswith("2."):
        assert (apps, views) == (0, [])
    else:
        assert apps == 1
        assert [(view["name"], view["href"], view["destination"]) for view in views] == [("Ollama", "ollama/", "nav")]


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting takes away menu entry and app."""
    monkeypatch.setenv("AIRFLOW__OLLAMA__SHOW_PAGE", "False")

    assert found() == [0, []]
