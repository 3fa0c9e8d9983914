"""docs/design/architecture.md says of the tree and of its layers what is there."""

import re
import tomllib

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/design/architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def contract(kind: str, name: str) -> dict:
    """The contract of this kind whose name begins so."""
    (found,) = (one for one in CONTRACTS if one["type"] == kind and one["name"].startswith(name))
    return found


def test_the_layers_are_those_that_are_enforced() -> None:
    """In their order, and with what stands beside each other; below them, the page has what is not ours."""
    block = re.search(r"```\n(decorators · ui\n.*?)```", PAGE, re.DOTALL)
    assert block
    *shown, others = [re.sub(r" \(.*\)", "", line).split(" · ") for line in block[1].splitlines()]

    assert shown == [layer.split(" | ") for layer in contract("layers", "A layer")["layers"]]
    assert others == ["httpx", "tenacity", "pydantic"]


def test_the_layers_inside_the_batch_are_those_that_are_enforced() -> None:
    """In their order as well."""
    block = re.search(r"```\n(__main__\n.*?)```", PAGE, re.DOTALL)
    assert block

    assert [line.split(" · ") for line in block[1].splitlines()] == [
        layer.split(" | ") for layer in contract("layers", "Inside the batch")["layers"]
    ]


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


def test_every_module_of_the_api_has_its_row() -> None:
    """And what has a row is there."""
    api = ROOT / "ollama_provider/api"
    rows = set(re.findall(r"`api/(\w+(?:\.py|/))`", PAGE[: PAGE.index("## Who may import whom")]))

    assert rows == {path.name for path in api.glob("*.py") if path.stem != "__init__"} | {"schemas/"}


@pytest.mark.parametrize("part", ["batch", "testing", "ui"])
def test_every_module_of_a_part_has_its_row(part: str) -> None:
    """And each row names modules that exist."""
    section = PAGE.partition(f"### Inside `{part}/`\n")[2].partition("\n#")[0]
    package = ROOT / "ollama_provider"
    modules = {path.relative_to(package).as_posix() for path in package.glob(f"{part}/**/*.py")}

    assert {path for path in modules if not path.endswith("/__init__.py")} | {f"{part}/__init__.py"} == set(
        re.findall(rf"`({part}/[\w/]+\.py)`", section)
    )


def test_a_row_and_a_prompt_come_back_to_no_module() -> None:
    """The ways name modules that exist, each of them once."""
    for way in ("The way of a row", "The way of a prompt"):
        steps = re.findall(
            r"^\d+\. .*?(?=^\d+\. |^$)",
            PAGE.partition(f"## {way}\n")[2].partition("\n## ")[0],
            re.MULTILINE | re.DOTALL,
        )
        passed = [found for step in steps for found in re.findall(r"`([\w/]+\.py)`", step)]

        assert len(passed) > 8
        assert [path for path in passed if not (ROOT / "ollama_provider" / path).exists()] == []
        assert sorted(set(passed)) == sorted(passed)
