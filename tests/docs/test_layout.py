"""The tree is laid out as CONTRIBUTING.md says: few things at the top, and tests beside the parts that they test."""

import subprocess

from tests.docs.pages import ROOT

#: All that may stand at the top. A new file has its room in one of these folders.
TOP = {
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"),
    *("ollama_provider", "dags", "tests", "docs", "constraints", ".ci", ".github"),
    *(".editorconfig", ".gitignore", ".pre-commit-config.yaml"),
}
#: Folders of tests that belong to no part of the package: what they start, measure or read.
OTHER_TESTS = {"airflow", "benchmarks", "data", "docs", "e2e", "fuzz", "live", "security", "soak"}


def files() -> list[str]:
    """The files that git has, by their path."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_nothing_new_stands_at_the_top() -> None:
    """Whoever opens the repository sees what there is at a glance."""
    assert {path.partition("/")[0] for path in files()} == TOP


def test_each_folder_of_tests_is_named_after_what_it_tests() -> None:
    """A part of the package, or one of the few others."""
    parts = {path.parent.name for path in (ROOT / "ollama_provider").glob("*/__init__.py")}
    folders = {path.split("/")[1] for path in files() if path.startswith("tests/") and path.count("/") > 1}

    assert folders - OTHER_TESTS <= parts
