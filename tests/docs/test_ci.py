"""What CI runs is what the package says that it supports."""

import re
import runpy
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.docs.pages import ROOT

CLASSIFIER = "Programming Language :: Python :: "
_PIP_AUDIT = """#!{python}
import json, sys
from pathlib import Path

asked = [line.split("==") for line in Path(sys.argv[2]).read_text().split()]
vulns = {probe} if len(asked) == 1 else {ours}
told = {{"skip_reason": "Dependency not found"}} if vulns is None else {{"vulns": vulns}}
print(json.dumps({{"dependencies": [{{"name": name, "version": version, **told}} for name, version in asked]}}))
"""


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
    """Every step that is a command is one of .ci/ or a target of the Makefile."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step["run"].split() for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert [".ci/run"] in commands
    assert ["make", "audit"] in commands
    for program, *arguments in commands:
        assert arguments[0] in targets if program == "make" else (ROOT / program).is_file()


@pytest.mark.parametrize(
    ("about_the_probe", "about_ours", "status", "says"),
    [
        ([{"id": "CVE-1", "fix_versions": []}], [], 0, "0 known vulnerabilities"),
        ([{"id": "CVE-1", "fix_versions": []}], [{"id": "CVE-2", "fix_versions": ["9.9"]}], 1, "CVE-2, fixed in 9.9"),
        ([], [], 3, "Not audited"),
        (None, None, 3, "Not audited"),
        ([{"id": "CVE-1", "fix_versions": []}], None, 3, "Not audited"),
    ],
    ids=["nothing", "a vulnerability", "no advisories", "no service", "the service fails"],
)
def test_an_audit_that_asked_nobody_does_not_pass(tmp_path, about_the_probe, about_ours, status, says) -> None:
    """An index without advisories looks like one of packages without vulnerabilities. A program stands for it here."""
    program = tmp_path / "pip-audit"
    program.write_text(_PIP_AUDIT.format(python=sys.executable, probe=about_the_probe, ours=about_ours))
    program.chmod(0o755)

    ran = subprocess.run(
        [sys.executable, ROOT / ".ci/audit", program, ROOT / "constraints/airflow-3.3.txt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (ran.returncode, ran.stderr) == (status, "")
    assert says in ran.stdout
