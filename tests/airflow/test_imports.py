"""What an import costs: DAG files are parsed all the time, and Airflow reads the provider while it starts."""

import subprocess
import sys
import textwrap

import airflow
import pytest

#: Big, and of use to few.
HEAVY = {"aiohttp", "fastapi", "fsspec", "httpx_aiohttp", "numpy", "pandas", "pyarrow", "starlette", "uvicorn", "upath"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after some code."""
    script = textwrap.dedent(code) + "\nimport sys; print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("loaded:")]
    return set(line.split()[1:])


@pytest.mark.parametrize("module", ["ollama_provider", "ollama_provider.provider_info"])
def test_what_airflow_reads_at_its_start_loads_nothing(module):
    """No Airflow (it is still starting), no third party at all."""
    bare, loaded = modules_after(""), modules_after(f"import {module}")

    assert loaded - bare - set(sys.stdlib_module_names) == {"ollama_provider"}


@pytest.mark.parametrize(
    "module",
    ["ollama_provider.api.client", "ollama_provider.batch", "ollama_provider.waiting", "ollama_provider.testing"],
)
def test_what_has_no_airflow_in_it_loads_none(module):
    """These are of use without Airflow."""
    assert "airflow" not in modules_after(f"import {module}")


def test_a_dag_file_pays_for_nothing_heavy():
    """Operators, sensors and hooks load nothing big that Airflow has not loaded by itself."""
    sdk = "airflow.models" if airflow.__version__.startswith("2.") else "airflow.sdk"
    base = f"from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator; import {sdk}"
    ours = "import ollama_provider.hooks, ollama_provider.operators, ollama_provider.sensors"

    assert (modules_after(f"{base}\n{ours}") - modules_after(base)) & HEAVY == set()


def test_a_process_that_loads_plugins_pays_for_nothing_heavy():
    """Every process of Airflow loads the plugin, but only the API server has the page."""
    base = "from airflow.providers.common.compat.sdk import AirflowPlugin, BaseOperatorLink"

    loaded = modules_after(f"{base}\nimport ollama_provider.ui.plugin") - modules_after(base)

    assert loaded <= {"ollama_provider"}
