"""What CI runs is what the package says that it supports."""

import runpy
import tomllib

import yaml

from tests.docs.pages import ROOT

CLASSIFIER = "Programming Language :: Python :: "


def test_the_workflow_runs_every_airflow_and_python_that_is_supported() -> None:
    """The same Pythons in the classifiers, in .ci/matrix and in the workflow, and no pair that cannot be."""
    known = runpy.run_path(str(ROOT / ".ci/matrix"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = [line.removeprefix(CLASSIFIER) for line in project["classifiers"] if line.startswith(CLASSIFIER)]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    matrix = workflow["jobs"]["matrix"]["strategy"]["matrix"]

    assert list(known["PYTHONS"]) == classified == matrix["python"]
    assert {(pair["airflow"], pair["python"]) for pair in matrix["exclude"]} == known["IMPOSSIBLE"]
    pinned = {path.stem.removeprefix("airflow-") for path in (ROOT / "constraints").glob("airflow-*.txt")}
    assert set(matrix["airflow"]) == pinned


def test_the_workflow_runs_what_exists() -> None:
    """Every step that is a command is one of .ci/."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step["run"].split()[0] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]

    assert ".ci/run" in commands
    assert [command for command in commands if not (ROOT / command).is_file()] == []
