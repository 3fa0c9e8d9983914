"""docs/design/architecture.md says of the tree and of its layers what is there."""

import re
import tomllib

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/design/architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def contract(kind: str, name: str) -> dict:
    """The contract of this kind whose name begins so."""
    (found,) = (one for one in CONTRACTS if one["type"] == kind and one["name"].startswith(name))
    return found


def test_the_layers_are_those_that_are_enforced() -> None:
    """In their order, and with what stands beside each other; below them, the page has what is not ours."""
    block = re.search(r"```\n(decorators\n.*?)```", PAGE, re.DOTALL)
    assert block
    *shown, others = [re.sub(r" \(.*\)", "", line).split(" · ") for line in block[1].splitlines()]

    assert shown == [layer.split(" | ") for layer in contract("layers", "A layer")["layers"]]
    assert others == ["httpx", "tenacity", "pydantic"]


def test_what_is_said_to_know_no_airflow() -> None:
    """Is what `make imports` keeps from it, and the other way round."""
    sentence = re.search(r"(`api`[^.]*) import without Airflow", PAGE)
    assert sentence
    sources = contract("forbidden", "Ollama, the batch")["source_modules"]

    assert set(re.findall(r"`(\w+)`", sentence[1])) == {name.removeprefix("ollama_provider.") for name in sources}


def test_every_part_is_in_the_tree() -> None:
    """Each module and package of the first level has its row."""
    package = ROOT / "ollama_provider"
    parts = {path.name for path in package.glob("*.py") if path.stem != "__init__"}
    parts |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    rows = set(re.findall(r"`(?:ollama_provider/)?(\w+(?:\.py|/))", PAGE[: PAGE.index("## Who may import whom")]))

    assert parts <= rows
