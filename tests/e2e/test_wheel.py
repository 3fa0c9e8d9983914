"""The wheel, as users install it: in a new environment with each supported Airflow."""

import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import ollama_provider
from ollama_provider.provider_info import EXTRA_FIELDS

ROOT = Path(__file__).parents[2]
LINES = sorted(path.stem.removeprefix("airflow-") for path in (ROOT / "constraints").glob("airflow-*.txt"))
# Check imports, and the hook, form and decorators that Airflow finds. A provider may load without them.
LOOK = """
import importlib, json
import airflow

for name in "agents decorators hooks links operators sensors sql testing triggers".split():
    importlib.import_module(f"ollama_provider.{name}")
from airflow.providers.common.compat.sdk import task
if airflow.__version__.startswith("2."):
    from airflow.providers_manager import ProvidersManager
    widgets = ProvidersManager().connection_form_widgets
    form = [info.field_name for key, info in widgets.items() if key.startswith("extra__ollama__")]
else:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
    metas = HookMetaService.hook_meta_data()
    (form,) = [list(meta.extra_fields) for meta in metas if meta.connection_type == "ollama"]
decorators = [name for name in ("generate", "chat", "embed", "batch", "branch") if hasattr(task, f"ollama_{name}")]
print(json.dumps([form, decorators]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source tree."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], cwd=ROOT, check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """It has every module, the templates of report and page, `py.typed` and the license; no test, DAG or tool."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ollama_provider").rglob("*.py")}
    report = ("macros.html.jinja", "report.css", "report.html.jinja")
    templates = {f"ollama_provider/batch/report/{name}" for name in report}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "ollama_provider/ui").glob("[st]*/*.*")}
    metadata = f"airflow_provider_ollama-{ollama_provider.__version__}.dist-info/"

    others = {name for name in names if not name.startswith(metadata)}

    assert others == modules | templates | page | {"ollama_provider/py.typed"}
    assert f"{metadata}licenses/LICENSE" in names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Name, version, license and the two entry points are those of pyproject.toml."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
        entry_points = archive.read(path.replace("METADATA", "entry_points.txt")).decode()

    assert metadata["Name"] == "airflow-provider-ollama"
    assert metadata["Version"] == ollama_provider.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "ollama_provider.provider_info:get_provider_info" in entry_points
    assert "ollama_provider.testing.plugin" in entry_points


@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", LINES)
def test_airflow_finds_the_wheel(wheel: Path, line: str, tmp_path: Path) -> None:
    """With only its own dependencies, Airflow lists the provider with its hook, form and decorators."""
    programs = tmp_path / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", programs.parent], check=True)
    constraints = ROOT / "constraints" / f"airflow-{line}.txt"
    subprocess.run([programs / "pip", "install", "--quiet", "--constraint", constraints, wheel], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment["AIRFLOW_HOME"] = str(tmp_path / "airflow")

    def ask(program: str, *arguments: str) -> Any:
        # In a directory without the source tree, so that the wheel is imported.
        command = [programs / program, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    providers = ask("airflow", "providers", "list", "--output", "json")
    (provider,) = (found for found in providers if found["package_name"] == "airflow-provider-ollama")
    hooks = ask("airflow", "providers", "hooks", "--output", "json")
    (hook,) = (found for found in hooks if found["connection_type"] == "ollama")
    form, decorators = ask("python", "-c", LOOK)

    assert provider["version"] == ollama_provider.__version__
    assert (hook["hook_name"], hook["class"]) == ("Ollama", "ollama_provider.hooks.OllamaHook")
    assert form == list(EXTRA_FIELDS)
    assert decorators == ["generate", "chat", "embed", "batch", "branch"]
