"""docs/reference/operators.md says of each argument what its docstring says."""

import inspect
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from ollama_provider import operators, sensors
from ollama_provider.batch import GROUPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/operators.md"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """What `make reference` runs."""
    loader = SourceFileLoader("reference", str(ROOT / ".ci/reference"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_docstrings(reference) -> None:
    """`make reference` would change nothing."""
    text = PAGE.read_text()

    assert text == reference.page(text)


@pytest.mark.parametrize("name", [*operators.__all__, "OllamaHealthSensor"])
def test_every_operator_has_its_section_with_all_arguments(reference, name) -> None:
    """An argument is in the operator's own table, or in one that it shares."""
    kind = getattr(operators, name, None) or getattr(sensors, name)
    documented = {argument for parent in kind.__mro__ for argument in reference.documented(parent)}
    arguments = inspect.signature(kind.__init__).parameters.keys() - {"self", "kwargs"}

    assert f"<!-- arguments of {name} -->" in PAGE.read_text()
    assert arguments <= documented


@pytest.mark.parametrize("kind", GROUPS.values())
def test_every_group_has_its_section_with_all_arguments(reference, kind) -> None:
    """And its place in the table of groups."""
    page = PAGE.read_text()

    assert f"<!-- arguments of {kind.__name__} -->" in page
    assert f"| `{kind.argument}` | [`{kind.__name__}`](#{kind.__name__.lower()}) |" in page
    assert inspect.signature(kind.__init__).parameters.keys() - {"self"} == reference.documented(kind).keys()
